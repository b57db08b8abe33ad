package framework

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/onsi/gomega"
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

// program writes a shell script.
func program(t *testing.T, dir, name, script string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o755))
	return file
}

func TestKubectl(t *testing.T) {
	plugins := t.TempDir()
	program(t, plugins, "kubectl-guard", `echo "plugin $*"`)
	kubectl := Kubectl{
		Program:    program(t, t.TempDir(), "kubectl", `[ "$1" = guard ] && shift && exec kubectl-guard "$@"; echo "$KUBECONFIG $*"; cat; echo refused >&2; exit 3`),
		Kubeconfig: "/cluster/kubeconfig",
		PluginDir:  plugins,
	}

	require.Equal(t, KubectlResult{Command: "kubectl guard holds -A", Stdout: "plugin holds -A\n"}, kubectl.Run(t.Context(), "guard", "holds", "-A"))

	result := kubectl.RunWithInput(t.Context(), "{}\n", "apply", "-f", "-")
	require.Equal(t, "/cluster/kubeconfig apply -f -\n{}\n", result.Stdout)
	require.Equal(t, "refused\n", result.Stderr)
	require.EqualError(t, result.Err, "exit status 3")
	require.Equal(t, "$ kubectl apply -f -\n/cluster/kubeconfig apply -f -\n{}\nrefused\n(exit status 3)", result.String())

	kubectl.Program = "/no/kubectl"
	require.ErrorIs(t, kubectl.Run(t.Context(), "get", "nodes").Err, os.ErrNotExist)
}

func TestAnswerExpectations(t *testing.T) {
	done := KubectlResult{Command: "kubectl get pods", Stdout: "web\n"}
	refused := KubectlResult{Command: "kubectl delete pod web", Stdout: "web\n", Stderr: "is protected\n", Err: os.ErrPermission}
	for name, tc := range map[string]struct {
		expect func()
		want   string
	}{
		"done, as expected":           {func() { done.ExpectDone() }, ""},
		"refused, as expected":        {func() { refused.ExpectRefused("web", "is protected") }, ""},
		"refused, but expected done":  {func() { refused.ExpectDone() }, refused.String()},
		"done, but expected refused":  {func() { done.ExpectRefused() }, done.String()},
		"refused in the wrong manner": {func() { refused.ExpectRefused("held to") }, refused.String()},
	} {
		t.Run(name, func(t *testing.T) {
			message := ""
			gomega.RegisterFailHandler(func(text string, _ ...int) { message = text })
			tc.expect()
			if tc.want == "" {
				require.Empty(t, message)
			}
			require.Contains(t, message, tc.want)
		})
	}
}
