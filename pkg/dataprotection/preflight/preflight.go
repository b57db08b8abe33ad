// Package preflight judges what there is for an undo now: the history and how long it lasts, the
// encryption keys, the API server, and the snapshots. It reads nothing itself.
package preflight

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/dataprotection/check"
	"kubelet-guard.io/pkg/dataprotection/deletions"
	"kubelet-guard.io/pkg/dataprotection/scan"
	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

// staleSnapshot is the age at which the newest snapshot is a warning.
const staleSnapshot = 24 * time.Hour

// Facts are what was read.
type Facts struct {
	Now     time.Time
	Members []check.Member
	// History has what was deleted; nil with HistoryErr.
	History    *deletions.Log
	HistoryErr error
	// Scan has the decoded keys; with ScanErr it may be nil.
	Scan    *scan.Report
	ScanErr error
	// Encryption is the API server's configuration as it is now; nil for none.
	Encryption *snapshots.EncryptionConfig
	// APIServer is its version; empty with APIErr.
	APIServer string
	APIErr    error
	// Snapshots of SnapshotDir, the oldest first; SnapshotErr names those that cannot be read.
	SnapshotDir string
	Snapshots   []*snapshots.Saved
	SnapshotErr error
	// Cluster is the UID of the namespace kube-system; empty if it is unknown.
	Cluster types.UID
}

// Judge returns the checks.
func Judge(f *Facts) check.List {
	var list check.List
	list.AddMembers(f.Members)
	f.judgeAlarms(&list)
	f.judgeHistory(&list)
	f.judgeKeys(&list)
	if f.APIErr != nil {
		list.Add("API server", check.Problem, "restore --apply and its checks need an API server: --kubeconfig", "%v", f.APIErr)
	} else {
		list.Add("API server", check.OK, "", "version %s", f.APIServer)
	}
	f.judgeSnapshots(&list)
	return list
}

func (f *Facts) judgeAlarms(list *check.List) {
	for _, m := range f.Members {
		if len(m.Alarms) > 0 {
			list.Add("writes", check.Problem, "etcd takes no writes: for NOSPACE compact, etcdctl defrag, and etcdctl alarm disarm", "%s: %s", m.Endpoint, strings.TrimSpace(strings.Join(m.Alarms, ", ")))
		}
	}
}

func (f *Facts) judgeHistory(list *check.List) {
	if f.HistoryErr != nil {
		list.Add("history", check.Problem, "", "%v", f.HistoryErr)
		return
	}
	h := f.History
	detail := fmt.Sprintf("revisions %d to %d, %d deletions", h.Oldest, h.Newest, len(h.Items))
	result := check.OK
	if h.Since == nil {
		result, detail = check.Unknown, detail+", of unknown age: no lease of the control plane dates them"
	} else {
		detail += fmt.Sprintf(", since %s ago", f.Now.Sub(*h.Since).Round(time.Second))
	}
	unreadable := 0
	for _, item := range h.Items {
		if item.Unreadable != "" {
			unreadable++
		}
	}
	if unreadable > 0 {
		result, detail = check.Warning, detail+fmt.Sprintf(", of %d of which no version is readable", unreadable)
	}
	remedy := ""
	if h.NextCompaction != nil {
		detail += fmt.Sprintf("; the API server compacts it up to revision %d in about %s", h.NextCompactionRevision, max(0, h.NextCompaction.Sub(f.Now)).Round(time.Second))
		remedy = "after an accident, guard-etcd save keeps it; docs/data-protection.md, \"Access\", makes it longer"
	}
	list.Add("history", result, remedy, "%s", detail)
}

func (f *Facts) judgeKeys(list *check.List) {
	switch {
	case errors.Is(f.ScanErr, scan.ErrWrongKey):
		list.Add("encryption", check.Problem, "--encryption-provider-config", "%v", f.ScanErr)
		return
	case f.ScanErr != nil:
		list.Add("keys", check.Problem, "", "%v", f.ScanErr)
		return
	case f.Scan.EncryptedFailed > 0:
		list.Add("encryption", check.Problem, "a configuration with the keys of all providers that wrote them", "%d of %d encrypted objects cannot be decrypted", f.Scan.EncryptedFailed, f.Scan.Encrypted)
	case f.Scan.Encrypted == 0:
		list.Add("encryption", check.OK, "", "no object is encrypted")
	default:
		list.Add("encryption", check.OK, "", "all %d encrypted objects can be decrypted", f.Scan.Encrypted)
	}
	if n := len(f.Scan.Findings) - f.Scan.EncryptedFailed; n > 0 {
		list.Add("keys", check.Problem, "guard-etcd scan --revert", "%d of %d are damaged, as %s", n, f.Scan.Keys, f.Scan.Findings[0].Key)
	} else {
		list.Add("keys", check.OK, "", "%d decode", f.Scan.Keys-len(f.Scan.Findings))
	}
}

func (f *Facts) judgeSnapshots(list *check.List) {
	if f.SnapshotErr != nil {
		list.Add("snapshots", check.Warning, "guard-etcd verify", "%s", strings.ReplaceAll(f.SnapshotErr.Error(), "\n", "; "))
	}
	if len(f.Snapshots) == 0 {
		list.Add("snapshots", check.Warning, "guard-etcd save "+f.SnapshotDir, "%s has none", f.SnapshotDir)
		return
	}
	newest := f.Snapshots[len(f.Snapshots)-1]
	age := f.Now.Sub(newest.Saved).Round(time.Second)
	detail := fmt.Sprintf("the newest of %d is %s, %s old, of revision %d", len(f.Snapshots), newest.Path, age, newest.Newest)
	switch {
	case f.Cluster != "" && newest.Cluster != "" && newest.Cluster != f.Cluster:
		list.Add("snapshots", check.Problem, "guard-etcd save into a folder of this cluster", "%s: it is of another cluster", detail)
	case len(newest.Problems) > 0:
		list.Add("snapshots", check.Warning, "guard-etcd scan --revert, then guard-etcd save", "%s, with %d damaged keys", detail, len(newest.Problems))
	case age > staleSnapshot:
		list.Add("snapshots", check.Warning, "guard-etcd save "+f.SnapshotDir, "%s", detail)
	default:
		list.Add("snapshots", check.OK, "", "%s", detail)
	}
	if hashOf(newest.Encryption) != hashOf(f.Encryption) {
		list.Add("snapshots", check.Warning, "keep the configuration of that time, or save a snapshot", "the encryption configuration is another than when %s was saved", newest.Path)
	}
}

func hashOf(c *snapshots.EncryptionConfig) string {
	if c == nil {
		return ""
	}
	return c.SHA256
}
