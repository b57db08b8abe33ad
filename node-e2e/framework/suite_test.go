package framework

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFolders(t *testing.T) {
	here, err := os.Getwd()
	require.NoError(t, err)
	output, manifests, err := Folders("_output", "/manifests")
	require.NoError(t, err)
	require.Equal(t, filepath.Join(here, "_output"), output)
	require.Equal(t, "/manifests", manifests)
}

func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	built, missing := program(t, dir, "kubectl", ""), filepath.Join(dir, "guard-webhook")
	artifacts := filepath.Join(dir, "e2e", "fleet")

	err := Prepare(artifacts, "make e2e-kind", built, missing)
	require.EqualError(t, err, "not built (make e2e-kind builds all): stat "+missing+": no such file or directory")
	require.NoDirExists(t, artifacts)

	require.NoError(t, Prepare(artifacts, "make e2e-kind", built, dir))
	require.DirExists(t, artifacts)

	require.ErrorContains(t, Prepare(filepath.Join(built, "e2e"), "make e2e-kind"), "-output: mkdir "+built)
}
