package status

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/kubelet/guard"
)

func withKillRefused(status v1.PodStatus, value v1.ConditionStatus) v1.PodStatus {
	status.Conditions = append(status.Conditions, v1.PodCondition{Type: guard.PodKillRefused, Status: value, Reason: "Evicted"})
	return status
}

func TestGuardConditionSurvivesTheMergeOfStatuses(t *testing.T) {
	old := getPodStatus()
	merged := mergePodStatus(&v1.Pod{Status: old}, old, withKillRefused(getPodStatus(), v1.ConditionTrue), true)

	if _, condition := podutil.GetPodConditionFromList(merged.Conditions, guard.PodKillRefused); condition == nil || condition.Status != v1.ConditionTrue {
		t.Errorf("condition %s: %v, want True", guard.PodKillRefused, condition)
	}
}

func TestGuardConditionIsRemovedWhenTheHoldEnds(t *testing.T) {
	old := withKillRefused(getPodStatus(), v1.ConditionTrue)
	merged := mergePodStatus(&v1.Pod{Status: old}, old, getPodStatus(), true)

	if _, condition := podutil.GetPodConditionFromList(merged.Conditions, guard.PodKillRefused); condition != nil {
		t.Errorf("condition %s is still there: %v", guard.PodKillRefused, condition)
	}
}

func TestGuardConditionIsNotDoubled(t *testing.T) {
	old := withKillRefused(getPodStatus(), v1.ConditionTrue)
	merged := mergePodStatus(&v1.Pod{Status: old}, old, withKillRefused(getPodStatus(), v1.ConditionTrue), true)

	n := 0
	for _, c := range merged.Conditions {
		if c.Type == guard.PodKillRefused {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d conditions %s, want one", n, guard.PodKillRefused)
	}
}
