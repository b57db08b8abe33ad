package guard

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
)

// The look-up of PodDeletion records.
//
// Records are looked up while pods are held whose object is gone, which is when many
// nodes do so and the control plane is being repaired. So a node makes one request at a
// time, at most one every lookupInterval on average however many pods it holds, and
// fewer when they find nothing:
//
//   - one list has all records that name the node as the one of their pods;
//   - a record without that name (written by hand, or before records had it) is found
//     by its own name: every singleEvery-th request is about one pod, in turn;
//   - a single held pod is always looked up by name, which finds both;
//   - where the list is refused, all requests are about single pods.

const (
	// lookupInterval is the shortest mean time between two requests, and
	// slowLookupInterval that after no pod was newly held for lookupPatience.
	lookupInterval     = 10 * time.Second
	slowLookupInterval = time.Minute
	lookupPatience     = 10 * time.Minute
	// maxLookupInterval is how far errors stretch the interval.
	maxLookupInterval = 5 * time.Minute
	// lookupTimeout bounds one request.
	lookupTimeout = 5 * time.Second
	// firstLookup is how soon after the start of a hold the first request is made, and
	// firstLookupSpread the jitter on top: many nodes lose their pods at once.
	firstLookup       = time.Second
	firstLookupSpread = 4 * time.Second
	// lookupBurst is how many requests new holds may bring forward in a row.
	lookupBurst = 2
	// singleEvery: one request in so many is about a single pod.
	singleEvery = 3
	// unlistedFor is how long after a refusal the list is not requested again.
	unlistedFor = 30 * time.Minute
	// watchedFor is how long after a read of /guard/pods its reader is assumed to wait for
	// a result.
	watchedFor = time.Minute
)

// lookups is the state of the look-up. Only its own goroutine uses it, but for wake.
type lookups struct {
	// wake has an element when a hold started or /guard/pods was read.
	wake chan struct{}
	// next is when the next request is due; zero while there is none to make.
	next time.Time
	// requested is when the last one was made; spare how many may be made early.
	requested time.Time
	spare     float64
	// failed is the wait after the last error; zero after a result.
	failed time.Duration
	// turn counts requests; node and pod are what the last ones were about.
	turn int
	node string
	pod  types.UID
	// unlistedUntil is when the list is requested again.
	unlistedUntil time.Time
	// reported has the pods whose record was reported as none, reportedUnlisted, reportedUnknown
	// and reportedFailure whether the rest was.
	reported                                           sets.Set[types.UID]
	reportedUnlisted, reportedUnknown, reportedFailure bool
}

// openPod is a held pod whose record may be found.
type openPod struct {
	uid             types.UID
	namespace, name string
	node            string
	// since is when it was last newly held.
	since time.Time
}

// openPods returns the held pods whose object is gone and for which there is no
// evidence, by UID, and when /guard/pods was last read. The deletion of a pod that has
// its object shows in the object.
func (g *Guard) openPods() ([]openPod, time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var open []openPod
	for _, r := range g.records {
		if len(r.holds) == 0 || r.present || r.evidence != nil {
			continue
		}
		o := openPod{uid: r.uid, namespace: r.namespace, name: r.name, node: cmp.Or(r.boundToLocked(), string(g.nodeName))}
		for _, h := range r.holds {
			if h.since.After(o.since) {
				o.since = h.since
			}
		}
		open = append(open, o)
	}
	slices.SortFunc(open, func(a, b openPod) int { return cmp.Compare(a.uid, b.uid) })
	return open, g.watchedAt
}

// boundToLocked is the name of the node that the pod was bound to, empty when the pod is
// known from the runtime only. It differs from the kubelet's own name when that was
// changed.
func (r *podRecord) boundToLocked() string {
	if r.pod == nil {
		return ""
	}
	return r.pod.Spec.NodeName
}

// wakeLookups has the look-up plan its next request again. It never waits.
func (g *Guard) wakeLookups() {
	select {
	case g.lookups.wake <- struct{}{}:
	default:
	}
}

// watched notes a read of /guard/pods: its reader may be waiting for a release.
func (g *Guard) watched() {
	g.mu.Lock()
	g.watchedAt = g.clock.Now()
	g.mu.Unlock()
	g.wakeLookups()
}

// runLookups looks up records until the context ends, and sends the pods that have
// evidence now. It has a goroutine of its own: a server that does not respond must delay
// nothing else. It costs nothing while no pod is held.
func (g *Guard) runLookups(ctx context.Context, released chan<- types.UID) {
	if g.deletions == nil {
		return
	}
	for ctx.Err() == nil {
		var again <-chan time.Time
		if wait, some := g.planLookup(); some {
			again = g.clock.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-g.lookups.wake:
			continue
		case <-again:
		}
		for _, uid := range g.lookUp(ctx) {
			select {
			case released <- uid:
			case <-ctx.Done():
			}
		}
	}
}

// planLookup returns the time until the next request, if there is one to make.
func (g *Guard) planLookup() (time.Duration, bool) {
	l := &g.lookups
	open, watchedAt := g.openPods()
	if len(open) == 0 {
		l.next, l.reported = time.Time{}, nil
		return 0, false
	}
	now := g.clock.Now()
	interval, newest := slowLookupInterval, newestHold(open)
	if now.Sub(newest) < lookupPatience || (!watchedAt.IsZero() && now.Sub(watchedAt) < watchedFor) {
		interval = lookupInterval
	}
	// A reader of /guard/pods comes through an API server that works.
	if l.failed > 0 && !watchedAt.After(l.requested) {
		interval = l.failed
	}
	due := l.requested.Add(interval)
	switch {
	case l.failed == 0 && newest.After(l.requested):
		// A pod is held that no request was about.
		due = newest.Add(firstLookup)
		if l.spare+l.earned(now) < 1 {
			due = later(due, l.requested.Add(lookupInterval))
		}
		due = spread(due, firstLookupSpread, l.next)
	default:
		due = spread(due, interval/5, l.next)
	}
	l.next = due
	return max(0, due.Sub(now)), true
}

