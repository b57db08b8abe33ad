package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// entry is what the tests check in a tar.
type entry struct {
	Type    byte
	Mode    int64
	Link    string
	Content string
}

func read(t *testing.T, archive []byte) map[string]entry {
	t.Helper()
	entries := map[string]entry{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if err == io.EOF {
			return entries
		}
		require.NoError(t, err)
		content, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NotContains(t, entries, header.Name)
		entries[header.Name] = entry{Type: header.Typeflag, Mode: header.Mode, Link: header.Linkname, Content: string(content)}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	source := func(name string) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte("content of "+name), 0o600))
		return file
	}
	list := []Image{
		Program("localhost/guard/pause:dev", source("pause")),
		{
			Name:       "localhost/guard/tables:dev",
			Entrypoint: []string{"/usr/sbin/tables", "list"},
			Files: []File{
				{Path: "/usr/sbin/tables", Source: source("tables")},
				{Path: "/etc/tables.conf", Source: source("tables.conf"), Mode: 0o644},
				{Path: "/sbin", Link: "usr/sbin"},
			},
		},
	}
	var first, second bytes.Buffer
	require.NoError(t, Write(&first, list...))
	require.NoError(t, Write(&second, list...))
	require.True(t, bytes.Equal(first.Bytes(), second.Bytes()), "the same files must give the same archive")

	archive := read(t, first.Bytes())
	var manifests []manifest
	require.NoError(t, json.Unmarshal([]byte(archive["manifest.json"].Content), &manifests))
	require.Len(t, manifests, len(list))
	var layers []map[string]entry
	for n, m := range manifests {
		require.Equal(t, []string{list[n].Name}, m.RepoTags)
		var c config
		require.NoError(t, json.Unmarshal([]byte(archive[m.Config].Content), &c))
		require.Equal(t, list[n].Entrypoint, c.Config.Entrypoint)
		require.Len(t, m.Layers, 1)
		layers = append(layers, read(t, []byte(archive[m.Layers[0]].Content)))
	}

	folder := entry{Type: tar.TypeDir, Mode: 0o755}
	mounted := map[string]entry{"dev/": folder, "etc/": folder, "proc/": folder, "sys/": folder, "tmp/": {Type: tar.TypeDir, Mode: 0o1777}}
	with := func(added map[string]entry) map[string]entry {
		all := map[string]entry{}
		for _, m := range []map[string]entry{mounted, added} {
			for name, e := range m {
				all[name] = e
			}
		}
		return all
	}
	require.Equal(t, with(map[string]entry{
		"pause": {Type: tar.TypeReg, Mode: 0o755, Content: "content of pause"},
	}), layers[0])
	require.Equal(t, with(map[string]entry{
		"etc/tables.conf": {Type: tar.TypeReg, Mode: 0o644, Content: "content of tables.conf"},
		"sbin":            {Type: tar.TypeSymlink, Mode: 0o777, Link: "usr/sbin"},
		"usr/":            folder,
		"usr/sbin/":       folder,
		"usr/sbin/tables": {Type: tar.TypeReg, Mode: 0o755, Content: "content of tables"},
	}), layers[1])
}

func TestWriteRefusesAnImageThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	for want, files := range map[string][]File{
		"building the image i: file \"a\": the path must be absolute":             {{Path: "a", Source: file}},
		"building the image i: file /a: set either the source or the link":        {{Path: "/a"}},
		"building the image i: file /a: it is also the folder of others":          {{Path: "/a", Link: "b"}, {Path: "/a/b", Source: file}},
		"building the image i: open " + file + ".gone: no such file or directory": {{Path: "/a", Source: file + ".gone"}},
	} {
		require.EqualError(t, Write(io.Discard, Image{Name: "i", Files: files}), want)
	}
}
