package poddeletion

import (
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/pkg/admission"
)

// exemption is why the deletion of a pod is not checked against budgets. The zero
// value means that it is.
type exemption string

const (
	notProtected   exemption = "NotProtected"
	terminating    exemption = "Terminating"
	finished       exemption = "Finished"
	neverScheduled exemption = "NeverScheduled"
	notStarted     exemption = "NotStarted"
	mirror         exemption = "MirrorPod"
	byItsOwner     exemption = "ByItsWorkloadController"
	withNamespace  exemption = "WithItsNamespace"
	// The following are not found out by passes: they need other objects.
	nodeLost    exemption = "NodeLost"
	outdatedPod exemption = "OutdatedDaemonPod"
)

// namespaceController empties namespaces that are being deleted. It goes on to
// everything else in them when the deletion of their pods is refused: budgets would
// cost the pods their secrets, services and network policies, then go the same way.
// What holds a namespace is the label deletion-protection on it.
const namespaceController = "system:serviceaccount:kube-system:namespace-controller"

// passes returns why the requested deletion of the pod passes without a check of the
// budgets, or "".
func passes(pod *corev1.Pod, request *admission.Request) exemption {
	switch {
	case !admission.IsProtected(pod):
		return notProtected
	case pod.DeletionTimestamp != nil:
		return terminating
	case admission.IsFinished(pod) && (request.SubResource == "eviction" || !admission.AnyRunning(pod)):
		// Eviction goes by the phase. A delete cannot: the pod garbage collector writes
		// Failed before it deletes what runs on a node that is lost.
		return finished
	case pod.Spec.NodeName == "":
		return neverScheduled
	case request.UserInfo.Username == namespaceController:
		return withNamespace
	case admission.IsMirror(pod):
		// Its object is a picture of a static pod, which goes on without it.
		return mirror
	case pod.Status.Phase == corev1.PodPending:
		// As for eviction: it does not count as healthy anywhere yet.
		return notStarted
	case isItsController(request.UserInfo.Username, pod) && !actsOnStatus(pod):
		return byItsOwner
	}
	return ""
}

// actsOnStatus reports whether the pod's own controller deletes it for what is reported of
// it or of its node, and not for the spec of the workload. That may be wrong: the
// StatefulSet controller deletes pods that are reported as failed, also while their
// containers run, and the DaemonSet controller those whose node no longer fits.
// Rule.Review finds out whether a pod of a DaemonSet is outdated.
func actsOnStatus(pod *corev1.Pod) bool {
	return admission.IsFinished(pod) && admission.AnyRunning(pod) || controllerOf(pod) == daemonSetController
}
