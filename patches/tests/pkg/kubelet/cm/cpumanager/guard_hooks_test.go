package cpumanager

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/cpumanager/state"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
	"k8s.io/utils/cpuset"
)

// What a pod uses that only the runtime knows is not given to the next pod.
func TestGuardExclusiveCPUsOfARunningOrphan(t *testing.T) {
	records := []struct {
		name string
		// assigned: the container has CPUs of its own; listed: the manager knows its ID.
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
				policy, err := NewStaticPolicy(logger, topoSingleSocketHT, 1, cpuset.New(), newGuardTestTopology(logger), nil)
				if err != nil {
					t.Fatal(err)
				}
				m := &manager{
					policy:            policy,
					state:             state.NewMemoryState(logger),
					lastUpdateState:   state.NewMemoryState(logger),
					containerRuntime:  mockRuntimeService{},
					containerMap:      containermap.NewContainerMap(),
					activePods:        func() []*v1.Pod { return nil },
					podStatusProvider: mockPodStatusProvider{},
					sourcesReady:      &sourcesReadyStub{},
				}
				m.state.SetDefaultCPUSet(cpuset.New(0, 1, 2, 3, 4, 5, 6, 7))
				if record.assigned {
					m.state.SetDefaultCPUSet(cpuset.New(0, 2, 3, 4, 6, 7))
					m.state.SetCPUSet(string(pod.UID), "server", cpuset.New(1, 5))
				}
				if record.listed {
					m.containerMap.Add(string(pod.UID), "server", "server-id")
				}
				expectKept := func(kept bool) {
					t.Helper()
					_, assigned := m.state.GetCPUSet(string(pod.UID), "server")
					if want := record.assigned && kept; assigned != want {
						t.Errorf("the container has CPUs of its own: %v, want %v", assigned, want)
					}
					if got, want := cpuset.New(1, 5).IsSubsetOf(m.state.GetDefaultCPUSet()), !(record.assigned && kept); got != want {
						t.Errorf("its CPUs are free: %v, want %v", got, want)
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

// What a container of an active pod no longer uses is freed as without the guard.
func TestGuardExclusiveCPUsOfAContainerThatAnActivePodHasNoLonger(t *testing.T) {
	logger, _ := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	pod := guardtest.NewPod()
	guardtest.Protect(pod)
	node.Run(pod)
	policy, err := NewStaticPolicy(logger, topoSingleSocketHT, 1, cpuset.New(), newGuardTestTopology(logger), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{
		policy:           policy,
		state:            state.NewMemoryState(logger),
		lastUpdateState:  state.NewMemoryState(logger),
		containerMap:     containermap.NewContainerMap(),
		containerRuntime: mockRuntimeService{},
		activePods:       func() []*v1.Pod { return []*v1.Pod{pod} },
		sourcesReady:     &sourcesReadyStub{},
	}
	m.state.SetCPUSet(string(pod.UID), "gone", cpuset.New(1, 5))

	m.removeStaleState(logger)

	if _, assigned := m.state.GetCPUSet(string(pod.UID), "gone"); assigned {
		t.Error("the CPUs of a container that is gone are not freed")
	}
	node.ExpectHolds(t, pod.UID)
}
