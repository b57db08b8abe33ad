package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpecFile(t *testing.T) {
	for name, test := range map[string]struct {
		args    []string
		file    string
		process []string
	}{
		"create as the shim calls it": {
			[]string{"--root", "/r", "--log", "/l", "--log-format", "json", "create", "--bundle", "/b", "--pid-file", "/p", "id"},
			"/b/config.json", []string{"process"},
		},
		"run with an equals sign":       {[]string{"run", "--bundle=/b", "id"}, "/b/config.json", []string{"process"}},
		"short flag":                    {[]string{"create", "-b", "/b", "id"}, "/b/config.json", []string{"process"}},
		"working directory":             {[]string{"create", "id"}, "config.json", []string{"process"}},
		"exec as the shim calls it":     {[]string{"--root", "/r", "exec", "--process", "/tmp/runc-process1", "--detach", "id"}, "/tmp/runc-process1", nil},
		"exec with the process in args": {[]string{"exec", "id", "sh"}, "", nil},
		"another command":               {[]string{"--root", "/r", "start", "id"}, "", nil},
		"no command":                    {nil, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			file, process := specFile(test.args)
			require.Equal(t, test.file, file)
			require.Equal(t, test.process, process)
		})
	}
}

func TestBound(t *testing.T) {
	bounding := map[string]bool{"CAP_CHOWN": true, "CAP_KILL": true}
	for name, test := range map[string]struct {
		process       []string
		before, after string
	}{
		// The limit is larger than a float64 holds exactly.
		"bundle": {
			[]string{"process"},
			`{"process":{"args":["sh"],"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"effective":["CAP_SYS_RESOURCE"]}},"linux":{"limit":9007199254740993}}`,
			`{"linux":{"limit":9007199254740993},"process":{"args":["sh"],"capabilities":{"bounding":["CAP_CHOWN"],"effective":[]}}}`,
		},
		"process of an exec": {
			nil,
			`{"args":["sh"],"capabilities":{"permitted":["CAP_KILL","CAP_BPF"]}}`,
			`{"args":["sh"],"capabilities":{"permitted":["CAP_KILL"]}}`,
		},
		"nothing to take":      {[]string{"process"}, `{ "process": {"capabilities": {"bounding": ["CAP_KILL"]}} }`, `{ "process": {"capabilities": {"bounding": ["CAP_KILL"]}} }`},
		"without capabilities": {[]string{"process"}, `{ "process": {} }`, `{ "process": {} }`},
		"without a process":    {[]string{"process"}, `{}`, `{}`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			require.NoError(t, os.WriteFile(path, []byte(test.before), 0o600))
			require.NoError(t, bound(path, test.process, bounding))
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, test.after, string(after))
		})
	}

	t.Run("not JSON", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "config.json")
		require.NoError(t, os.WriteFile(path, []byte(`{`), 0o600))
		require.ErrorContains(t, bound(path, nil, bounding), path)
	})
}

func TestBoundingSetIsOfThisProcess(t *testing.T) {
	bounding, err := boundingSet()
	require.NoError(t, err)
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	// A process without any is possible, but not one that these tests run in.
	require.NotContains(t, string(status), "CapBnd:\t0000000000000000")
	require.NotEmpty(t, bounding)
	for name := range bounding {
		require.Regexp(t, `^CAP_[A-Z_]+$`, name)
	}
}
