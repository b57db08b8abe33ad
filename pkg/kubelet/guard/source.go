package guard

import (
	"context"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
)

// WatchSource returns lw, with every object that it lists or watches passed to the guard
// first. The last object of a DELETED event is in no store: this is the only place where
// its deletionTimestamp can be seen. Wrapping the store instead would miss the deletions
// of a streamed initial list.
func (g *Guard) WatchSource(lw cache.ListerWatcher) cache.ListerWatcher {
	if g.config.Mode == Off {
		return lw
	}
	return &observedListerWatcher{guard: g, original: lw, lw: cache.ToListerWatcherWithContext(lw)}
}

// observedListerWatcher forwards the optional interfaces of client-go's
// ListWatch, or the reflector would fall back to a plain list.
type observedListerWatcher struct {
	guard    *Guard
	original cache.ListerWatcher
	lw       cache.ListerWatcherWithContext

	mu sync.Mutex
	// seen has the protected pods that the server has shown since its storage was rolled
	// back; nil without a rollback since the reflector's last list. See
	// resourceversion.go.
	seen map[cache.ObjectName]*v1.Pod
	// floor is the newest version that the kubelet had seen before the rollback; empty
	// like seen.
	floor string
	// reported is when the newest event about a rollback was made.
	reported time.Time
}

func (o *observedListerWatcher) List(options metav1.ListOptions) (runtime.Object, error) {
	return o.ListWithContext(context.Background(), options)
}

func (o *observedListerWatcher) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	list, err := o.lw.ListWithContext(ctx, options)
	if pods, ok := list.(*v1.PodList); ok && err == nil {
		o.relisted()
		for i := range pods.Items {
			o.guard.observe(&pods.Items[i])
		}
	}
	return list, err
}

func (o *observedListerWatcher) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return o.WatchWithContext(context.Background(), options)
}

func (o *observedListerWatcher) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	initial := options.ResourceVersion == "" || options.ResourceVersion == "0" || options.SendInitialEvents != nil
	if !initial && o.guard.config.Mode == Enforce {
		return o.watchFrom(ctx, options)
	}
	if options.SendInitialEvents != nil {
		o.relisted()
	}
	w, err := o.lw.WatchWithContext(ctx, options)
	if err != nil {
		return w, err
	}
	return watch.Filter(w, func(event watch.Event) (watch.Event, bool) { o.observe(event); return event, true }), nil
}

// IsWatchListSemanticsUnSupported reports to client-go whether the initial list can be
// streamed.
func (o *observedListerWatcher) IsWatchListSemanticsUnSupported() bool {
	return watchlist.DoesClientNotSupportWatchListSemantics(o.original)
}

// observe records a deletionTimestamp. It counts for a pod that has just lost its label,
// too: until the message without the label is merged, the pod is protected.
func (g *Guard) observe(pod *v1.Pod) {
	if pod.DeletionTimestamp == nil {
		return
	}
	g.mu.Lock()
	_, known := g.records[pod.UID]
	g.mu.Unlock()
	if known || g.protectsObject(pod) {
		g.noteDeletion(pod)
	}
}

// ObserveSource receives every message of a config source, that is the full set of its
// pods, and returns the set that the kubelet is to work with. It ignores all sources but
// the API. To its first message it adds the saved pods that the message does not have
// and that are alive; from then on HoldVanished keeps them.
//
// A protected pod whose object makes a claim that would stop its containers is passed on
// without the claim, in a copy: that it has ended, that all of its containers are being
// restarted, or that it has an older image (older.go). The whole kubelet trusts these
// claims (admission, pod workers, status, CPU and device managers), so they are removed
// where they come in. The kubelet recomputes the status, finds that the object differs,
// and corrects the object.
//
// It is called with locks of the kubelet's podStorage held. No disk is touched and no
// API request is made; the runtime is queried about claims only.
func (g *Guard) ObserveSource(source string, pods []*v1.Pod) []*v1.Pod {
	if source != apiSource || g.config.Mode == Off {
		return pods
	}
	var after effects
	var claims []claim
	corrected := &correction{pods: pods}
	g.mu.Lock()
	first := g.pass == 0
	g.pass++
	for i, pod := range pods {
		if !g.protectsLocked(pod) {
			after = append(after, g.unprotectLocked(pod)...)
			continue
		}
		r := g.recordLocked(pod)
		if saved, ok := g.loaded[pod.UID]; ok {
			r.adopt(saved)
			delete(g.loaded, pod.UID)
		}
		r.earlier = r.earlier || first
		shown, change := g.newerObjectLocked(r, pod)
		corrected.set(i, shown)
		after = append(after, g.presentLocked(r, shown)...)
		switch {
		case change != "":
			claims = append(claims, claim{i, r, ObjectRolledBack, change})
		case r.older == nil:
			after = append(after, g.releaseLocked(r, ObjectRolledBack, "its object was changed in the API")...)
			g.saveSoonLocked(r, pod)
		}
		claims = append(claims, g.claimsLocked(i, r, shown, &after)...)
	}
	for _, r := range g.records {
		r.present = r.pass == g.pass && r.pass != 0
		if r.present {
			r.goneSince = time.Time{}
			r.lost = false
		}
	}
	g.countVanishedLocked()
	g.mu.Unlock()
	g.apply(after)
	var restored []*v1.Pod
	if first {
		restored = g.restore()
	}
	for _, c := range claims {
		g.judge(c, corrected, pods)
	}
	if len(restored) > 0 {
		return append(slices.Clone(corrected.pods), restored...)
	}
	return corrected.pods
}

