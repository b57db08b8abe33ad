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
// Records are looked for while pods are held whose object is gone, which is when many
// nodes do so and the control plane is being repaired. So a node asks one question at
// a time, at most one every lookupInterval on average however many pods it holds, and
// fewer when nothing comes of it:
//
//   - one list has all records that name the node as the one of their pods;
//   - a record without that name (written by hand, or before records had it) is found
//     by its own name: every singleEvery-th question is about one pod, in turn;
//   - a single held pod is always looked up by name, which finds both;
//   - where the list is refused, all questions are about single pods.

const (
	// lookupInterval is the shortest mean time between two questions, and
	// slowLookupInterval that after no pod was newly held for lookupPatience.
	lookupInterval     = 10 * time.Second
	slowLookupInterval = time.Minute
	lookupPatience     = 10 * time.Minute
	// maxLookupInterval is how far errors stretch the interval.
	maxLookupInterval = 5 * time.Minute
	// lookupTimeout bounds one question.
	lookupTimeout = 5 * time.Second
	// firstLookup is how soon after a hold was made the first question is asked, and
	// firstLookupSpread what chance adds: many nodes lose their pods at once.
	firstLookup       = time.Second
	firstLookupSpread = 4 * time.Second
	// lookupBurst is how many questions new holds may bring forward in a row.
	lookupBurst = 2
	// singleEvery: every so manieth question is about a single pod.
	singleEvery = 3
	// unlistedFor is how long the list is not tried again after it was refused.
	unlistedFor = 30 * time.Minute
	// watchedFor is how long people are thought to wait for an answer after they
	// have read what the guard knows.
	watchedFor = time.Minute
)

// lookups is the state of the look-up. Only its own goroutine uses it, but for wake.
type lookups struct {
	// wake has an element when a hold was made or somebody watches.
	wake chan struct{}
	// next is when the next question is asked; zero while there is none to ask.
	next time.Time
	// asked is when the last one was; spare how many may be asked early.
	asked time.Time
	spare float64
	// failed is the wait after the last error; zero after an answer.
	failed time.Duration
	// turn counts questions; node and pod are whom the last ones were about.
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
// evidence, by UID, and when somebody last asked what the guard knows. The deletion
// of a pod that has its object shows in the object.
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

// boundToLocked is the name of the node that the pod was bound to, empty when only
// the runtime tells of the pod. It differs from the kubelet's own name when that was
// changed.
func (r *podRecord) boundToLocked() string {
	if r.pod == nil {
		return ""
	}
	return r.pod.Spec.NodeName
}

// wakeLookups has the look-up think again. It never waits.
func (g *Guard) wakeLookups() {
	select {
	case g.lookups.wake <- struct{}{}:
	default:
	}
}

// watched takes note of somebody who reads what the guard knows, and who perhaps
// waits for a record to be taken.
func (g *Guard) watched() {
	g.mu.Lock()
	g.watchedAt = g.clock.Now()
	g.mu.Unlock()
	g.wakeLookups()
}

// runLookups looks for records until the context ends, and sends the pods that have
// evidence now. It has a goroutine of its own: a server that does not answer must
// keep nothing else waiting. It costs nothing while there is no pod to ask about.
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

// planLookup returns how long it is until the next question, if there is one to ask.
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
	if l.failed > 0 && !watchedAt.After(l.asked) {
		interval = l.failed
	}
	due := l.asked.Add(interval)
	switch {
	case l.failed == 0 && newest.After(l.asked):
		// A pod is held that no question was about.
		due = newest.Add(firstLookup)
		if l.spare+l.earned(now) < 1 {
			due = later(due, l.asked.Add(lookupInterval))
		}
		due = spread(due, firstLookupSpread, l.next)
	default:
		due = spread(due, interval/5, l.next)
	}
	l.next = due
	return max(0, due.Sub(now)), true
}

// spread adds chance to a time, once: planned is what an earlier call returned for it.
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

// earned is what the time since the last question adds to spare.
func (l *lookups) earned(now time.Time) float64 {
	if l.asked.IsZero() {
		return lookupBurst
	}
	return float64(now.Sub(l.asked)) / float64(lookupInterval)
}

func newestHold(open []openPod) time.Time {
	return slices.MaxFunc(open, func(a, b openPod) int { return a.since.Compare(b.since) }).since
}

// lookUp asks the question whose turn it is. It returns the pods that have evidence
// now.
func (g *Guard) lookUp(ctx context.Context) []types.UID {
	open, _ := g.openPods()
	if len(open) == 0 {
		return nil
	}
	l := &g.lookups
	now := g.clock.Now()
	l.spare = max(0, min(lookupBurst, l.spare+l.earned(now))-1)
	l.asked, l.turn = now, l.turn+1

	var records []DeletionRecord
	var err error
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if len(open) == 1 || l.turn%singleEvery == 0 || now.Before(l.unlistedUntil) {
		l.pod = after(open, l.pod, func(o openPod) types.UID { return o.uid })
		var record *DeletionRecord
		if record, err = g.deletions.Of(ctx, l.pod); record != nil {
			// takeRecord reports an answer about another pod.
			asked := open[slices.IndexFunc(open, func(o openPod) bool { return o.uid == l.pod })]
			return g.takeRecord(asked, record, nil)
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
			klog.ErrorS(err, "What the API server has as the record of a held pod's deletion is no proof of it; the pod stays held", "pod", klog.KRef(o.namespace, o.name), "podUID", o.uid)
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

// lookUpFailed takes note of a question without a usable answer.
func (g *Guard) lookUpFailed(ctx context.Context, err error) {
	l := &g.lookups
	switch {
	case errors.Is(err, ErrDeletionsNotListed):
		// The next question is about a single pod, at the usual time.
		l.unlistedUntil = g.clock.Now().Add(unlistedFor)
		if !l.reportedUnlisted {
			klog.InfoS("This node cannot list the PodDeletion records of its pods; they are looked for one by one, which takes longer. Apply the project's manifests to change that", "err", err)
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
