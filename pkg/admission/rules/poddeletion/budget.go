package poddeletion

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/apps/poddisruptionbudget"
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
