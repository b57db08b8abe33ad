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
	require.NoError(t, os.CopyFS(filepath.Join(work, filepath.Dir(alertsPath)), os.DirFS(filepath.Join(root, filepath.Dir(alertsPath)))))
	require.NoError(t, os.CopyFS(filepath.Join(work, rulePackages), os.DirFS(filepath.Join(root, rulePackages))))
	require.NoError(t, os.CopyFS(filepath.Join(work, rulePages), os.DirFS(filepath.Join(root, rulePages))))
	changedPage := filepath.Join(rulePages, "protection.md")
	replaceIn(t, work, changedPage, "**Objects**", "**Things**")
	page, err := os.ReadFile(filepath.Join(root, configurationPath))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(work, configurationPath), page, 0o644))
	replaceIn(t, work, configurationPath, "| `Evicted` |", "| `Removed` |")

	require.NoError(t, run(work))
	for _, path := range []string{metricsPath, webhookMetricsPath, configurationPath, dashboardPath, prometheusRulePath, changedPage} {
		want, err := os.ReadFile(filepath.Join(root, path))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(work, path))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got))
	}
}

// replaceIn changes a file below the folder.
func replaceIn(t *testing.T, folder, path, old, changed string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, path))
	require.NoError(t, err)
	require.Contains(t, string(text), old)
	require.NoError(t, os.WriteFile(filepath.Join(folder, path), []byte(strings.Replace(string(text), old, changed, 1)), 0o644))
}

func TestSpecificationHasItsHeadings(t *testing.T) {
	folder := t.TempDir()
	write := func(comment string) {
		require.NoError(t, os.WriteFile(filepath.Join(folder, "doc.go"), []byte("/*\n"+comment+"*/\npackage rule\n"), 0o644))
	}
	write("Package rule is.\n\n# Objects\n\nPods.\n\n# Refused when\n\n  - one;\n  - two\n    lines.\n\n# Let through when\n\n  - three.\n\n# Fails open because\n\nfour.\n\n# Implementation\n\nFive.\n")
	text, err := specification(folder)
	require.NoError(t, err)
	assert.Equal(t, "**Objects**\n\nPods.\n\n**Refused when**\n\n- one;\n- two\n  lines.\n\n**Let through when**\n\n- three.\n\n**Fails open because** four.\n", text)
	write("Package rule is.\n\n# Objects\n\nPods.\n")
	_, err = specification(folder)
	assert.ErrorContains(t, err, `found ["Objects"]`)
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