// protectsLocked is protectsObject for an object of the API source. One from before
// the label is judged by the newer object that it stands for.
func (g *Guard) protectsLocked(pod *v1.Pod) bool {
	if g.protectsObject(pod) {
		return true
	}
	saved := g.loaded[pod.UID].Pod
	if r := g.records[pod.UID]; r != nil {
		if r.older != nil && pod.ResourceVersion != r.older.ResourceVersion && !sameDeclaration(pod, r.older) {
			return false
		}
		saved = r.saved
		if r.older != nil {
			return true
		}
	}
	return g.config.Mode == Enforce && saved != nil && g.protectsObject(saved) && isOlder(pod.ResourceVersion, saved.ResourceVersion)
}

// unprotectLocked records a pod that is not, or no longer, labelled.
func (g *Guard) unprotectLocked(pod *v1.Pod) (after effects) {
	if r := g.records[pod.UID]; r != nil {
		after = append(after, g.releaseAllLocked(r, "the pod is no longer labelled for protection")...)
		delete(g.records, pod.UID)
		after = append(after, effect{kind: podForgotten, record: r})
	}
	// It lost the label while no kubelet ran, or its file could not be removed.
	if _, saved := g.loaded[pod.UID]; saved {
		delete(g.loaded, pod.UID)
		after = append(after, effect{kind: podForgotten, record: newRecord(pod.UID, pod.Namespace, pod.Name)})
	}
	g.unprotected[pod.UID] = g.clock.Now()
	return after
}

// presentLocked records a protected pod that the message has.
func (g *Guard) presentLocked(r *podRecord, pod *v1.Pod) (after effects) {
	// It vanished while nothing of it ran and was released. The kubelet starts it again
	// now. An allowed cause may still be stopping it.
	if !r.present && !g.allowedCauses[r.exemption.end] {
		r.exemption.revokeEnd(PodVanished, OrphanedRuntimePod)
	}
	r.pod, r.pass, r.present = pod, g.pass, true
	after = append(after, g.releaseLocked(r, PodVanished, "its object is in the API again")...)
	return append(after, g.releaseLocked(r, OrphanedRuntimePod, "its object is in the API again")...)
}

// claim is what an object claims about a pod that may be false.
type claim struct {
	// pod is the index in the message.
	pod    int
	record *podRecord
	cause  Cause
	detail string
}

// claimsLocked returns the claims in the status of an object.
func (g *Guard) claimsLocked(i int, r *podRecord, pod *v1.Pod, after *effects) (claims []claim) {
	open := r.exemption.end == "" && r.evidence == nil && pod.DeletionTimestamp == nil
	switch pod.Status.Phase {
	case v1.PodFailed, v1.PodSucceeded:
		if open {
			claims = append(claims, claim{i, r, TerminalPhaseReported, "the API object says " + string(pod.Status.Phase)})
		}
	default:
		*after = append(*after, g.releaseLocked(r, TerminalPhaseReported, "the phase in the API is no longer terminal")...)
		// A kubelet that had acted on the claim could not have reverted it.
		r.exemption.revokeEnd(TerminalPhaseReported)
	}
	if open && slices.ContainsFunc(pod.Status.Conditions, restartsAll) {
		claims = append(claims, claim{i, r, RestartReported, ""})
	}
	return claims
}

func restartsAll(c v1.PodCondition) bool {
	return c.Type == v1.AllContainersRestarting && c.Status == v1.ConditionTrue
}

// correction is a message with the pods that the guard has corrected. The slice and the
// objects of the message are not changed: they belong to the kubelet.
type correction struct {
	pods   []*v1.Pod
	copied bool
}

func (c *correction) set(i int, pod *v1.Pod) {
	if c.pods[i] == pod {
		return
	}
	if !c.copied {
		c.pods, c.copied = slices.Clone(c.pods), true
	}
	c.pods[i] = pod
}

// judge removes a claim that is false.
func (g *Guard) judge(c claim, corrected *correction, message []*v1.Pod) {
	g.mu.Lock()
	held := c.record.holds[c.cause] != nil && c.cause.lasting()
	g.mu.Unlock()
	if !held {
		g.awaitRuntime()
	}
	pod := corrected.pods[c.pod]
	switch c.cause {
	case ObjectRolledBack:
		// What runs continues by the newer object, unless nothing runs.
		if !g.refuse(c.record, c.cause, c.detail, nil) {
			corrected.set(c.pod, message[c.pod])
			g.mu.Lock()
			c.record.pod, c.record.older = message[c.pod], nil
			g.saveSoonLocked(c.record, message[c.pod])
			g.mu.Unlock()
		}
	case RestartReported:
		if g.refuseRestartOfAll(c.record, pod) {
			pod = pod.DeepCopy()
			pod.Status.Conditions = slices.DeleteFunc(pod.Status.Conditions, restartsAll)
			corrected.set(c.pod, pod)
		}
	case TerminalPhaseReported:
		if g.refuse(c.record, c.cause, c.detail, nil) {
			pod = pod.DeepCopy()
			pod.Status.Phase, pod.Status.Reason, pod.Status.Message = "", "", ""
			corrected.set(c.pod, pod)
		}
	}
}

// HoldVanished reports whether the kubelet is to keep a pod that the message just passed
// to ObserveSource no longer has.
func (g *Guard) HoldVanished(source string, pod *v1.Pod) bool {
	return source == apiSource && g.Refuse(pod, PodVanished, "its object is gone from the API without a deletion that this kubelet could see")
}
