package snapshots

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/dataprotection/history"
)

// saved makes the folder of a snapshot, of an hour and with so many objects of each resource.
func saved(t *testing.T, dir string, hour int, objects map[string]int) string {
	t.Helper()
	m := &Manifest{Saved: time.Date(2026, 1, 2, hour, 0, 0, 0, time.UTC), Content: Content{Resources: map[string]Resource{}}}
	for name, n := range objects {
		m.Resources[name] = Resource{Objects: n}
	}
	return write(t, dir, m)
}

// write makes the folder of a manifest.
func write(t *testing.T, dir string, m *Manifest) string {
	t.Helper()
	m.APIVersion, m.Kind = manifestAPIVersion, manifestKind
	path := filepath.Join(dir, m.Saved.Format(nameFormat))
	require.NoError(t, os.MkdirAll(path, 0o700))
	content, err := json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(path, ManifestName), content, 0o600))
	return filepath.Base(path)
}

func TestRotationKeepsTheLastSnapshotBeforeAResourceShrank(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		widgets []int
		kept    []int // indexes, the newest two included
	}{
		{"nothing shrank", []int{10, 10, 10, 11}, []int{2, 3}},
		{"by exactly 20 %", []int{10, 10, 8, 8}, []int{2, 3}},
		{"by more", []int{100, 100, 79, 79, 79}, []int{1, 3, 4}},
		{"to nothing", []int{100, 100, 0, 0, 0}, []int{1, 3, 4}},
		{"little by little", []int{100, 90, 80, 70, 60}, []int{2, 3, 4}},
		{"restored since", []int{100, 0, 0, 100}, []int{2, 3}},
	} {
		dir := t.TempDir()
		var names, want []string
		for hour, n := range test.widgets {
			// Pods come and go.
			names = append(names, saved(t, dir, hour, map[string]int{"widgets.example.com": n, "pods": 100 - hour*20}))
		}
		for _, i := range test.kept {
			want = append(want, names[i])
		}
		removed, kept, err := Rotate(dir, 2)
		require.NoError(t, err, test.name)
		require.Len(t, removed, len(names)-len(want), test.name)
		require.Len(t, kept, len(want)-2, test.name)
		for _, k := range kept {
			require.Contains(t, k.Reason, "widgets.example.com")
		}
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		var have []string
		for _, entry := range entries {
			have = append(have, entry.Name())
		}
		require.Equal(t, want, have, test.name)
	}
}

func TestRotationTouchesNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for hour := range 3 {
		saved(t, dir, hour, nil)
	}
	damaged := filepath.Join(dir, saved(t, dir, 0, nil))
	require.NoError(t, os.WriteFile(filepath.Join(damaged, ManifestName), []byte("{"), 0o600))
	other := filepath.Join(dir, "mine")
	require.NoError(t, os.Mkdir(other, 0o700))
	removed, _, err := Rotate(dir, 1)
	require.ErrorContains(t, err, damaged)
	require.Len(t, removed, 1)
	require.DirExists(t, damaged)
	require.DirExists(t, other)
}

func TestAnInterruptedSaveIsRemovedByTheNext(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	unlock, err := lock(dir)
	require.NoError(t, err)
	_, err = lock(dir)
	require.ErrorIs(t, err, ErrBusy)
	leftover := filepath.Join(dir, savingPrefix+"20260102T000000Z")
	require.NoError(t, os.Mkdir(leftover, 0o700))
	unlock()
	unlock, err = lock(dir)
	require.NoError(t, err)
	unlock()
	require.NoDirExists(t, leftover)
}

func TestSaveLeavesNothingWithoutEtcd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := Save(t.Context(), SaveOptions{
		Dir: dir, Prefix: "/registry/", Now: time.Now, Progress: func(int) {},
		Client: clientv3.Config{Endpoints: []string{"http://127.0.0.1:1"}},
	})
	require.ErrorContains(t, err, "no member of etcd responds")
	require.ErrorContains(t, err, "127.0.0.1:1")
	list, err := List(dir)
	require.NoError(t, err)
	require.Empty(t, list)
	entries, err := filepath.Glob(filepath.Join(dir, savingPrefix+"*"))
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestAFileThatIsNoSnapshotIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, make([]byte, 4096+32), 0o600))
	for _, skip := range []bool{false, true} {
		_, err := Verify(t.Context(), file, VerifyOptions{SkipHashCheck: skip, Scratch: dir})
		require.ErrorIs(t, err, history.ErrNoSnapshot)
	}
	_, err := Verify(t.Context(), dir, VerifyOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, ManifestName)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "the scratch folder is removed")
}

func TestDifferencesFromTheManifest(t *testing.T) {
	t.Parallel()
	content := func(cluster types.UID, newest int64, objects ...int) Content {
		c := Content{Cluster: cluster, Newest: newest, Resources: map[string]Resource{}}
		for i, n := range objects {
			c.Resources[fmt.Sprintf("r%d", i)] = Resource{Objects: n}
		}
		return c
	}
	m := &Manifest{Content: content("a", 5, 1, 2)}
	same := content("a", 5, 1, 2)
	require.Empty(t, m.Differences(&same))
	other := content("a", 6, 1, 3, 4)
	require.Equal(t, []string{"newest revision: 5 when it was saved, now 6", "r1: 2 when it was saved, now 3", "r2: 0 when it was saved, now 4"}, m.Differences(&other))
	fewer := content("a", 5, 1)
	require.Equal(t, []string{"r1: 2 when it was saved, now 0"}, m.Differences(&fewer))
}
