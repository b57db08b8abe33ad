package guard

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// EventSavedPodUnusable is a Warning on the node: a file of the state directory
// could not be written or read.
const EventSavedPodUnusable = "SavedPodUnusable"

// openState opens the state directory and reads what an earlier kubelet saved. No
// problem there keeps the kubelet from starting: a pod whose file cannot be used is
// still protected by the labels of its sandbox.
func (g *Guard) openState() {
	if g.stateDir == "" || g.config.Mode == Off {
		return
	}
	store, err := openStore(g.stateDir)
	g.store = store
	for _, err := range folderErrors(err) {
		g.stateTrouble(err, false)
	}
	pods, bad := store.load()
	for _, err := range bad {
		var unusable *unusableError
		var folder *folderError
		switch {
		case errors.As(err, &unusable):
			g.unusable = append(g.unusable, unusable.uid)
		case errors.As(err, &folder) && g.saver.complaints[folder.path] != "" || g.saver.complaints[g.stateDir] != "":
			// Reported above.
			continue
		}
		g.stateTrouble(err, false)
	}
	for _, saved := range pods {
		g.loaded[saved.Pod.UID] = saved
	}
}

// folderErrors takes the error of openStore apart.
func folderErrors(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err != nil {
		return []error{err}
	}
	return nil
}

// stateFailed reports an error of the state directory.
func (g *Guard) stateFailed(err error) {
	g.metrics.errors.WithLabelValues(opStateDir).Inc()
	klog.ErrorS(err, "The guard's state directory failed; pods are still protected by what is in memory and by the labels of their sandboxes")
	if g.recorder != nil {
		about := g.nodeReference()
		g.recorder.Event(&about, v1.EventTypeWarning, EventSavedPodUnusable, err.Error())
	}
}

// saveSoonLocked receives the pod's object with every message of the API source, and has
// it saved when what is worth saving has changed. The start of the pod's first sandbox
// waits for its first file.
func (g *Guard) saveSoonLocked(r *podRecord, pod *v1.Pod) {
	if g.store == nil {
		return
	}
	if r.dirty && !r.file.queued {
		g.queueLocked(r, urgently)
	}
	if r.savedVersion == pod.ResourceVersion && pod.ResourceVersion != "" {
		return
	}
	r.savedVersion = pod.ResourceVersion
	old := r.saved
	// The kubelet writes annotations into this very object later, and what is saved is
	// read by another goroutine: it is replaced, never changed.
	if old == nil {
		r.saved = pod.DeepCopy()
		r.saved.Status = statusToSave(nil, pod)
		r.file.first = make(chan struct{})
		g.queueLocked(r, urgently)
		return
	}
	status := statusToSave(old, pod)
	how, changed := changeToSave(old, pod, &status)
	if changed {
		r.saved = pod.DeepCopy()
	} else {
		same := *old
		same.ResourceVersion = pod.ResourceVersion
		r.saved = &same
	}
	r.saved.Status = status
	// What can wait is of no use to a pod with evidence.
	if changed && (how != lazily || r.evidence == nil) {
		g.queueLocked(r, how)
	}
}

// writeSoonLocked has the pod's file written.
func (g *Guard) writeSoonLocked(r *podRecord) { g.queueLocked(r, soon) }

// changeToSave reports whether an object differs from what was saved, and how soon it is
// to be saved. What the API server changes with every write does not count, nor most of
// the status.
func changeToSave(saved, pod *v1.Pod, status *v1.PodStatus) (how urgency, changed bool) {
	switch {
	case !maps.Equal(saved.Labels, pod.Labels), !equality.Semantic.DeepEqual(saved.Spec, pod.Spec):
		return soon, true
	case !maps.Equal(apiAnnotations(saved), apiAnnotations(pod)),
		!equality.Semantic.DeepEqual(saved.OwnerReferences, pod.OwnerReferences),
		!equality.Semantic.DeepEqual(saved.Finalizers, pod.Finalizers),
		!sameContainers(saved.Status.InitContainerStatuses, status.InitContainerStatuses),
		!sameContainers(saved.Status.ContainerStatuses, status.ContainerStatuses),
		!sameContainers(saved.Status.EphemeralContainerStatuses, status.EphemeralContainerStatuses):
		return lazily, true
	}
	return lazily, false
}

// sameContainers: a kubelet that starts reads from the status of a pod which of its
// containers have passed their startup probe, and does not run that again.
func sameContainers(a, b []v1.ContainerStatus) bool {
	return slices.EqualFunc(a, b, func(a, b v1.ContainerStatus) bool {
		return a.Name == b.Name && a.ContainerID == b.ContainerID && equality.Semantic.DeepEqual(a.Started, b.Started)
	})
}

// statusToSave returns the status to save with a pod. A pod is restored only when it is
// alive, so a terminal phase of its object is not saved.
func statusToSave(saved, pod *v1.Pod) v1.PodStatus {
	if pod.Status.Phase != v1.PodFailed && pod.Status.Phase != v1.PodSucceeded {
		return *pod.Status.DeepCopy()
	}
	if saved != nil {
		return saved.Status
	}
	status := *pod.Status.DeepCopy()
	status.Phase, status.Reason, status.Message = "", "", ""
	return status
}

