package build

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fill makes the content of an entry that is one file.
func fill(content string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644) }
}

func TestCacheDir(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "/somewhere")
	for value, want := range map[string]string{"": "/somewhere/kubelet-guard", "/else/where/": "/else/where", "off": ""} {
		t.Setenv(CacheVariable, value)
		got, err := cacheDir()
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	t.Setenv(CacheVariable, "here")
	_, err := cacheDir()
	require.ErrorContains(t, err, `KUBELET_GUARD_CACHE: "here" is neither an absolute path nor off`)

	r := Repo{Root: "/checkout"}
	require.Equal(t, "/checkout/_output/cache", r.cache().dir, "switched off, nothing is shared")
}

func TestEntriesHaveOneTimeAndAreReadOnly(t *testing.T) {
	c := cache{dir: t.TempDir(), limit: cacheLimit}
	dir, release, err := c.hold(ctx, "k", "a", io.Discard, func(dir string) error {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "sub", "sub"), 0o755))
		return os.WriteFile(filepath.Join(dir, "sub", "sub", "program"), nil, 0o755)
	})
	require.NoError(t, err)
	release()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		require.True(t, info.ModTime().Equal(cacheTime), path)
		if !d.IsDir() {
			require.Equal(t, fs.FileMode(0o555), info.Mode(), path)
		}
		return nil
	}))
}

func TestConcurrentMakersOfAnEntry(t *testing.T) {
	c := cache{dir: t.TempDir(), limit: cacheLimit}
	var made atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 20 {
				dir, release, err := c.hold(ctx, "k", "a", io.Discard, func(dir string) error {
					made.Add(1)
					return fill("content")(dir)
				})
				if err != nil {
					t.Error(err)
					return
				}
				data, err := os.ReadFile(filepath.Join(dir, "file"))
				if err != nil || string(data) != "content" {
					t.Errorf("%q, %v", data, err)
				}
				release()
			}
		})
	}
	group.Wait()
	require.LessOrEqual(t, made.Load(), int32(8))
	left, err := filepath.Glob(filepath.Join(c.dir, "k", "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(c.dir, "k", "a")}, left)
}

func TestAnEntryThatCannotBeMadeLeavesNothing(t *testing.T) {
	c := cache{dir: t.TempDir(), limit: cacheLimit}
	_, _, err := c.hold(ctx, "k", "a", io.Discard, func(dir string) error { return fs.ErrPermission })
	require.ErrorIs(t, err, fs.ErrPermission)
	left, err := filepath.Glob(filepath.Join(c.dir, "k", "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestOldEntriesAreRemoved(t *testing.T) {
	c := cache{dir: t.TempDir(), limit: 250}
	use := func(key string, ago time.Duration) {
		_, release, err := c.hold(ctx, "k", key, io.Discard, fill(strings.Repeat("x", 100)))
		require.NoError(t, err)
		release()
		then := time.Now().Add(-ago)
		require.NoError(t, os.Chtimes(filepath.Join(c.dir, "k", key, "sum"), then, then))
	}
	entries := func() (keys []string) {
		places, err := filepath.Glob(filepath.Join(c.dir, "k", "*"))
		require.NoError(t, err)
		for _, place := range places {
			keys = append(keys, filepath.Base(place))
		}
		return keys
	}
	use("a", time.Hour)
	use("b", 2*time.Hour)
	use("c", 3*time.Hour)
	_, inUse, err := c.hold(ctx, "k", "a", io.Discard, fill("not needed"))
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, entries(), "c was used longest ago")

	use("d", cacheAge+time.Hour)
	require.NoError(t, os.Mkdir(filepath.Join(c.dir, "k", ".making-1"), 0o755))
	use("e", 0)
	require.Equal(t, []string{".making-1", "a", "b", "d", "e"}, entries(), "nothing is removed while an entry is in use")
	inUse()
	use("e", 0)
	require.Equal(t, []string{"a", "e"}, entries(), "d is too old, and b makes room")
}
