package status

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	core "k8s.io/client-go/testing"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
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

// A vanished pod has no object that its status could be written to: it is not looked for,
// and the successor that has its name does not cost it its status, which probes need.
func TestGuardStatusOfAVanishedPodIsKept(t *testing.T) {
	logger, ctx := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	pod := getTestPod()
	pod.Spec.Containers = []v1.Container{{Name: "c"}}
	successor := getTestPod()
	successor.UID = types.UID("successor")
	client := fake.NewClientset(successor)
	syncer := newTestManager(client)
	syncer.podManager.(mutablePodManager).UpdatePod(pod)
	syncer.podManager.(mutablePodManager).AddPod(successor)

	node.Vanish(t, pod)
	syncer.SetPodStatus(logger, pod, getRandomPodStatus())
	for range 3 {
		syncer.testSyncBatch(ctx)
	}
	verifyActions(t, syncer, nil)
	if _, found := syncer.GetPodStatus(pod.UID); !found {
		t.Errorf("the status of the vanished pod is gone")
	}
}

func TestGuardStatusIsWrittenWhenTheObjectIsBack(t *testing.T) {
	logger, ctx := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	pod := getTestPod()
	pod.Spec.Containers = []v1.Container{{Name: "c"}}
	client := fake.NewClientset(pod)
	syncer := newTestManager(client)
	node.Vanish(t, pod)
	syncer.SetPodStatus(logger, pod, getRandomPodStatus())
	syncer.testSyncBatch(ctx)
	verifyActions(t, syncer, nil)

	node.Appear(pod)
	syncer.testSyncBatch(ctx)
	verifyActions(t, syncer, []core.Action{getAction(), patchAction()})
}
