package guard

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
)

// WatchSource returns lw, with every object that it lists or watches shown to
// the guard first. The last object of a DELETED event is in no store: this is
// the only place where its deletionTimestamp can be seen. Wrapping the store
// instead would miss the deletions of a streamed initial list.
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
	// seen has the pods that the server has shown since its storage went back; nil
	// when it did not, or when the reflector has listed since. See rewind.go.
	seen map[cache.ObjectName]*v1.Pod
	// reported is when the newest event about that was made.
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

// IsWatchListSemanticsUnSupported is how client-go asks whether the initial
// list can be streamed.
func (o *observedListerWatcher) IsWatchListSemanticsUnSupported() bool {
	return watchlist.DoesClientNotSupportWatchListSemantics(o.original)
}

// observe takes note of a deletionTimestamp. It counts for a pod that has just
// lost its label, too: until the message without it is merged, the pod is
// protected.
func (g *Guard) observe(pod *v1.Pod) {
	if pod.DeletionTimestamp == nil {
		return
	}
	g.mu.Lock()
	_, known := g.records[pod.UID]
	g.mu.Unlock()
	if known || g.Protects(pod) {
		g.noteDeletion(pod)
	}
}

// ObserveSource is shown every message of a config source, that is the full set
// of its pods, and returns the set that the kubelet is to work with. Only the
// API source is looked at. To its first message the saved pods are added that it
// does not have and that are alive; from then on HoldVanished keeps them.
//
// A protected pod whose object claims that it has ended although it is alive is
// handed on without the claim: its phase is emptied in a copy. The whole kubelet
// treats such a claim as final (admission, pod workers, status, CPU and device
// managers), so it is stopped where it comes in. The kubelet computes the phase
// anew, finds that the object differs, and writes the truth back.
func (g *Guard) ObserveSource(source string, pods []*v1.Pod) []*v1.Pod {
	if source != apiSource || g.config.Mode == Off {
		return pods
	}
	var after []func()
	var suspects []int
	now := g.clock.Now()
	g.mu.Lock()
	first := g.pass == 0
	g.pass++
	for i, pod := range pods {
		if !g.Protects(pod) {
			if r := g.records[pod.UID]; r != nil {
				after = append(after, g.releaseAllLocked(r, "the pod is no longer labelled for protection")...)
				delete(g.records, pod.UID)
				after = append(after, func() { g.forget(r) })
			}
			// It lost the label while no kubelet ran, or its file could not be removed.
			if _, saved := g.loaded[pod.UID]; saved {
				delete(g.loaded, pod.UID)
				after = append(after, func() { g.forget(newRecord(pod.UID, pod.Namespace, pod.Name)) })
			}
			g.unprotected[pod.UID] = now
			continue
		}
		r := g.recordLocked(pod)
		// It vanished while nothing of it ran and was let go. The kubelet starts it
		// again now. An exempt cause may still be stopping it.
		if !r.present && (r.permit == PodVanished || r.permit == OrphanedRuntimePod) && !g.exempt[r.permit] {
			r.permit = ""
		}
		r.pod, r.pass, r.present = pod, g.pass, true
		if saved, ok := g.loaded[pod.UID]; ok {
			r.adopt(saved)
			delete(g.loaded, pod.UID)
		}
		g.saveSoonLocked(r, pod)
		after = append(after, g.releaseLocked(r, PodVanished, "its object is back in the API")...)
		after = append(after, g.releaseLocked(r, OrphanedRuntimePod, "its object is back in the API")...)
		switch pod.Status.Phase {
		case v1.PodFailed, v1.PodSucceeded:
			if r.permit == "" && r.evidence == nil && pod.DeletionTimestamp == nil {
				suspects = append(suspects, i)
			}
		default:
			after = append(after, g.releaseLocked(r, TerminalPhaseReported, "the API object no longer says that the pod ended")...)
			// A kubelet that had acted on the claim would not have taken it back.
			if r.permit == TerminalPhaseReported {
				r.permit = ""
			}
		}
	}
	for _, r := range g.records {
		r.present = r.pass == g.pass && r.pass != 0
		if r.present {
			r.goneSince = time.Time{}
		}
	}
	g.mu.Unlock()
	for _, f := range after {
		f()
	}
	var restored []*v1.Pod
	if first {
		restored = g.restore()
	}
	if len(suspects)+len(restored) == 0 {
		return pods
	}
	corrected := append(append([]*v1.Pod(nil), pods...), restored...)
	for _, i := range suspects {
		pod := pods[i]
		g.awaitRuntime()
		if g.Refuse(pod, TerminalPhaseReported, "the API object says "+string(pod.Status.Phase)) {
			corrected[i] = pod.DeepCopy()
			corrected[i].Status.Phase = ""
			corrected[i].Status.Reason = ""
			corrected[i].Status.Message = ""
		}
	}
	return corrected
}

// HoldVanished reports whether the kubelet is to go on with a pod that the
// message just shown to ObserveSource no longer has.
func (g *Guard) HoldVanished(source string, pod *v1.Pod) bool {
	return source == apiSource && g.Refuse(pod, PodVanished, "its object is gone from the API without a deletion that this kubelet could see")
}
