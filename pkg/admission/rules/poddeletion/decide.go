package poddeletion

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/component-helpers/apps/poddisruptionbudget"

	"kubelet-guard.io/pkg/admission"
)

// Limits that the eviction subresource and the disruption controller have, and that
// an account shared with them has to keep.
const (
	// deletionTimeout is how long the disruption controller believes that a pod in
	// disruptedPods is about to go.
	deletionTimeout = 2 * time.Minute
	// maxDisruptedPods is the size of disruptedPods beyond which nothing is added.
	maxDisruptedPods = 2000
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

// Identities of controllers, as they are with --use-service-account-credentials of the
// controller manager.
const (
	controllerPrefix    = "system:serviceaccount:kube-system:"
	daemonSetController = controllerPrefix + "daemon-set-controller"
	podGarbageCollector = controllerPrefix + "pod-garbage-collector"
)

// Controllers are the accounts of the controllers that run workloads, by the kind that owns
// their pods.
type Controllers map[schema.GroupKind]string

// ParseControllers reads controllers that a cluster's administrator names: kinds such as
// "StatefulSet.apps.kruise.io" with the user name of their controller. Errors name the kind.
func ParseControllers(named map[string]string) (Controllers, error) {
	controllers := Controllers{}
	for _, kind := range slices.Sorted(maps.Keys(named)) {
		parsed, user := schema.ParseGroupKind(kind), named[kind]
		_, builtIn := workloadControllers[parsed]
		switch {
		case parsed.Kind == "" || parsed.Group == "" || user == "":
			return nil, fmt.Errorf("%q=%q is not a kind with its group and a user, such as StatefulSet.apps.kruise.io=system:serviceaccount:kruise-system:kruise-manager", kind, user)
		case builtIn:
			return nil, fmt.Errorf("%q is a kind of Kubernetes' own, whose controller is known", kind)
		}
		controllers[parsed] = user
	}
	return controllers, nil
}

// of returns the account of the controller of the pod's workload, or "" when it is not known.
func (c Controllers) of(pod *corev1.Pod) string {
	return c[ownerKind(pod)]
}

// ownerKind returns the kind that controls the pod, an empty one when none does.
func ownerKind(pod *corev1.Pod) schema.GroupKind {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return schema.GroupKind{}
	}
	return schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).GroupKind()
}

// workloadControllers are those of Kubernetes itself. What they delete follows from the spec of the
// workload: a roll-out, a scale-down or a suspension, held to rules of its own
// (Replicas, OperationWindow). Budgets do not limit these upstream
// either. A budget that wants two healthy pods would keep a workload from ever
// reaching 0 pods, which is what has to be done before it may be deleted.
//
// The garbage collector is not among them: that the owner is gone does not mean that
// the pods should go.
var workloadControllers = Controllers{
	{Group: "apps", Kind: "ReplicaSet"}:  controllerPrefix + "replicaset-controller",
	{Kind: "ReplicationController"}:      controllerPrefix + "replication-controller",
	{Group: "apps", Kind: "StatefulSet"}: controllerPrefix + "statefulset-controller",
	{Group: "apps", Kind: "DaemonSet"}:   daemonSetController,
	{Group: "batch", Kind: "Job"}:        controllerPrefix + "job-controller",
}

// isItsController reports whether the user is the controller of the pod's workload.
func isItsController(username string, pod *corev1.Pod) bool {
	controller := controllerOf(pod)
	return controller != "" && controller == username
}

// controllerOf returns the identity of the controller of the pod's workload, or "" when
// none of workloadControllers runs it.
func controllerOf(pod *corev1.Pod) string { return workloadControllers.of(pod) }

// isReady is what the disruption controller counts as healthy.
func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(condition corev1.PodCondition) bool {
		return condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue
	})
}

// account is what a budget decides about the deletion of one pod. The zero value is
// invalid.
type account string

const (
	// accountCharge: it may go, and has to be charged.
	accountCharge account = "Charge"
	// accountCharged: it was charged before, by an earlier review or an eviction.
	accountCharged account = "Charged"
	// accountUnhealthy: it counts nowhere, and the budget lets such pods go.
	accountUnhealthy account = "Unhealthy"
	// accountUnselected: the budget is gone or does not select the pod any more.
	accountUnselected account = "Unselected"
	// accountSeveral: it may not go, because several budgets select it.
	accountSeveral account = "Several"
	// accountRefuse: it may not go.
	accountRefuse account = "Refuse"
)

// way is how a pod is to go.
type way string

const (
	byDelete   way = "Delete"
	byEviction way = "Eviction"
)

// judge returns what the budget decides about the deletion of a pod that passes does
// not let through, and why when it refuses. It follows the eviction subresource, with one
// exception: a pod that is not ready may be deleted when the budget wants no healthy
// pod at all (maxUnavailable 1 of 1), since its going lowers nothing. Eviction refuses
// that, because the pods may not have been counted yet.
func judge(budget *policyv1.PodDisruptionBudget, pod *corev1.Pod, how way, now time.Time) (account, string) {
	status := budget.Status
	if !isReady(pod) {
		if policy := budget.Spec.UnhealthyPodEvictionPolicy; policy != nil && *policy == policyv1.AlwaysAllow {
			return accountUnhealthy, ""
		}
		counted := status.DesiredHealthy > 0 || how == byDelete && status.ExpectedPods > 0 && status.ObservedGeneration >= budget.Generation
		if status.CurrentHealthy >= status.DesiredHealthy && counted {
			return accountUnhealthy, ""
		}
	}
	if charged, ok := status.DisruptedPods[pod.Name]; ok && now.Before(charged.Add(deletionTimeout)) {
		// The disruption controller does not count it as healthy, also when the entry
		// is that of a predecessor of the same name: whatever the budget allows, it
		// allows without this pod.
		return accountCharged, ""
	}
	switch {
	case status.ObservedGeneration < budget.Generation:
		return accountRefuse, "was changed and the disruption controller has not counted its pods since"
	case len(status.DisruptedPods) > maxDisruptedPods:
		return accountRefuse, fmt.Sprintf("has %d disruptions that are not confirmed by the disruption controller", len(status.DisruptedPods))
	case status.DisruptionsAllowed > 0:
		return accountCharge, ""
	}
	failure := meta.FindStatusCondition(status.Conditions, policyv1.DisruptionAllowedCondition)
	switch {
	case failure != nil && failure.Status == metav1.ConditionFalse && failure.Reason == policyv1.SyncFailedReason:
		return accountRefuse, "allows no disruption, because the disruption controller cannot work it out: " + failure.Message
	case status.CurrentHealthy <= status.DesiredHealthy:
		return accountRefuse, fmt.Sprintf("needs %d healthy pods and has %d", status.DesiredHealthy, status.CurrentHealthy)
	}
	return accountRefuse, "has no disruption left; those that it allowed are under way"
}

// charge returns a copy of the budget with one disruption taken for the pod.
func charge(budget *policyv1.PodDisruptionBudget, pod string, now time.Time) *policyv1.PodDisruptionBudget {
	charged := budget.DeepCopy()
	charged.Status.DisruptionsAllowed--
	if charged.Status.DisruptionsAllowed == 0 {
		poddisruptionbudget.UpdateDisruptionAllowedCondition(charged)
	}
	if charged.Status.DisruptedPods == nil {
		charged.Status.DisruptedPods = map[string]metav1.Time{}
	}
	charged.Status.DisruptedPods[pod] = metav1.NewTime(now)
	return charged
}
