package dra

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/kubelet/cm/dra/state"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// readySources is a kubelet that has heard of all of its pods.
type readySources struct{}

func (readySources) AddSource(string) {}

func (readySources) AllReady() bool { return true }

// The resource claims of a pod that only the runtime knows are not unprepared.
func TestGuardResourceClaimsOfARunningOrphan(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			pod := guardtest.NewPod()
			node.RunOrphan(kind, pod)
			m, err := NewManager(ctx.Logger(), fake.NewClientset(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			m.activePods = func() []*v1.Pod { return nil }
			m.sourcesReady = readySources{}
			// Without the state of a driver there is no driver to call; the claim is forgotten.
			m.cache.add(&ClaimInfo{ClaimInfoState: state.ClaimInfoState{
				ClaimUID: "claim-uid", ClaimName: "card", Namespace: pod.Namespace, PodUIDs: sets.New(string(pod.UID)),
			}})

			m.reconcileLoop(ctx)

			if got := m.cache.contains("card", pod.Namespace); got != kind.Kept {
				t.Errorf("the claim is prepared: %v, want %v", got, kind.Kept)
			}
			if !kind.Kept {
				node.ExpectHolds(t, pod.UID)
				return
			}
			node.ExpectHolds(t, pod.UID, guard.ResourcesReclaimed)

			node.AskDeletion(pod)
			m.reconcileLoop(ctx)
			if m.cache.contains("card", pod.Namespace) {
				t.Error("the claim is still prepared although the deletion is explicit")
			}
			node.ExpectHolds(t, pod.UID)
		})
	}
}