// spread adds jitter to a time, once: planned is what an earlier call returned for it.
func spread(due time.Time, by time.Duration, planned time.Time) time.Time {
	if since := planned.Sub(due); since >= 0 && since <= by {
		return planned
	}
	return due.Add(wait.Jitter(by, 1) - by)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// earned is what the time since the last request adds to spare.
func (l *lookups) earned(now time.Time) float64 {
	if l.requested.IsZero() {
		return lookupBurst
	}
	return float64(now.Sub(l.requested)) / float64(lookupInterval)
}

func newestHold(open []openPod) time.Time {
	return slices.MaxFunc(open, func(a, b openPod) int { return a.since.Compare(b.since) }).since
}

// lookUp makes the request whose turn it is. It returns the pods that have evidence now.
func (g *Guard) lookUp(ctx context.Context) []types.UID {
	open, _ := g.openPods()
	if len(open) == 0 {
		return nil
	}
	l := &g.lookups
	now := g.clock.Now()
	l.spare = max(0, min(lookupBurst, l.spare+l.earned(now))-1)
	l.requested, l.turn = now, l.turn+1

	var records []DeletionRecord
	var err error
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if len(open) == 1 || l.turn%singleEvery == 0 || now.Before(l.unlistedUntil) {
		l.pod = after(open, l.pod, func(o openPod) types.UID { return o.uid })
		var record *DeletionRecord
		if record, err = g.deletions.Of(ctx, l.pod); record != nil {
			// takeRecord reports a record of another pod.
			requested := open[slices.IndexFunc(open, func(o openPod) bool { return o.uid == l.pod })]
			return g.takeRecord(requested, record, nil)
		}
	} else {
		l.node = after(open, l.node, func(o openPod) string { return o.node })
		records, err = g.deletions.OfNode(ctx, l.node)
	}
	if err != nil {
		g.lookUpFailed(ctx, err)
		return nil
	}
	l.failed, l.reportedFailure = 0, false
	var released []types.UID
	for _, o := range open {
		if i := slices.IndexFunc(records, func(d DeletionRecord) bool { return d.Metadata.Name == string(o.uid) }); i >= 0 {
			released = g.takeRecord(o, &records[i], released)
		}
	}
	return released
}

// takeRecord adds the pod to the released ones when the record is proof.
func (g *Guard) takeRecord(o openPod, record *DeletionRecord, released []types.UID) []types.UID {
	l := &g.lookups
	l.failed, l.reportedFailure = 0, false
	if err := record.check(o.namespace, o.name, o.uid); err != nil {
		g.metrics.errors.WithLabelValues(opDeletion).Inc()
		if !l.reported.Has(o.uid) {
			klog.ErrorS(err, "The PodDeletion record of a held pod does not prove its deletion; the pod stays held", "pod", klog.KRef(o.namespace, o.name), "podUID", o.uid)
			if l.reported == nil {
				l.reported = sets.New[types.UID]()
			}
			l.reported.Insert(o.uid)
		}
		return released
	}
	if g.release(o.uid, PodDeletionRecord) {
		released = append(released, o.uid)
	}
	return released
}

// lookUpFailed handles a request without a usable response.
func (g *Guard) lookUpFailed(ctx context.Context, err error) {
	l := &g.lookups
	switch {
	case errors.Is(err, ErrDeletionsNotListed):
		// The next request is about a single pod, at the usual time.
		l.unlistedUntil = g.clock.Now().Add(unlistedFor)
		if !l.reportedUnlisted {
			klog.InfoS("This node cannot list the PodDeletion records of its pods; they are looked up one by one, which takes longer. Apply the project's manifests to change that", "err", err)
			l.reportedUnlisted = true
		}
		return
	case errors.Is(err, ErrDeletionsUnknown), apierrors.IsForbidden(err):
		if !l.reportedUnknown {
			klog.InfoS("This node cannot read PodDeletion records: held pods can be released on the node only. Apply the project's manifests to change that", "err", err)
			l.reportedUnknown = true
		}
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return
	default:
		g.metrics.errors.WithLabelValues(opDeletion).Inc()
		if level := klog.Level(2); !l.reportedFailure || klog.V(level).Enabled() {
			klog.InfoS("Cannot look up whether the deletion of held pods is recorded", "err", err)
			l.reportedFailure = true
		}
	}
	l.failed = min(max(2*l.failed, lookupInterval), maxLookupInterval)
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		l.failed = min(max(l.failed, time.Duration(seconds)*time.Second), maxLookupInterval)
	}
}

// after returns the smallest key that is greater than the last one, or the smallest.
func after[K cmp.Ordered](open []openPod, last K, key func(openPod) K) K {
	smallest := key(slices.MinFunc(open, func(a, b openPod) int { return cmp.Compare(key(a), key(b)) }))
	next, found := smallest, false
	for _, o := range open {
		if k := key(o); k > last && (!found || k < next) {
			next, found = k, true
		}
	}
	return next
}
