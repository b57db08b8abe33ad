package nodeshutdown

import (
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2/ktesting"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	testingclock "k8s.io/utils/clock/testing"
)

// newGuardTestManager returns a manager that shuts down the pods, and the names of
// those that it killed.
func newGuardTestManager(t *testing.T, pods ...*v1.Pod) (m *managerImpl, killed func() []string) {
	logger, _ := ktesting.NewTestContext(t)
	var mu sync.Mutex
	var names []string
	m = &managerImpl{
		logger:   logger,
		recorder: &record.FakeRecorder{},
		getPods:  func() []*v1.Pod { return pods },
		dbusCon:  &fakeDbus{},
		podManager: &podManager{
			logger:        logger,
			volumeManager: volumemanager.NewFakeVolumeManager(nil, 0, nil, false),
			shutdownGracePeriodByPodPriority: []kubeletconfig.ShutdownGracePeriodByPodPriority{
				{Priority: 0, ShutdownGracePeriodSeconds: 10},
			},
			killPodFunc: func(pod *v1.Pod, _ bool, _ *int64, _ func(*v1.PodStatus)) error {
				mu.Lock()
				defer mu.Unlock()
				names = append(names, pod.Name)
				return nil
			},
			clock: testingclock.NewFakeClock(time.Now()),
		},
	}
	return m, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return names
	}
}

func TestGuardNodeShutdown(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			node := guardtest.Install(t)
			pod := makePod("web", 1, nil)
			kind.Change(pod)
			node.Run(pod)
			m, killed := newGuardTestManager(t, pod)

			if err := shutDown(t, m); err != nil {
				t.Fatalf("processShutdownEvent: %v", err)
			}

			if got := len(killed()) == 1; got == kind.Kept {
				t.Errorf("killed: %v, want kept: %v", killed(), kind.Kept)
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.NodeShutdown)
			} else {
				node.ExpectHolds(t, pod.UID)
			}
		})
	}
}

func TestGuardNodeShutdownStopsTheOthers(t *testing.T) {
	node := guardtest.Install(t)
	kept, other := makePod("kept", 1, nil), makePod("other", 1, nil)
	guardtest.Protect(kept)
	node.Run(kept)
	m, killed := newGuardTestManager(t, kept, other)

	if err := shutDown(t, m); err != nil {
		t.Fatalf("processShutdownEvent: %v", err)
	}

	if got := killed(); len(got) != 1 || got[0] != "other" {
		t.Errorf("killed %v, want other only", got)
	}
}

func TestGuardNodeShutdownThatIsAllowedByConfiguration(t *testing.T) {
	node := guardtest.Install(t, func(c *guard.Configuration) { c.AllowedCauses = []guard.Cause{guard.NodeShutdown} })
	pod := makePod("web", 1, nil)
	guardtest.Protect(pod)
	node.Run(pod)
	m, killed := newGuardTestManager(t, pod)

	if err := shutDown(t, m); err != nil {
		t.Fatalf("processShutdownEvent: %v", err)
	}

	if got := killed(); len(got) != 1 {
		t.Errorf("killed %v, want the pod to get its graceful stop", got)
	}
	node.ExpectHolds(t, pod.UID)
}
