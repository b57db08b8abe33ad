package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// EventSavedPodUnusable is a Warning on the node: a file of the state directory
// could not be written or read.
const EventSavedPodUnusable = "SavedPodUnusable"

// saveTimeout is how long the start of a pod waits for its file. A disk that
// takes longer is in trouble, and the pod is worth more than its file.
const saveTimeout = 10 * time.Second

// openState opens the state directory and reads what an earlier kubelet saved.
// Nothing that is wrong there keeps the kubelet from starting: a pod whose file
// cannot be used is still protected by the labels of its sandbox.
func (g *Guard) openState() {
	if g.stateDir == "" || g.config.Mode == Off {
		return
	}
	store, err := openStore(g.stateDir)
	g.store = store
	if err != nil {
		g.stateFailed(fmt.Errorf("make the folders of the state directory %s: %w", g.stateDir, err))
		return
	}
	pods, bad := store.load()
	for _, err := range bad {
		g.stateFailed(err)
		var unusable *unusableError
		if errors.As(err, &unusable) {
			g.unusable = append(g.unusable, unusable.uid)
		}
	}
	for _, saved := range pods {
		g.loaded[saved.Pod.UID] = saved
	}
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

// saveSoonLocked starts to save a pod when what is on disk differs from the
// object in spec or metadata. The start of the pod's sandbox waits for it.
func (g *Guard) saveSoonLocked(r *podRecord, pod *v1.Pod) {
	if g.store == nil || r.savedVersion == pod.ResourceVersion && pod.ResourceVersion != "" {
		return
	}
	r.savedVersion = pod.ResourceVersion
	if r.saved != nil && sameToSave(r.saved, pod) {
		return
	}
	// The kubelet goes on to write annotations into this very object.
	r.saved = pod.DeepCopy()
	g.writeSoonLocked(r)
}

// writeSoonLocked starts to write the pod's file, after the write under way.
func (g *Guard) writeSoonLocked(r *podRecord) {
	r.dirty = true
	before, done := r.saveDone, make(chan struct{})
	r.saveDone = done
	go func() {
		defer close(done)
		if before != nil {
			<-before
		}
		g.save(r)
	}()
}

// sameToSave compares what is worth saving: everything but the status and what
// the API server changes with every write.
func sameToSave(a, b *v1.Pod) bool {
	return maps.Equal(a.Labels, b.Labels) &&
		maps.Equal(apiAnnotations(a), apiAnnotations(b)) &&
		equality.Semantic.DeepEqual(a.OwnerReferences, b.OwnerReferences) &&
		equality.Semantic.DeepEqual(a.Finalizers, b.Finalizers) &&
		equality.Semantic.DeepEqual(a.Spec, b.Spec)
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

// save writes what is known about the pod now. It is repeated by tidy while it
// fails.
func (g *Guard) save(r *podRecord) {
	r.saving.Lock()
	defer r.saving.Unlock()
	g.mu.Lock()
	if g.store == nil || r.saved == nil || !r.dirty || r.forgotten {
		g.mu.Unlock()
		return
	}
	content := savedPod{Pod: r.saved, Volumes: r.volumes, Evidence: r.evidence, SavedAt: g.clock.Now().UTC()}
	r.dirty = false
	g.mu.Unlock()

	err := g.store.save(content)
	g.mu.Lock()
	first := err != nil && !r.saveFailed
	r.saveFailed = err != nil
	r.dirty = r.dirty || err != nil
	g.mu.Unlock()
	switch {
	case first:
		g.stateFailed(fmt.Errorf("save pod %s/%s to %s: %w", r.namespace, r.name, g.store.path(r.uid), err))
	case err != nil:
		g.metrics.errors.WithLabelValues(opStateDir).Inc()
	}
}

// awaitSaved returns when the pod's file is on disk, or after saveTimeout.
func (g *Guard) awaitSaved(ctx context.Context, r *podRecord) {
	g.mu.Lock()
	done := r.saveDone
	g.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	case <-g.clock.After(saveTimeout):
		klog.InfoS("Starting a protected pod whose file is not saved yet", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid)
	}
}

// forget removes the pod's file.
func (g *Guard) forget(r *podRecord) {
	if g.store == nil {
		return
	}
	r.saving.Lock()
	defer r.saving.Unlock()
	g.mu.Lock()
	r.forgotten = true
	g.mu.Unlock()
	if err := g.store.remove(r.uid); err != nil {
		g.stateFailed(fmt.Errorf("remove the file of pod %s/%s: %w", r.namespace, r.name, err))
	}
	if err := removeIfThere(g.releasePath(r.uid)); err != nil {
		g.stateFailed(fmt.Errorf("remove the release file of pod %s/%s: %w", r.namespace, r.name, err))
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
			// Ended as a managed pod, it has its own grace period.
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
	r.volumes = slices.DeleteFunc(saved.Volumes, func(v savedVolume) bool { return v.Claim == nil || v.Volume == nil })
	r.earlier = true
	if r.evidence == nil {
		r.evidence, r.evidenceOver = saved.Evidence, saved.Evidence != nil
		return
	}
	// The list that the first message comes from may have brought evidence already.
	r.dirty = saved.Evidence == nil
}

// forgetUnusable removes the files that could not be used and whose pods neither
// the API nor the runtime has any more. Those of living pods stay; they are
// written anew when the pod has its object.
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
		if err := g.store.remove(uid); err != nil {
			g.stateFailed(fmt.Errorf("remove the unusable file of a pod that is gone: %w", err))
		}
	}
	g.unusable = nil
}

// releasePath is the release file of a pod: an empty file is enough.
func (g *Guard) releasePath(uid types.UID) string {
	return releaseDir(g.stateDir) + string(os.PathSeparator) + string(uid)
}

// readReleases takes the files in the release folder as evidence for the pods
// that they are named after, and returns the pods that have it now.
func (g *Guard) readReleases() []types.UID {
	if g.store == nil {
		return nil
	}
	entries, err := os.ReadDir(releaseDir(g.stateDir))
	if err != nil {
		if !os.IsNotExist(err) {
			g.stateFailed(fmt.Errorf("read the folder of release files: %w", err))
		}
		return nil
	}
	var released []types.UID
	for _, entry := range entries {
		if g.release(types.UID(entry.Name()), ReleaseFile) {
			released = append(released, types.UID(entry.Name()))
		}
	}
	return released
}

// release gives a known pod its evidence. It reports whether that is news.
func (g *Guard) release(uid types.UID, kind EvidenceKind) bool {
	g.mu.Lock()
	r := g.records[uid]
	if r == nil || r.evidence != nil {
		g.mu.Unlock()
		return false
	}
	after := g.evidenceLocked(r, kind)
	g.mu.Unlock()
	for _, f := range after {
		f()
	}
	g.save(r)
	return true
}
