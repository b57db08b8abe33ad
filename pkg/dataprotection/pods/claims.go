package pods

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/kubelet/guard"
)

// claimsOf returns the names of a pod's claims.
func claimsOf(pod *corev1.Pod) []string {
	var names []string
	for _, volume := range pod.Spec.Volumes {
		switch {
		case volume.PersistentVolumeClaim != nil:
			names = append(names, volume.PersistentVolumeClaim.ClaimName)
		case volume.Ephemeral != nil:
			names = append(names, pod.Name+"-"+volume.Name)
		}
	}
	return names
}

// missingClaims returns what has to be restored so that the pod has the claims and volumes that it
// runs with, each nil if it is there, or why it cannot be.
func (c *cluster) missingClaims(pod *corev1.Pod, saved []guard.ClaimedVolume) (missing []guard.ClaimedVolume, problem string) {
	for _, name := range claimsOf(pod) {
		var of *guard.ClaimedVolume
		for i := range saved {
			if saved[i].Claim != nil && saved[i].Volume != nil && saved[i].Claim.Name == name {
				of = &saved[i]
			}
		}
		there := c.claims[types.NamespacedName{Namespace: pod.Namespace, Name: name}]
		switch {
		case there == nil && of == nil:
			return nil, fmt.Sprintf("its claim %s is not there, and its node has not saved it", name)
		case there == nil:
			m, problem := c.missingClaim(*of)
			if problem != "" {
				return nil, problem
			}
			missing = append(missing, m)
		case of == nil:
		case there.UID != of.Claim.UID:
			return nil, fmt.Sprintf("its claim %s was created again, with another UID: the pod runs on the volume %s of the earlier one", name, of.Volume.Name)
		case there.Spec.VolumeName != of.Volume.Name && there.Spec.VolumeName != "":
			return nil, fmt.Sprintf("its claim %s is bound to the volume %s, and the pod runs on %s", name, there.Spec.VolumeName, of.Volume.Name)
		case c.volumes[of.Volume.Name] == nil:
			// Of an interrupted restore, or of a snapshot in which the claim was not bound yet:
			// it would get another volume.
			m, problem := c.missingClaim(*of)
			if problem != "" {
				return nil, problem
			}
			missing = append(missing, guard.ClaimedVolume{Volume: m.Volume})
		}
	}
	return missing, ""
}

// missingClaim returns a claim that is gone, with its volume unless that is there. A claim without
// its volume is lost; a volume without its claim is released, and deleted if its policy says so.
func (c *cluster) missingClaim(saved guard.ClaimedVolume) (guard.ClaimedVolume, string) {
	volume, claim := saved.Volume, saved.Claim
	if reference := volume.Spec.ClaimRef; reference == nil || reference.UID != claim.UID || claim.Spec.VolumeName != volume.Name {
		return saved, fmt.Sprintf("its claim %s or its volume is not there, and what its node saved of it is not bound", claim.Name)
	}
	there := c.volumes[volume.Name]
	if there == nil {
		if other := c.sameStorage(volume); other != "" {
			return saved, fmt.Sprintf("its claim %s or its volume is not there, and the volume %s has the storage of %s", claim.Name, other, volume.Name)
		}
		return saved, ""
	}
	switch {
	case there.UID != volume.UID:
		return saved, fmt.Sprintf("its claim %s is not there, and its volume %s was created again, with another UID", claim.Name, volume.Name)
	case there.DeletionTimestamp != nil || there.Status.Phase == corev1.VolumeReleased || there.Status.Phase == corev1.VolumeFailed:
		return saved, fmt.Sprintf("its claim %s is not there, and its volume %s is released or being deleted", claim.Name, volume.Name)
	case there.Spec.ClaimRef == nil || there.Spec.ClaimRef.UID != claim.UID:
		return saved, fmt.Sprintf("its claim %s is not there, and its volume %s is not bound to it any more", claim.Name, volume.Name)
	}
	return guard.ClaimedVolume{Claim: claim}, ""
}

// sameStorage returns the volume that has the storage of another CSI volume.
func (c *cluster) sameStorage(volume *corev1.PersistentVolume) string {
	if volume.Spec.CSI == nil {
		return ""
	}
	for _, other := range c.volumes {
		if csi := other.Spec.CSI; csi != nil && csi.Driver == volume.Spec.CSI.Driver && csi.VolumeHandle == volume.Spec.CSI.VolumeHandle {
			return other.Name
		}
	}
	return ""
}

// claimToWrite returns a claim as it is written.
func claimToWrite(saved *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
	claim := saved.DeepCopy()
	claim.ResourceVersion = ""
	return claim
}

// volumeToWrite returns a volume as it is written: bound, as its claim is.
func volumeToWrite(saved *corev1.PersistentVolume) *corev1.PersistentVolume {
	volume := saved.DeepCopy()
	volume.ResourceVersion, volume.OwnerReferences = "", nil
	volume.Spec.ClaimRef.ResourceVersion = ""
	volume.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}
	return volume
}

// untolerated returns the taints of a node that evict the pod, now or later.
func untolerated(node *corev1.Node, pod *corev1.Pod) string {
	var taints []string
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		if taint.Effect == corev1.TaintEffectNoExecute && !toleratedForEver(pod, taint) {
			taints = append(taints, taint.ToString())
		}
	}
	return strings.Join(taints, ", ")
}

func toleratedForEver(pod *corev1.Pod, taint *corev1.Taint) bool {
	for _, t := range pod.Spec.Tolerations {
		exists := t.Operator == corev1.TolerationOpExists
		if (t.Effect == "" || t.Effect == taint.Effect) && (t.Key == taint.Key || t.Key == "" && exists) &&
			(exists || (t.Operator == "" || t.Operator == corev1.TolerationOpEqual) && t.Value == taint.Value) && t.TolerationSeconds == nil {
			return true
		}
	}
	return false
}
