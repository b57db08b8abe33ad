// Package scan finds keys of etcd that the API server cannot read, and replaces each by its last
// version that it can.
//
// One damaged key makes every consistent list of its kind fail, and its DELETE as well, so that
// the API offers no way out.
package scan

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/dataprotection/restore"
)

// Finding is a damaged key.
type Finding struct {
	Key string `json:"key"`
	// Problem says what is wrong with the value.
	Problem string `json:"problem"`
	// Revision of the damaged version.
	Revision int64 `json:"revision"`
	// GoodRevision is that of the last version that is readable; 0 for none.
	GoodRevision int64 `json:"goodRevision,omitempty"`
	// Object is what that version holds.
	Object string `json:"object,omitempty"`
	// NoGood says why there is none.
	NoGood string `json:"noGood,omitempty"`

	// damaged is the version that does not decode, good the last one that does, with its object.
	damaged, good *mvccpb.KeyValue
	object        *objects.Object
}

// Report is the result of a scan.
type Report struct {
	history.Bounds
	// Keys is how many were read, Bytes their values.
	Keys  int   `json:"keys"`
	Bytes int64 `json:"bytes"`
	// Findings are sorted by key.
	Findings []*Finding `json:"findings"`
	// Encrypted keys, and how many of them are not readable.
	Encrypted       int `json:"encrypted"`
	EncryptedFailed int `json:"encryptedFailed,omitempty"`
}

// ErrWrongKey says that no encrypted value is readable: the encryption configuration is not that
// of the API server, and nothing is known about damage.
var ErrWrongKey = errors.New("no encrypted value is readable, so the encryption configuration is not the one that they were written with (--encryption-provider-config)")

// Run decodes every key with the prefix at the newest revision, and looks for the last readable
// version of each that is not readable: in the history, then in fallback, a snapshot, which may
// be nil. progress is called with the number of keys read so far.
func Run(ctx context.Context, r history.Reader, fallback history.Reader, decoder *objects.Decoder, prefix string, progress func(int)) (*Report, error) {
	report := &Report{Bounds: r.Bounds(), Findings: []*Finding{}}
	err := r.List(ctx, prefix, report.Newest, func(kv *mvccpb.KeyValue) error {
		report.Keys++
		report.Bytes += int64(len(kv.Value))
		problem := check(ctx, decoder, kv)
		if objects.EncryptionKey(kv.Value) != "" {
			report.Encrypted++
			if errors.Is(problem, objects.ErrNoKey) {
				report.EncryptedFailed++
			}
		}
		if problem != nil {
			report.Findings = append(report.Findings, &Finding{Key: string(kv.Key), Problem: problem.Error(), Revision: kv.ModRevision, damaged: kv})
		}
		progress(report.Keys)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if report.Encrypted > 1 && report.EncryptedFailed == report.Encrypted {
		return report, ErrWrongKey
	}
	for _, finding := range report.Findings {
		if err := finding.findGood(ctx, r, fallback, decoder); err != nil {
			return nil, err
		}
	}
	return report, nil
}

func check(ctx context.Context, decoder *objects.Decoder, kv *mvccpb.KeyValue) error {
	object, err := decoder.Decode(ctx, string(kv.Key), kv.Value)
	if err != nil {
		return err
	}
	return object.KeyError()
}

// findGood looks for the last readable version. One that is terminating counts: it is what the
// key held.
func (f *Finding) findGood(ctx context.Context, r, fallback history.Reader, decoder *objects.Decoder) error {
	readable := func(kv *mvccpb.KeyValue) bool { return check(ctx, decoder, kv) == nil }
	good, _, err := history.LastVersion(ctx, r, f.damaged, readable)
	switch {
	case errors.Is(err, history.ErrCompacted):
		f.NoGood = "its readable versions are no longer in the history"
	case err != nil:
		return err
	case good == nil:
		f.NoGood = "no version in the history is readable"
	}
	if good == nil && fallback != nil {
		last, err := fallback.Get(ctx, f.Key, fallback.Bounds().Newest)
		if err == nil {
			good, _, err = history.LastVersion(ctx, fallback, last, readable)
		}
		if err != nil && !errors.Is(err, history.ErrCompacted) {
			return err
		}
		if good == nil {
			f.NoGood += ", nor is one in the snapshot"
		}
	}
	if good == nil {
		return nil
	}
	object, err := decoder.Decode(ctx, f.Key, good.Value)
	if err != nil {
		return err
	}
	f.good, f.object, f.GoodRevision, f.Object, f.NoGood = good, object, good.ModRevision, object.String(), ""
	return nil
}

// planName is that of the plan in a journal.
const planName = "scan --revert"

// Plan writes the last readable version of each finding that has one, unless the key changed since
// the scan. source is the snapshot that was looked in as well; empty for none.
func (r *Report) Plan(source string) *restore.Plan {
	var repairs []restore.Repair
	for _, finding := range r.Findings {
		if finding.good != nil {
			repairs = append(repairs, restore.Repair{Object: finding.object, Good: finding.good, Damaged: finding.damaged})
		}
	}
	return restore.NewPlanOfRepairs(planName, source, r.Bounds, repairs)
}
