package rules

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/admission"
)

const root = "../../.."

// TestManifestAgreesWithTheTable compares the paths and failure policies in both.
func TestManifestAgreesWithTheTable(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "manifests/control-plane/webhook/configuration.yaml"))
	require.NoError(t, err)
	var configuration admissionregistrationv1.ValidatingWebhookConfiguration
	require.NoError(t, yaml.Unmarshal(text, &configuration))
	manifest := map[string]admission.FailurePolicy{}
	for _, entry := range configuration.Webhooks {
		path, policy := *entry.ClientConfig.Service.Path, admission.FailurePolicy(*entry.FailurePolicy)
		if known, ok := manifest[path]; ok {
			require.Equal(t, known, policy, "%s: entries of one path must have one failurePolicy", path)
		}
		manifest[path] = policy
	}
	table := map[string]admission.FailurePolicy{}
	for _, row := range Table() {
		require.NotContains(t, table, row.Path)
		table[row.Path] = row.FailurePolicy
	}
	require.Equal(t, table, manifest)
}

func TestARuleHasOneNameForPackagePageAndPath(t *testing.T) {
	var packages []string
	for _, row := range Table() {
		require.FileExists(t, filepath.Join(root, "docs/control-plane", string(row.Rule)+".md"))
		require.Regexp(t, `^/validate/`+string(row.Rule)+`(/[a-z-]+)?$`, row.Path)
		require.NotEmpty(t, row.Objects, row.Path)
		require.NotEmpty(t, row.Because, row.Path)
		require.NotEqual(t, row.judges == nil, row.validates == nil, row.Path)
		if name := row.Rule.Package(); name != "" && !slices.Contains(packages, name) {
			packages = append(packages, name)
		}
	}
	entries, err := os.ReadDir(".")
	require.NoError(t, err)
	var folders []string
	for _, entry := range entries {
		if entry.IsDir() {
			folders = append(folders, entry.Name())
		}
	}
	require.ElementsMatch(t, folders, packages)
}
