package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const root = "../.."

func TestDocsAreUpToDate(t *testing.T) {
	files, err := generate(root)
	require.NoError(t, err)
	for path, want := range files {
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.Equal(t, want, string(got), "%s: run make generate", path)
	}
}

func TestRunWritesWhatIsMissingOrOld(t *testing.T) {
	work := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(work, guardPackage), os.DirFS(filepath.Join(root, guardPackage))))
	require.NoError(t, os.CopyFS(filepath.Join(work, filepath.Dir(rulesPath)), os.DirFS(filepath.Join(root, filepath.Dir(rulesPath)))))
	require.NoError(t, os.Mkdir(filepath.Join(work, "docs"), 0o755))
	page, err := os.ReadFile(filepath.Join(root, configurationPath))
	require.NoError(t, err)
	old := strings.Replace(string(page), "| `Evicted` |", "| `Removed` |", 1)
	require.NotEqual(t, string(page), old)
	require.NoError(t, os.WriteFile(filepath.Join(work, configurationPath), []byte(old), 0o644))

	require.NoError(t, run(work))
	for _, path := range []string{metricsPath, webhookMetricsPath, configurationPath, dashboardPath, prometheusRulePath} {
		want, err := os.ReadFile(filepath.Join(root, path))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(work, path))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got))
	}
}

func TestConfigurationPageNeedsItsMarkers(t *testing.T) {
	s, err := readSource(filepath.Join(root, guardPackage))
	require.NoError(t, err)
	_, err = s.configurationPage("# Configuration\n")
	assert.EqualError(t, err, `the line "<!-- begin defaults: written by make generate -->" is missing`)
	_, err = s.configurationPage("<!-- begin defaults: written by make generate -->\n")
	assert.EqualError(t, err, `the line "<!-- end defaults -->" is missing`)
}

func TestEveryCauseIsDescribed(t *testing.T) {
	s, err := readSource(filepath.Join(root, guardPackage))
	require.NoError(t, err)
	table, err := s.table("cause", "meaning", "Cause")
	require.NoError(t, err)
	for _, cause := range guard.Causes() {
		assert.Contains(t, table, "| `"+string(cause)+"` | ")
	}
	assert.NotContains(t, table, guard.ExplicitDeletion)
}

func TestReadSourceOfAnotherFolder(t *testing.T) {
	_, err := readSource(t.TempDir())
	assert.ErrorContains(t, err, "run this from the root of the repository")
}
