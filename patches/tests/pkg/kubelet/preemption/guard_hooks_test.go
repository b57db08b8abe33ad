package preemption

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// newGuardTestVictim returns a pod that upstream would preempt for 100m CPU.
func newGuardTestVictim() *v1.Pod {
	victim := getTestPods()[burstable].DeepCopy()
	victim.UID = "victim-uid"
	return victim
}

func TestGuardPreemption(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			victim := newGuardTestVictim()
			kind.Change(victim)
			node.Run(victim)
			pods, killer := newFakePodProvider(), newFakePodKiller(false)
			pods.setPods([]*v1.Pod{victim})
			handler := getTestCriticalPodAdmissionHandler(pods, killer)

			_, err := admitCritical(ctx, handler, getTestPods()[clusterCritical], getPredicateFailureReasons(0, 100, 0, false))

			// Upstream counts static and mirror pods as critical and does not preempt
			// them either; what matters is that the guard has nothing to do with it.
			_, isStatic := victim.Annotations["kubernetes.io/config.mirror"]
			isStatic = isStatic || victim.Annotations["kubernetes.io/config.source"] == "file"
			if want := !kind.Kept && !isStatic; (len(killer.getKilledPods()) == 1) != want {
				t.Errorf("killed %v, want the victim killed: %v", killer.getKilledPods(), want)
			}
			// Nobody made room, so the critical pod must not be admitted.
			if wantErr := kind.Kept || isStatic; (err != nil) != wantErr {
				t.Errorf("error: %v, want one: %v", err, wantErr)
			}
			if kind.Kept {
				node.ExpectHolds(t, victim.UID, guard.Preempted)
			} else {
				node.ExpectHolds(t, victim.UID)
			}
		})
	}
}

func TestGuardPreemptionTakesAnotherVictim(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	// Upstream prefers the one whose request is nearer to what is needed.
	victim := newGuardTestVictim()
	guardtest.Protect(victim)
	node.Run(victim)
	other := getTestPods()[highRequestBurstable].DeepCopy()
	other.UID = "other-uid"
	pods, killer := newFakePodProvider(), newFakePodKiller(false)
	pods.setPods([]*v1.Pod{victim, other})
	handler := getTestCriticalPodAdmissionHandler(pods, killer)

	reasons, err := admitCritical(ctx, handler, getTestPods()[clusterCritical], getPredicateFailureReasons(0, 100, 0, false))

	if err != nil || len(reasons) != 0 {
		t.Errorf("the critical pod is not admitted: %v, %v", reasons, err)
	}
	if killed := killer.getKilledPods(); len(killed) != 1 || killed[0].UID != other.UID {
		t.Errorf("killed %v, want %s", killed, other.Name)
	}
	node.ExpectHolds(t, victim.UID, guard.Preempted)
}

func TestGuardPreemptionLeavesAloneWhatIsNoVictim(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	protected := getTestPods()[highRequestBurstable].DeepCopy()
	protected.UID = "protected-uid"
	guardtest.Protect(protected)
	node.Run(protected)
	victim := newGuardTestVictim()
	pods, killer := newFakePodProvider(), newFakePodKiller(false)
	pods.setPods([]*v1.Pod{protected, victim})
	handler := getTestCriticalPodAdmissionHandler(pods, killer)

	if _, err := admitCritical(ctx, handler, getTestPods()[clusterCritical], getPredicateFailureReasons(0, 100, 0, false)); err != nil {
		t.Errorf("the critical pod is not admitted: %v", err)
	}
	if killed := killer.getKilledPods(); len(killed) != 1 || killed[0].UID != victim.UID {
		t.Errorf("killed %v, want %s", killed, victim.Name)
	}
	// Nobody tried to stop it.
	node.ExpectHolds(t, protected.UID)
}

// After a restart with less room critical pods are admitted again, too. One that runs
// is not rejected because only protected pods could make room: both ran there before.
func TestGuardPreemptionForACriticalPodThatRuns(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		for _, runs := range []bool{true, false} {
			t.Run(kind.Name+map[bool]string{true: "/critical pod runs", false: "/critical pod has not started"}[runs], func(t *testing.T) {
				ctx := ktesting.Init(t)
				node := guardtest.Install(t)
				victim := newGuardTestVictim()
				kind.Change(victim)
				node.Run(victim)
				critical := getTestPods()[clusterCritical].DeepCopy()
				if runs {
					critical.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "agent", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
				}
				pods, killer := newFakePodProvider(), newFakePodKiller(false)
				pods.setPods([]*v1.Pod{victim})
				handler := getTestCriticalPodAdmissionHandler(pods, killer)

				reasons, err := admitCritical(ctx, handler, critical, getPredicateFailureReasons(0, 100, 0, false))

				// Upstream preempts no static and no mirror pod and then rejects.
				isStatic := victim.Annotations["kubernetes.io/config.mirror"] != "" || victim.Annotations["kubernetes.io/config.source"] == "file"
				if want := !isStatic && (!kind.Kept || runs); (err == nil && len(reasons) == 0) != want {
					t.Errorf("reasons %v, error %v; want the critical pod admitted: %v", reasons, err, want)
				}
				if want := !isStatic && !kind.Kept; (len(killer.getKilledPods()) == 1) != want {
					t.Errorf("killed %v, want the victim killed: %v", killer.getKilledPods(), want)
				}
			})
		}
	}
}
