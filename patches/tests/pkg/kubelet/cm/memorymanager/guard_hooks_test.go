package memorymanager

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/memorymanager/state"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// freeingPolicy takes the memory blocks of removed containers out of the state, as the
// static policy does.
type freeingPolicy struct{ mockPolicy }

func (p *freeingPolicy) RemoveContainer(_ klog.Logger, s state.State, podUID, containerName string) {
	s.Delete(podUID, containerName)
}

// What a pod uses that only the runtime knows is not given to the next pod.
func TestGuardMemoryBlocksOfARunningOrphan(t *testing.T) {
	records := []struct {
		name string
		// assigned: the container has memory of its own; listed: the manager knows its ID.
		assigned, listed bool
	}{
		{name: "assignment", assigned: true},
		{name: "container", listed: true},
		{name: "both", assigned: true, listed: true},
	}
	for _, record := range records {
		for _, kind := range guardtest.Kinds() {
			t.Run(record.name+"/"+kind.Name, func(t *testing.T) {
				logger, _ := ktesting.NewTestContext(t)
				node := guardtest.Install(t)
				pod := guardtest.NewPod()
				node.RunOrphan(kind, pod)
				m := &manager{
					policy:            &freeingPolicy{},
					state:             state.NewMemoryState(logger),
					containerMap:      containermap.NewContainerMap(),
					containerRuntime:  mockRuntimeService{},
					activePods:        func() []*v1.Pod { return nil },
					podStatusProvider: mockPodStatusProvider{},
					sourcesReady:      &sourcesReadyStub{},
				}
				if record.assigned {
					m.state.SetMemoryBlocks(string(pod.UID), "server", []state.Block{{NUMAAffinity: []int{0}, Type: v1.ResourceMemory, Size: gb}})
				}
				if record.listed {
					m.containerMap.Add(string(pod.UID), "server", "server-id")
				}
				expectKept := func(kept bool) {
					t.Helper()
					if got, want := len(m.state.GetMemoryBlocks(string(pod.UID), "server")) == 1, record.assigned && kept; got != want {
						t.Errorf("the container has memory of its own: %v, want %v", got, want)
					}
					_, err := m.containerMap.GetContainerID(string(pod.UID), "server")
					if want := record.listed && kept; (err == nil) != want {
						t.Errorf("the container is known: %v, want %v", err == nil, want)
					}
				}

				m.removeStaleState(logger)

				expectKept(kind.Kept)
				if !kind.Kept {
					node.ExpectHolds(t, pod.UID)
					return
				}
				node.ExpectHolds(t, pod.UID, guard.ResourcesReclaimed)

				node.AskDeletion(pod)
				m.removeStaleState(logger)
				expectKept(false)
				node.ExpectHolds(t, pod.UID)
			})
		}
	}
}
