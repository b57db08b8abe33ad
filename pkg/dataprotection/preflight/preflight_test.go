package preflight

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/dataprotection/check"
	"kubelet-guard.io/pkg/dataprotection/check/checktest"
	"kubelet-guard.io/pkg/dataprotection/deletions"
	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/scan"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

var now = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

// healthy is an installation without a warning.
func healthy() *Facts {
	return &Facts{
		Now: now, Members: []check.Member{{Endpoint: "https://etcd", Version: "3.6.16"}}, APIServer: "v1.37.2", Cluster: "cluster",
		History: &deletions.Log{Bounds: history.Bounds{Oldest: 5, Newest: 50}, Since: ptr.To(now.Add(-7 * time.Minute)), NextCompaction: ptr.To(now.Add(3 * time.Minute)), NextCompactionRevision: 30},
		Scan:    &scan.Report{Keys: 10, Encrypted: 2}, Encryption: &snapshots.EncryptionConfig{SHA256: "a"}, SnapshotDir: "/backups",
		Snapshots: []*snapshots.Saved{{Path: "/backups/1", Manifest: &snapshots.Manifest{Saved: now.Add(-time.Hour), Encryption: &snapshots.EncryptionConfig{SHA256: "a"}, Content: snapshots.Content{Cluster: "cluster", Newest: 40}}}},
	}
}

func TestAHealthyInstallation(t *testing.T) {
	t.Parallel()
	list := Judge(healthy())
	names := []string{}
	for _, c := range list {
		require.Equal(t, check.OK, c.Result, "%+v", c)
		names = append(names, c.Name)
	}
	require.Equal(t, []string{"etcd", "history", "encryption", "keys", "API server", "snapshots"}, names)
	require.Equal(t, "revisions 5 to 50, 0 deletions, since 7m0s ago; the API server compacts it up to revision 30 in about 3m0s", list[1].Detail)
	require.Equal(t, "the newest of 1 is /backups/1, 1h0m0s old, of revision 40", list[5].Detail)
}

func TestWhatStandsInTheWayOfAnUndo(t *testing.T) {
	t.Parallel()
	failure := errors.New("no such thing")
	for _, test := range []struct {
		name   string
		change func(*Facts)
		check  string
		result check.Result
		words  string
	}{
		{"old etcd", func(f *Facts) { f.Members[0].Version = "3.5.12" }, "etcd", check.Problem, "miss deletions"},
		{"no space", func(f *Facts) { f.Members[0].Alarms = []string{"memberID:1 alarm:NOSPACE "} }, "writes", check.Problem, "NOSPACE"},
		{"no history", func(f *Facts) { f.History, f.HistoryErr = nil, failure }, "history", check.Problem, failure.Error()},
		{"history without a clock", func(f *Facts) { f.History.Since = nil }, "history", check.Unknown, "of unknown age"},
		{"unreadable deletions", func(f *Facts) { f.History.Items = []*deletions.Item{{}, {Unreadable: "x"}} }, "history", check.Warning, "2 deletions, since 7m0s ago, of 1 of which"},
		{"wrong key", func(f *Facts) { f.ScanErr = scan.ErrWrongKey }, "encryption", check.Problem, "no encrypted value is readable"},
		{"one key missing", func(f *Facts) { f.Scan.EncryptedFailed, f.Scan.Findings = 1, []*scan.Finding{{Key: "k"}} }, "encryption", check.Problem, "1 of 2"},
		{"damage", func(f *Facts) { f.Scan.Findings = []*scan.Finding{{Key: "k"}} }, "keys", check.Problem, "1 of 10 are damaged, as k"},
		{"keys that cannot be read", func(f *Facts) { f.Scan, f.ScanErr = nil, failure }, "keys", check.Problem, failure.Error()},
		{"no API server", func(f *Facts) { f.APIServer, f.APIErr = "", failure }, "API server", check.Problem, failure.Error()},
		{"no snapshot", func(f *Facts) { f.Snapshots = nil }, "snapshots", check.Warning, "/backups has none"},
		{"an old snapshot", func(f *Facts) { f.Snapshots[0].Saved = now.Add(-25 * time.Hour) }, "snapshots", check.Warning, "25h0m0s old"},
		{"a snapshot of another cluster", func(f *Facts) { f.Cluster = "other" }, "snapshots", check.Problem, "another cluster"},
		{"a snapshot with damage", func(f *Facts) { f.Snapshots[0].Problems = []snapshots.Problem{{Key: "k"}} }, "snapshots", check.Warning, "1 damaged keys"},
		{"another encryption configuration", func(f *Facts) { f.Encryption.SHA256 = "b" }, "snapshots", check.Warning, "the encryption configuration is another"},
		{"a damaged manifest", func(f *Facts) { f.SnapshotErr = failure }, "snapshots", check.Warning, failure.Error()},
	} {
		facts := healthy()
		test.change(facts)
		checktest.RequireOnly(t, Judge(facts), test.check, test.result, test.words, test.name)
	}
}
