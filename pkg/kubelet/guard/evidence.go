package guard

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
)

// EvidenceKind is what proves that a deletion is explicit.
type EvidenceKind string

const (
	// DeletionTimestampSeen: the API object was observed with a
	// deletionTimestamp, in a list, in a watch event or in the last object that a
	// DELETED event carried.
	DeletionTimestampSeen EvidenceKind = "DeletionTimestampSeen"
	// PodDeletionRecord: a PodDeletion with the pod's UID exists in the API.
	PodDeletionRecord EvidenceKind = "PodDeletionRecord"
	// ReleaseFile: an administrator of the node put a file named after the pod's
	// UID into the folder release of the state directory.
	ReleaseFile EvidenceKind = "ReleaseFile"
)

// Evidence is proof that a deletion is explicit. It is sticky: once there, it
// stays until nothing of the pod is left.
type Evidence struct {
	// Kind of the proof.
	Kind EvidenceKind `json:"kind"`
	// Time is when this kubelet found it.
	Time time.Time `json:"time"`
}

// noteDeletion takes the deletionTimestamp of a protected pod as evidence and
// releases the pod when it was held.
func (g *Guard) noteDeletion(pod *v1.Pod) {
	g.mu.Lock()
	r := g.recordLocked(pod)
	if r.evidence != nil {
		g.mu.Unlock()
		return
	}
	after := g.evidenceLocked(r, DeletionTimestampSeen)
	g.mu.Unlock()
	g.apply(after)
}

// evidenceLocked gives the pod its evidence, ends its holds and has the evidence saved.
// It counts at once: a disk that is slow or hangs delays no termination.
func (g *Guard) evidenceLocked(r *podRecord, kind EvidenceKind) effects {
	r.evidence = &Evidence{Kind: kind, Time: g.clock.Now().UTC()}
	g.queueLocked(r, urgently)
	return g.releaseAllLocked(r, fmt.Sprintf("its deletion was requested (%s)", kind))
}

// forgetEvidenceLocked has the pod saved without the evidence of its earlier life, and
// its release file removed, which would be taken as evidence again.
func (g *Guard) forgetEvidenceLocked(r *podRecord) {
	g.removeLocked(r.uid)
	g.queueLocked(r, urgently)
}
