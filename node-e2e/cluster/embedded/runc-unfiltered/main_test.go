package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBundleToCreate(t *testing.T) {
	for name, test := range map[string]struct {
		args    []string
		bundle  string
		creates bool
	}{
		"as the shim calls it": {[]string{"--root", "/r", "--log", "/l", "create", "--bundle", "/b", "--pid-file", "/p", "id"}, "/b", true},
		"with an equals sign":  {[]string{"create", "--bundle=/b", "id"}, "/b", true},
		"short flag":           {[]string{"run", "-b", "/b", "id"}, "/b", true},
		"working directory":    {[]string{"create", "id"}, ".", true},
		"another command":      {[]string{"--root", "/r", "start", "id"}, ".", false},
		"no command":           {nil, ".", false},
	} {
		t.Run(name, func(t *testing.T) {
			bundle, creates := bundleToCreate(test.args)
			require.Equal(t, test.bundle, bundle)
			require.Equal(t, test.creates, creates)
		})
	}
}

func TestRemoveSeccomp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	write := func(content string) { require.NoError(t, os.WriteFile(path, []byte(content), 0o600)) }
	read := func() string {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(content)
	}
	// The limit is larger than a float64 holds exactly.
	write(`{"ociVersion":"1.2.0","linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"},"resources":{"memory":{"limit":9007199254740993}}}}`)
	require.NoError(t, removeSeccomp(path))
	require.JSONEq(t, `{"ociVersion":"1.2.0","linux":{"resources":{"memory":{"limit":9007199254740993}}}}`, read())
	require.Contains(t, read(), "9007199254740993")

	untouched := `{ "linux": {} }`
	write(untouched)
	require.NoError(t, removeSeccomp(path))
	require.Equal(t, untouched, read())

	write(`{`)
	require.ErrorContains(t, removeSeccomp(path), path)
}
