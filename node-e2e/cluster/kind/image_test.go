package kind

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBuildContextHasFoldersBeforeTheirFiles(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(program, []byte("binary"), 0o600))
	c := buildContext{
		content: map[string][]byte{"Dockerfile": []byte("FROM scratch"), "root/etc/file": []byte("x")},
		files:   map[string]string{"root/usr/bin/program": program},
	}
	var written bytes.Buffer
	require.NoError(t, c.write(&written))

	type entry struct {
		mode    int64
		content string
	}
	got := map[string]entry{}
	archive := tar.NewReader(&written)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		content, err := io.ReadAll(archive)
		require.NoError(t, err)
		require.NotContains(t, got, header.Name)
		if parent := filepath.Dir(filepath.Clean(header.Name)); parent != "." {
			require.Contains(t, got, parent+"/")
		}
		got[header.Name] = entry{header.Mode, string(content)}
	}
	require.Equal(t, map[string]entry{
		"Dockerfile":           {0o644, "FROM scratch"},
		"root/":                {0o755, ""},
		"root/etc/":            {0o755, ""},
		"root/etc/file":        {0o644, "x"},
		"root/usr/":            {0o755, ""},
		"root/usr/bin/":        {0o755, ""},
		"root/usr/bin/program": {0o755, "binary"},
	}, got)
}

func TestFingerprintFollowsContent(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	a, b := write("a", "1"), write("b", "2")
	before, err := fingerprint([]string{a, b}, 1, "x")
	require.NoError(t, err)
	for name, test := range map[string]func() (string, error){
		"other value": func() (string, error) { return fingerprint([]string{a, b}, 1, "y") },
		"other files": func() (string, error) { return fingerprint([]string{a}, 1, "x") },
		"other content": func() (string, error) {
			write("b", "3")
			return fingerprint([]string{a, b}, 1, "x")
		},
	} {
		after, err := test()
		require.NoError(t, err)
		require.NotEqual(t, before, after, name)
	}
	write("b", "2")
	again, err := fingerprint([]string{a, b}, 1, "x")
	require.NoError(t, err)
	require.Equal(t, before, again)
	_, err = fingerprint([]string{filepath.Join(dir, "absent")})
	require.Error(t, err)
}
