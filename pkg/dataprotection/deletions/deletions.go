// Package deletions lists what was deleted from etcd since its last compaction: which objects,
// when, by whom if there is an audit log, and for how long they can be restored.
package deletions

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
)

// compactKey is the key at which the API server records its compactions, outside its prefix
// (k8s.io/apiserver/pkg/storage/etcd3/compact.go). The next one compacts to the revision at which
// the key was written.
const compactKey = "compact_rev_key"

// routine kinds are deleted all the time, by their holders and when they expire.
var routine = []string{"Event", "Lease", "Endpoints", "EndpointSlice", "PodMetrics"}

// Item is an object that was deleted.
type Item struct {
	Key        string `json:"key"`
	Kind       string `json:"kind,omitempty"`
	APIVersion string `json:"apiVersion,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name,omitempty"`
	UID        string `json:"uid,omitempty"`
	// Revision of the deletion.
	Revision int64 `json:"revision"`
	// Requested is the deletion timestamp, where a finalizer or a grace period delayed the end.
	Requested *time.Time `json:"requested,omitempty"`
	// Unreadable says why the last version cannot be read; empty when it can.
	Unreadable string `json:"unreadable,omitempty"`
	// By is the user who requested the deletion, if the audit log has it.
	By string `json:"by,omitempty"`
}

// Group has the deletions of a kind in a namespace.
type Group struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Objects   int    `json:"objects"`
	// Unreadable is how many of them have no readable version.
	Unreadable    int   `json:"unreadable,omitempty"`
	FirstRevision int64 `json:"firstRevision"`
	LastRevision  int64 `json:"lastRevision"`
	// First and Last are when, to about ten seconds; nil when the history has no clock.
	First *time.Time `json:"first,omitempty"`
	Last  *time.Time `json:"last,omitempty"`
	// Example is the name of the first.
	Example string   `json:"example"`
	By      []string `json:"by,omitempty"`
}

// Log is what was deleted.
type Log struct {
	history.Bounds
	// Since is the time of the oldest readable revision.
	Since *time.Time `json:"since,omitempty"`
	// NextCompaction is when the API server is expected to compact, to NextCompactionRevision;
	// nil where etcd compacts by itself, or for a file.
	NextCompaction         *time.Time `json:"nextCompaction,omitempty"`
	NextCompactionRevision int64      `json:"nextCompactionRevision,omitempty"`
	// Routine is how many deletions of kinds are left out that are deleted all the time.
	Routine int `json:"routine,omitempty"`
	// Gap has the revisions that were compacted while they were read; deletions in it may be
	// missing.
	Gap    *history.Bounds `json:"gap,omitempty"`
	Groups []*Group        `json:"groups"`
	Items  []*Item         `json:"items"`
}

// Options of a log.
type Options struct {
	// All includes kinds that are deleted all the time.
	All bool
	// Namespace restricts the log; empty: all.
	Namespace string
	// CompactionInterval is that of the API server; 0: it does not compact.
	CompactionInterval time.Duration
	// Audit says who requested deletions; nil: unknown.
	Audit *Audit
}