// apiAnnotations leaves out what the kubelet itself adds.
func apiAnnotations(pod *v1.Pod) map[string]string {
	kept := map[string]string{}
	for key, value := range pod.Annotations {
		if !strings.HasPrefix(key, "kubernetes.io/config.") {
			kept[key] = value
		}
	}
	return kept
}

// forget has the pod's files removed. Nothing of it is written any more.
func (g *Guard) forget(r *podRecord) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r.dirty, r.file.queued, r.file.forgotten = false, false, true
	if g.saver.dirty[r.uid] == r {
		delete(g.saver.dirty, r.uid)
	}
	r.file.firstWrittenLocked()
	g.removeLocked(r.uid)
	delete(g.loaded, r.uid)
	// The pod may be protected again already. The removal comes first.
	if again := g.records[r.uid]; again != nil && again != r {
		g.queueLocked(again, soon)
	}
}

// restore returns the saved pods that the first message of the API source does
// not have, and that are alive. They are held from here on.
func (g *Guard) restore() []*v1.Pod {
	var restored []*v1.Pod
	g.mu.Lock()
	loaded := g.loaded
	g.loaded = nil
	g.mu.Unlock()
	for uid, saved := range loaded {
		if !g.protectsObject(saved.Pod) {
			// The selector has changed. It may change back while the pod runs.
			if r := newRecord(uid, saved.Pod.Namespace, saved.Pod.Name); !g.alive(r, false) {
				g.forget(r)
			}
			continue
		}
		g.mu.Lock()
		r := g.recordLocked(saved.Pod)
		r.adopt(saved)
		evidence := r.evidence
		g.mu.Unlock()
		if evidence != nil && evidence.Kind == DeletionTimestampSeen {
			// The kubelet ended in the middle of the termination; housekeeping
			// finds what is left and may finish it.
			continue
		}
		g.awaitRuntime()
		if !g.alive(r, false) {
			klog.InfoS("A saved pod is neither in the API nor in the runtime, forgetting it", "pod", klog.KObj(saved.Pod), "podUID", uid)
			g.mu.Lock()
			delete(g.records, uid)
			g.mu.Unlock()
			g.forget(r)
			continue
		}
		if evidence != nil {
			// Terminated as a managed pod, it has its own grace period.
			restored = append(restored, saved.Pod)
			g.mu.Lock()
			g.ending = append(g.ending, uid)
			g.mu.Unlock()
			continue
		}
		if g.refuse(r, PodVanished, "its object was gone from the API when the kubelet started, and no deletion of it is known", nil) {
			restored = append(restored, saved.Pod)
		}
	}
	g.forgetUnusable()
	return restored
}

// adopt takes over what an earlier kubelet saved.
func (r *podRecord) adopt(saved savedPod) {
	r.saved = saved.Pod.DeepCopy()
	r.volumes = slices.DeleteFunc(saved.Volumes, func(v ClaimedVolume) bool { return v.Claim == nil || v.Volume == nil })
	r.earlier = true
	if r.evidence == nil {
		r.evidence, r.evidenceOver = saved.Evidence, saved.Evidence != nil
		return
	}
	// The list behind the first message may have brought evidence already.
	r.dirty = saved.Evidence == nil
}

// forgetUnusable removes the files that could not be used and whose pods neither
// the API nor the runtime has any more. Those of living pods are kept; they are
// overwritten when the pod has its object.
func (g *Guard) forgetUnusable() {
	for _, uid := range g.unusable {
		g.mu.Lock()
		_, known := g.records[uid]
		g.mu.Unlock()
		if known {
			continue
		}
		g.awaitRuntime()
		if pod, err := g.sandboxPod(uid); err != nil || pod != nil {
			continue
		}
		klog.InfoS("Removing an unusable file of a pod that is neither in the API nor in the runtime", "file", g.store.path(uid))
		g.mu.Lock()
		g.removeLocked(uid)
		g.mu.Unlock()
	}
	g.unusable = nil
}

// readReleases takes the files in the release folder as evidence for the pods that they
// are named after, and returns the pods that have it now. An empty file is enough. Only
// the goroutine of saver.go calls it.
func (g *Guard) readReleases() []types.UID {
	if g.store == nil {
		return nil
	}
	names, bad, err := g.store.readReleases()
	if err != nil {
		g.stateTrouble(err, false)
		return nil
	}
	g.settled(g.stateDir, g.store.releases)
	g.mu.Lock()
	maps.DeleteFunc(g.saver.complaints, func(path, _ string) bool {
		return filepath.Dir(path) == g.store.releases && bad[filepath.Base(path)] == nil
	})
	g.mu.Unlock()
	for name, err := range bad {
		if g.complain(filepath.Join(g.store.releases, name), err.Error()) {
			g.stateFailed(err)
		}
	}
	var released []types.UID
	for _, name := range names {
		uid := types.UID(name)
		g.mu.Lock()
		// The file of a pod that is forgotten is no evidence for one that has its UID again.
		_, removed := g.saver.removals[uid]
		g.mu.Unlock()
		if !removed && g.release(uid, ReleaseFile) {
			released = append(released, uid)
		}
	}
	return released
}

// release gives a known pod its evidence. It reports whether that is new.
func (g *Guard) release(uid types.UID, kind EvidenceKind) bool {
	g.mu.Lock()
	r := g.records[uid]
	if r == nil || r.evidence != nil {
		g.mu.Unlock()
		return false
	}
	after := g.evidenceLocked(r, kind)
	g.mu.Unlock()
	g.apply(after)
	return true
}
