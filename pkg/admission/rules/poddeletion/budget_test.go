package poddeletion

import (
	"cmp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestWhatABudgetSays(t *testing.T) {
	disrupted := func(ago time.Duration) map[string]metav1.Time {
		return map[string]metav1.Time{"web-1": metav1.NewTime(noon.Add(-ago))}
	}
	crowd := map[string]metav1.Time{}
	for i := range maxDisruptedPods + 1 {
		crowd[string(rune('a'+i%26))+time.Duration(i).String()] = metav1.NewTime(noon)
	}
	always, ifHealthy := ptr.To(policyv1.AlwaysAllow), ptr.To(policyv1.IfHealthyBudget)
	for name, test := range map[string]struct {
		policy     *policyv1.UnhealthyPodEvictionPolicyType
		generation int64
		status     policyv1.PodDisruptionBudgetStatus
		pod        *corev1.Pod
		how        way
		want       account
		why        string
	}{
		"one disruption left":  {status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1}, pod: newPod(), want: accountCharge},
		"none left":            {status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 3}, pod: newPod(), want: accountRefuse, why: "needs 3 healthy pods and has 3"},
		"those left are taken": {status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 4, DesiredHealthy: 3}, pod: newPod(), want: accountRefuse, why: "has no disruption left; those that it allowed are under way"},
		"negative":             {status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: -1, CurrentHealthy: 2, DesiredHealthy: 3}, pod: newPod(), want: accountRefuse, why: "needs 3 healthy pods and has 2"},
		"changed since it was counted": {generation: 2, status: policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DisruptionsAllowed: 1}, pod: newPod(), want: accountRefuse,
			why: "was changed and the disruption controller has not counted its pods since"},
		"cannot be worked out": {status: policyv1.PodDisruptionBudgetStatus{Conditions: []metav1.Condition{{
			Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.SyncFailedReason, Message: "found no controllers for pod"}}},
			pod: newPod(), want: accountRefuse, why: "allows no disruption, because the disruption controller cannot work it out: found no controllers for pod"},
		"too many unconfirmed":                                      {status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1, DisruptedPods: crowd}, pod: newPod(), want: accountRefuse, why: "has 2001 disruptions that are not confirmed by the disruption controller"},
		"charged before":                                            {status: policyv1.PodDisruptionBudgetStatus{DisruptedPods: disrupted(time.Minute)}, pod: newPod(), want: accountCharged},
		"charged before by a clock that is ahead":                   {status: policyv1.PodDisruptionBudgetStatus{DisruptedPods: disrupted(-time.Minute)}, pod: newPod(), want: accountCharged},
		"charged before, too long ago to count":                     {status: policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: 1, DisruptedPods: disrupted(deletionTimeout)}, pod: newPod(), want: accountCharge},
		"charged before for another pod":                            {status: policyv1.PodDisruptionBudgetStatus{DisruptedPods: disrupted(time.Minute)}, pod: newPod(named("web-2")), want: accountRefuse, why: "needs 0 healthy pods and has 0"},
		"not ready, always allowed":                                 {policy: always, status: policyv1.PodDisruptionBudgetStatus{DesiredHealthy: 3}, pod: newPod(unready), want: accountUnhealthy},
		"not ready, enough others are":                              {policy: ifHealthy, status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 3}, pod: newPod(unready), want: accountUnhealthy},
		"not ready, enough others are, policy left out":             {status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 3}, pod: newPod(unready), want: accountUnhealthy},
		"not ready, too few others are":                             {policy: ifHealthy, status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 2, DesiredHealthy: 3}, pod: newPod(unready), want: accountRefuse, why: "needs 3 healthy pods and has 2"},
		"not ready, of a budget that wants none":                    {status: policyv1.PodDisruptionBudgetStatus{ExpectedPods: 1}, pod: newPod(unready), want: accountUnhealthy},
		"ready, of a budget that wants none":                        {status: policyv1.PodDisruptionBudgetStatus{ExpectedPods: 1, CurrentHealthy: 1, DisruptionsAllowed: 1}, pod: newPod(), want: accountCharge},
		"not ready, of a budget that wants none, evicted":           {status: policyv1.PodDisruptionBudgetStatus{ExpectedPods: 1}, pod: newPod(unready), how: byEviction, want: accountRefuse, why: "needs 0 healthy pods and has 0"},
		"not ready, nothing counted yet":                            {policy: ifHealthy, pod: newPod(unready), want: accountRefuse, why: "needs 0 healthy pods and has 0"},
		"ready, always allowed is for those that are not":           {policy: always, status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 3}, pod: newPod(), want: accountRefuse, why: "needs 3 healthy pods and has 3"},
		"ready, as many as wanted: the unready's policy is not his": {policy: ifHealthy, status: policyv1.PodDisruptionBudgetStatus{CurrentHealthy: 3, DesiredHealthy: 3}, pod: newPod(), want: accountRefuse, why: "needs 3 healthy pods and has 3"},
	} {
		t.Run(name, func(t *testing.T) {
			budget := newBudget("web", matching("app", "web"))
			budget.Generation, budget.Spec.UnhealthyPodEvictionPolicy, budget.Status = test.generation, test.policy, test.status
			got, why := judge(budget, test.pod, cmp.Or(test.how, byDelete), noon)
			require.Equal(t, test.want, got)
			require.Equal(t, test.why, why)
		})
	}
}

func TestTheLastDisruptionTurnsTheCondition(t *testing.T) {
	budget := newBudget("web", matching("app", "web"))
	budget.Status.DisruptionsAllowed = 2
	once := charge(budget, "web-1", noon)
	require.Empty(t, once.Status.Conditions)
	twice := charge(once, "web-2", noon)
	require.Equal(t, policyv1.InsufficientPodsReason, twice.Status.Conditions[0].Reason)
	require.Equal(t, map[string]metav1.Time{"web-1": metav1.NewTime(noon), "web-2": metav1.NewTime(noon)}, twice.Status.DisruptedPods)
	require.EqualValues(t, 2, budget.Status.DisruptionsAllowed, "the original is not changed")
	require.Empty(t, budget.Status.DisruptedPods)
}