// Read lists the deletions of keys with the prefix.
func Read(ctx context.Context, r history.Reader, decoder *objects.Decoder, prefix string, o Options) (*Log, error) {
	l := &Log{Groups: []*Group{}, Items: []*Item{}}
	err := r.Deletions(ctx, prefix, func(d history.Deletion) error {
		item := newItem(ctx, decoder, d)
		switch {
		case !o.All && (slices.Contains(routine, item.Kind) || slices.ContainsFunc([]string{"events/", "leases/", "masterleases/"}, func(folder string) bool { return strings.HasPrefix(d.Key, prefix+folder) })):
			l.Routine++
		case o.Namespace != "" && item.Namespace != o.Namespace && item.Key != prefix+"namespaces/"+o.Namespace:
		default:
			if o.Audit != nil {
				item.By = o.Audit.deletedBy(decoder.ResourceOf(d.Key), item.Namespace, item.Name)
			}
			l.Items = append(l.Items, item)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.Bounds = r.Bounds()
	if live, ok := r.(*history.Live); ok && live.Gap.Newest != 0 {
		l.Gap = &live.Gap
	}
	l.group()
	return l, l.setTimes(ctx, r, decoder, prefix, o.CompactionInterval)
}

func newItem(ctx context.Context, decoder *objects.Decoder, d history.Deletion) *Item {
	item := &Item{Key: d.Key, Revision: d.Revision}
	if d.Last == nil {
		item.Unreadable = history.ErrCompacted.Error()
	} else if object, err := decoder.Decode(ctx, d.Key, d.Last.Value); err != nil {
		item.Unreadable = err.Error()
	} else {
		item.Kind, item.APIVersion, item.Namespace, item.Name, item.UID = object.Kind, object.GroupVersion().String(), object.Namespace, object.Name, string(object.UID)
		if object.Terminating != nil {
			item.Requested = &object.Terminating.Time
		}
	}
	if item.Kind == "" {
		// The key names the resource, at least.
		item.Kind = decoder.ResourceOf(d.Key).String()
	}
	return item
}

func (l *Log) group() {
	groups := map[[2]string]*Group{}
	for _, item := range l.Items {
		key := [2]string{item.Kind, item.Namespace}
		g := groups[key]
		if g == nil {
			g = &Group{Kind: item.Kind, Namespace: item.Namespace, FirstRevision: item.Revision, Example: cmp.Or(item.Name, item.Key)}
			groups[key] = g
			l.Groups = append(l.Groups, g)
		}
		g.Objects++
		g.LastRevision = item.Revision
		if item.Unreadable != "" {
			g.Unreadable++
		}
		if item.By != "" && !slices.Contains(g.By, item.By) {
			g.By = append(g.By, item.By)
		}
	}
	slices.SortStableFunc(l.Groups, func(a, b *Group) int {
		return cmp.Or(cmp.Compare(b.LastRevision, a.LastRevision), cmp.Compare(a.Kind, b.Kind))
	})
}

// setTimes dates the groups and the bounds.
func (l *Log) setTimes(ctx context.Context, r history.Reader, decoder *objects.Decoder, prefix string, interval time.Duration) error {
	c := &clock{reader: r, decoder: decoder, prefix: prefix, known: map[int64]*time.Time{}}
	var err error
	at := func(revision int64) *time.Time {
		var t *time.Time
		if err == nil {
			t, err = c.at(ctx, revision)
		}
		return t
	}
	for _, g := range l.Groups {
		g.First, g.Last = at(g.FirstRevision), at(g.LastRevision)
	}
	l.Since = at(l.Oldest)
	if err != nil || interval == 0 {
		return err
	}
	kv, err := r.Get(ctx, compactKey, l.Newest)
	if err != nil || kv == nil {
		return err
	}
	if last := at(kv.ModRevision); last != nil {
		next := last.Add(interval)
		l.NextCompaction, l.NextCompactionRevision = &next, kv.ModRevision
	}
	return err
}

// Since returns the time of the oldest readable revision, to about ten seconds; nil if no lease of
// the control plane dates it.
func Since(ctx context.Context, r history.Reader, decoder *objects.Decoder, prefix string) (*time.Time, error) {
	c := &clock{reader: r, decoder: decoder, prefix: prefix, known: map[int64]*time.Time{}}
	return c.at(ctx, r.Bounds().Oldest)
}

// clock dates revisions by the leases of the control plane, which are renewed every two to ten
// seconds: etcd itself records no time.
type clock struct {
	reader  history.Reader
	decoder *objects.Decoder
	prefix  string
	known   map[int64]*time.Time
}

// at returns the newest renewal of a lease up to a revision; nil if there is none.
func (c *clock) at(ctx context.Context, revision int64) (*time.Time, error) {
	if t, known := c.known[revision]; known {
		return t, nil
	}
	var newest *time.Time
	err := c.reader.List(ctx, c.prefix+"leases/kube-system/", revision, func(kv *mvccpb.KeyValue) error {
		object, err := c.decoder.Decode(ctx, string(kv.Key), kv.Value)
		if err != nil {
			return nil // a damaged lease only dates nothing
		}
		lease, ok := object.Typed.(*coordinationv1.Lease)
		if ok && lease.Spec.RenewTime != nil && (newest == nil || lease.Spec.RenewTime.After(*newest)) {
			newest = &lease.Spec.RenewTime.Time
		}
		return nil
	})
	if errors.Is(err, history.ErrCompacted) {
		return nil, nil
	}
	c.known[revision] = newest
	return newest, err
}

// deletedBy returns the users who requested the deletion of an object, or of its collection.
func (a *Audit) deletedBy(resource schema.GroupResource, namespace, name string) string {
	if user := a.users[target{resource, namespace, name}]; user != "" {
		return user
	}
	if user := a.users[target{resource, namespace, ""}]; user != "" {
		return user
	}
	return a.users[target{resource, "", ""}]
}
