package guard

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Claims of a vanished pod.
//
// The API server lets a kubelet read a PersistentVolumeClaim and its volume only while a
// pod of its node refers to them. When the object of a pod is gone and the kubelet
// restarts, it does not know what the pod's claims are bound to: it could not start a
// container again, and would report the volumes as no longer in use, upon which they may
// be detached. So both objects are saved with the pod.

// ClaimedVolume is a claim of a pod and the volume that it is bound to, without what changes
// with every write: resource versions, managed fields, the status of the volume.
type ClaimedVolume struct {
	Claim  *v1.PersistentVolumeClaim `json:"claim"`
	Volume *v1.PersistentVolume      `json:"volume"`
}

// SaveVolume saves a claim of a pod and its volume as the API has them.
func (g *Guard) SaveVolume(pod *v1.Pod, claim *v1.PersistentVolumeClaim, volume *v1.PersistentVolume) {
	if claim == nil || volume == nil || !g.Protects(pod) {
		return
	}
	volumeToSave := ClaimedVolume{Claim: &v1.PersistentVolumeClaim{Spec: claim.Spec, Status: claim.Status}, Volume: &v1.PersistentVolume{Spec: volume.Spec}}
	volumeToSave.Claim.ObjectMeta, volumeToSave.Volume.ObjectMeta = metaToSave(claim.ObjectMeta), metaToSave(volume.ObjectMeta)
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.records[pod.UID]
	// A new claim under the same name is not that of a vanished pod.
	if r == nil || r.holds[PodVanished] != nil {
		return
	}
	for i, known := range r.volumes {
		if known.Claim.Name != claim.Name {
			continue
		}
		if equality.Semantic.DeepEqual(known, volumeToSave) {
			return
		}
		r.volumes = append(append([]ClaimedVolume(nil), r.volumes[:i]...), r.volumes[i+1:]...)
		break
	}
	r.volumes = append(append([]ClaimedVolume(nil), r.volumes...), volumeToSave)
	if r.saved != nil {
		g.writeSoonLocked(r)
	}
}

// metaToSave leaves out what changes without a meaning for the kubelet.
func metaToSave(meta metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: meta.Namespace, Name: meta.Name, UID: meta.UID, CreationTimestamp: meta.CreationTimestamp,
		Labels: meta.Labels, Annotations: meta.Annotations,
		OwnerReferences: meta.OwnerReferences, Finalizers: meta.Finalizers,
	}
}

// SavedClaim returns the saved claim of a vanished pod when the API returned an error or
// a new claim under the same name, or nil.
func (g *Guard) SavedClaim(pod *v1.Pod, name string, claim *v1.PersistentVolumeClaim, err error) *v1.PersistentVolumeClaim {
	v := g.savedVolume(pod, func(v ClaimedVolume) bool { return v.Claim.Name == name })
	if v == nil || err == nil && claim != nil && claim.UID == v.Claim.UID {
		return nil
	}
	return v.Claim.DeepCopy()
}

// SavedVolume returns the volume behind the claim of a vanished pod that the API did
// not give but for the error, or nil.
func (g *Guard) SavedVolume(pod *v1.Pod, claim types.UID, err error) *v1.PersistentVolume {
	if err == nil {
		return nil
	}
	if v := g.savedVolume(pod, func(v ClaimedVolume) bool { return v.Claim.UID == claim }); v != nil {
		return v.Volume.DeepCopy()
	}
	return nil
}

func (g *Guard) savedVolume(pod *v1.Pod, wanted func(ClaimedVolume) bool) *ClaimedVolume {
	if pod == nil || !g.Vanished(pod.UID) {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.records[pod.UID]; r != nil {
		for i := range r.volumes {
			if wanted(r.volumes[i]) {
				return &r.volumes[i]
			}
		}
	}
	return nil
}
