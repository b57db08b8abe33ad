package guard

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Annotations that the kubelet and the API server put on pods; upstream defines
// them in pkg/kubelet/types, which this package may not import.
const (
	mirrorAnnotation = "kubernetes.io/config.mirror"
	sourceAnnotation = "kubernetes.io/config.source"
	apiSource        = "api"
)

// Protects reports whether a pod that the kubelet works with is of the API source
// and matches the selector. It does not allocate.
func (g *Guard) Protects(pod *v1.Pod) bool {
	source, known := pod.Annotations[sourceAnnotation]
	return (!known || source == apiSource) && g.protectsObject(pod)
}

// protectsObject is Protects for an object that comes from the API. It ignores the
// source annotation in the object: the kubelet overwrites it when it merges the object
// (podStorage.merge).
func (g *Guard) protectsObject(pod *v1.Pod) bool {
	if g.config.Mode == Off || !g.selector.Matches(labels.Set(pod.Labels)) {
		return false
	}
	_, mirror := pod.Annotations[mirrorAnnotation]
	return !mirror
}

// podRecord is what is known about one protected pod.
type podRecord struct {
	uid             types.UID
	namespace, name string
	// pod is the newest object that was seen; nil for a pod that is known from
	// its sandbox labels only.
	pod *v1.Pod
	// pass is the newest message of the API source that had the object.
	pass uint64
	// present: the newest message had the object.
	present bool
	// lost: its object was gone without a deletion that this kubelet could see, and has
	// not reappeared since.
	lost bool
	// earlier: the pod is older than this kubelet process.
	earlier bool
	// older is the object that the API shows when it is older than one that was seen
	// before; nil otherwise. See older.go.
	older *v1.Pod

	evidence *Evidence
	// evidenceOver: the life that the evidence is for has ended, because the pod was
	// stopped after it arrived, or it arrived at an earlier kubelet.
	evidenceOver bool
	exemption    exemption

	holds   map[Cause]*hold
	audited map[Cause]*hold
	allowed map[Cause]bool

	// heldSince is when the first of the present holds started.
	heldSince time.Time
	// saved is what is on disk or about to be, and never changed, only replaced;
	// savedVersion the resource version that was compared last. dirty: the disk is
	// behind.
	saved *v1.Pod
	// volumes are saved with the pod; the slice is replaced, never changed.
	volumes      []ClaimedVolume
	savedVersion string
	dirty        bool
	file         podFile

	// aliveAt and runningAt are when the runtime last reported so.
	aliveAt, runningAt time.Time
	goneSince          time.Time
}

// recordOf returns the record of a pod, which it creates for a new one, or nil when the
// pod is not protected. A deletionTimestamp of the object counts as evidence. The newest
// message of the API source outranks the object: a hook may have an object from before
// the label was removed.
func (g *Guard) recordOf(pod *v1.Pod) *podRecord {
	if !g.Protects(pod) {
		return nil
	}
	if pod.DeletionTimestamp != nil {
		g.noteDeletion(pod)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, unprotected := g.unprotected[pod.UID]; unprotected {
		return nil
	}
	return g.recordLocked(pod)
}

func (g *Guard) recordLocked(pod *v1.Pod) *podRecord {
	r := g.records[pod.UID]
	if r == nil {
		r = newRecord(pod.UID, pod.Namespace, pod.Name)
		g.records[pod.UID] = r
		delete(g.unprotected, pod.UID)
	}
	if r.pod == nil {
		r.pod = pod
	}
	return r
}

// recordByUID returns the record of a pod that is known by its UID only, or nil when
// the pod is not protected. A pod without an API object is judged by what an earlier
// kubelet saved, and without that by the labels that the kubelet wrote on its
// sandboxes; when these cannot be read there is an error, and the pod must not be
// stopped.
func (g *Guard) recordByUID(uid types.UID) (*podRecord, error) {
	if g.config.Mode == Off {
		return nil, nil
	}
	g.mu.Lock()
	r := g.records[uid]
	_, unprotected := g.unprotected[uid]
	if r == nil && g.clock.Now().Before(g.dead[uid]) {
		unprotected = true
	}
	if saved, ok := g.loaded[uid]; r == nil && !unprotected && ok && g.protectsObject(saved.Pod) {
		// Before the first message of the API source, which a kubelet without an API
		// server never gets.
		r = newRecord(uid, saved.Pod.Namespace, saved.Pod.Name)
		r.adopt(saved)
		g.records[uid] = r
	}
	g.mu.Unlock()
	if r != nil || unprotected {
		return r, nil
	}
	found, err := g.sandboxPod(uid)
	if err != nil {
		g.runtimeFailed(err, "podUID", uid)
		return nil, fmt.Errorf("cannot determine whether pod %s is protected: %w", uid, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// The API source may have delivered the pod during the query of the runtime.
	if r := g.records[uid]; r != nil || found == nil {
		return r, nil
	}
	if !g.Protects(found) {
		g.unprotected[uid] = g.clock.Now()
		return nil, nil
	}
	// The record is kept only when something is refused for the pod: most pods that are
	// known by their sandboxes alone have ended.
	return newRecord(uid, found.Namespace, found.Name), nil
}

func newRecord(uid types.UID, namespace, name string) *podRecord {
	return &podRecord{
		uid: uid, namespace: namespace, name: name,
		holds: map[Cause]*hold{}, audited: map[Cause]*hold{}, allowed: map[Cause]bool{},
	}
}

// aliveLatelyLocked reports whether the runtime recently reported the pod as alive, so
// that it need not be queried again.
func (r *podRecord) aliveLatelyLocked(cause Cause, now time.Time) bool {
	if h := r.holds[cause]; h != nil && cause.lasting() {
		return true
	}
	// Attempted once per sync only. When the last container of a lost sandbox is gone,
	// the pod is to have a new one at once.
	if cause == SandboxChanged {
		return false
	}
	at := r.aliveAt
	if cause.needsRunningContainer() {
		at = r.runningAt
	}
	return !at.IsZero() && now.Sub(at) < confirmInterval && len(r.holds)+len(r.audited) > 0
}
