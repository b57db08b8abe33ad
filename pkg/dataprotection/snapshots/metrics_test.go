package snapshots

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMetricsOfAFolder(t *testing.T) {
	t.Parallel()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "guard-etcd.prom")
	require.NoError(t, WriteMetrics(file, filepath.Join(dir, "absent")))
	requireMetrics(t, file, `
		guard_etcd_snapshots 0
		guard_etcd_unreadable_snapshots 0
		guard_etcd_snapshot_timestamp_seconds 0`)

	saved(t, dir, 0, map[string]int{"widgets.example.com": 100, "roles.rbac.authorization.k8s.io": 5, "pods": 500})
	newest := time.Date(2026, 1, 2, 1, 0, 0, 0, time.UTC)
	since := newest.Add(-7 * time.Minute)
	write(t, dir, &Manifest{
		Saved: newest, Size: 4096, HistorySince: &since,
		Content: Content{
			// Pods come and go; of five roles one would be 20 %, too.
			Resources: map[string]Resource{"widgets.example.com": {Objects: 79}, "roles.rbac.authorization.k8s.io": {Objects: 1}, "pods": {Objects: 1}},
			Problems:  []Problem{{Key: "/registry/configmaps/a/b", Problem: "unexpected EOF"}},
		},
	})
	damaged := filepath.Join(dir, time.Date(2026, 1, 2, 2, 0, 0, 0, time.UTC).Format(nameFormat))
	require.NoError(t, os.Mkdir(damaged, 0o700))
	require.NoError(t, WriteMetrics(file, dir))
	requireMetrics(t, file, `
		guard_etcd_snapshots 2
		guard_etcd_unreadable_snapshots 1
		guard_etcd_snapshot_timestamp_seconds 1.7673156e+09
		guard_etcd_snapshot_size_bytes 4096
		guard_etcd_snapshot_damaged_keys 1
		guard_etcd_snapshot_shrunk_resources 1
		guard_etcd_snapshot_history_seconds 420`)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode().Perm(), "the node exporter is not root")
	entries, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file")

	require.Error(t, WriteMetrics(filepath.Join(dir, "absent", "guard-etcd.prom"), dir))
}

// requireMetrics compares the series of a file.
func requireMetrics(t *testing.T, file, want string) {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	var series []string
	for line := range strings.Lines(string(content)) {
		if !strings.HasPrefix(line, "#") {
			series = append(series, strings.TrimSpace(line))
		}
	}
	var wanted []string
	for line := range strings.Lines(strings.TrimSpace(want)) {
		wanted = append(wanted, strings.TrimSpace(line))
	}
	require.ElementsMatch(t, wanted, series)
}

func TestAShrinkIsReportedWithItsSnapshot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var names []string
	for hour, n := range []int{100, 100, 30, 30} {
		names = append(names, saved(t, dir, hour, map[string]int{"widgets.example.com": n, "roles.rbac.authorization.k8s.io": n / 10}))
	}
	list, err := List(dir)
	require.NoError(t, err)
	shrunk := Shrunk(list)
	require.Len(t, shrunk, 1)
	shrunk[0].before = nil
	require.Equal(t, Shrink{Resource: "widgets.example.com", Before: 100, Now: 30, Path: filepath.Join(dir, names[1])}, shrunk[0])
	require.Empty(t, Shrunk(nil))
	// Removing the older snapshots says that it was meant.
	for _, name := range names[:2] {
		require.NoError(t, os.RemoveAll(filepath.Join(dir, name)))
	}
	list, err = List(dir)
	require.NoError(t, err)
	require.Empty(t, Shrunk(list))
}
