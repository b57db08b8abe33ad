package kubelet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/record"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/test/utils/ktesting"
	testingclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"k8s.io/klog/v2"
)

// The functions of the newest minor version are called. Where those of an older one have
// other parameters, its guard_minor_test.go has methods that hide them.

// guardTestWorkers are the pod workers.
type guardTestWorkers struct{ *podWorkers }

// guardTestKubelet is the kubelet.
type guardTestKubelet struct{ *Kubelet }

// newGuardTestPod returns a pod with one container.
func newGuardTestPod() *v1.Pod {
	pod := newNamedPod("web-uid", "shop", "web", false)
	pod.CreationTimestamp = metav1.Now()
	pod.Spec.RestartPolicy = v1.RestartPolicyAlways
	pod.Spec.Containers = []v1.Container{{Name: "server", Image: "server:1"}}
	return pod
}

// runningStatus is the status by the runtime of a pod whose containers run.
func runningStatus(pod *v1.Pod) *kubecontainer.PodStatus {
	status := &kubecontainer.PodStatus{ID: pod.UID, Name: pod.Name, Namespace: pod.Namespace}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, &kubecontainer.Status{
			ID:        kubecontainer.ContainerID{Type: "test", ID: c.Name},
			Name:      c.Name,
			State:     kubecontainer.ContainerStateRunning,
			StartedAt: time.Now(),
		})
	}
	return status
}

// observe shows the pod to the guard, and its deletion when there is one.
func observe(node *guardtest.Node, pod *v1.Pod) {
	node.Appear(pod)
	if pod.DeletionTimestamp != nil {
		guard.RefuseTermination(pod, false, false, false)
	}
}

// killed reports whether the records have a termination. A refused kill is an
// ordinary sync, without a grace period.
func killed(records []syncPodRecord) bool {
	for _, r := range records {
		if r.gracePeriod != nil || r.runningPod != nil || r.terminated {
			return true
		}
	}
	return false
}

func TestGuardTermination(t *testing.T) {
	attempts := []struct {
		name string
		// prepare changes the pod before the worker sees it for the first time.
		prepare func(*v1.Pod)
		kill    *KillPodOptions
		cause   guard.Cause
	}{
		{name: "eviction", kill: &KillPodOptions{Evict: true}, cause: guard.Evicted},
		{name: "removal from the source", kill: &KillPodOptions{}, cause: guard.PodVanished},
		{name: "phase Failed in the API", prepare: func(pod *v1.Pod) { pod.Status.Phase = v1.PodFailed }, cause: guard.TerminalPhaseReported},
		{name: "phase Succeeded in the API", prepare: func(pod *v1.Pod) { pod.Status.Phase = v1.PodSucceeded }, cause: guard.TerminalPhaseReported},
	}
	for _, attempt := range attempts {
		for _, kind := range guardtest.Kinds() {
			t.Run(attempt.name+"/"+kind.Name, func(t *testing.T) {
				logger, ctx := ktesting.NewTestContext(t)
				node := guardtest.Install(t)
				pod := newGuardTestPod()
				kind.Change(pod)
				node.Run(pod)
				workers, runtime, processed := newGuardTestWorkers(logger)
				runtime.PodStatus = *runningStatus(pod)
				if attempt.prepare != nil {
					attempt.prepare(pod)
				}

				workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodCreate, Pod: pod})
				drainAllWorkers(workers.podWorkers)
				if attempt.kill != nil {
					done := make(chan struct{})
					options := *attempt.kill
					options.CompletedCh = done
					workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodKill, Pod: pod, KillPodOptions: &options})
					drainAllWorkers(workers.podWorkers)
					if kind.Kept {
						select {
						case <-done:
						default:
							t.Error("the caller of the kill is still waiting for the result")
						}
					}
				}

				if got := !workers.IsPodTerminationRequested(pod.UID); got != kind.Kept {
					t.Errorf("kept: %v, want %v", got, kind.Kept)
				}
				if !kind.Kept {
					node.ExpectHolds(t, pod.UID)
					return
				}
				if killed(processed[pod.UID]) {
					t.Errorf("records %+v, want no kill", processed[pod.UID])
				}
				node.ExpectHolds(t, pod.UID, attempt.cause)
				if workers.podSyncStatuses[pod.UID].evicted {
					t.Error("the worker remembers the pod as evicted")
				}

				// Deletion ends the hold and the pod.
				guardtest.Delete(pod)
				workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodUpdate, Pod: pod})
				drainAllWorkers(workers.podWorkers)
				if !killed(processed[pod.UID]) {
					t.Errorf("the deleted pod was not terminated: %+v", processed[pod.UID])
				}
				node.ExpectHolds(t, pod.UID)
			})
		}
	}
}

func TestGuardTerminationOfPodThatThePodWorkersAreToldToForget(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, ctx := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)
			observe(node, pod)
			workers, _, processed := newGuardTestWorkers(logger)
			workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodCreate, Pod: pod})
			drainAllWorkers(workers.podWorkers)

			known := workers.SyncKnownPods(logger, nil)
			drainAllWorkers(workers.podWorkers)

			if got := !killed(processed[pod.UID]); got != kind.Kept {
				t.Errorf("records %+v, want a kill: %v", processed[pod.UID], !kind.Kept)
			}
			if !kind.Kept {
				node.ExpectHolds(t, pod.UID)
				return
			}
			node.ExpectHolds(t, pod.UID, guard.PodVanished)
			if sync, ok := known[pod.UID]; !ok || sync.State != SyncPod {
				t.Errorf("the worker is reported as %v, %v; housekeeping would clean up after the pod", sync, ok)
			}
		})
	}
}

func TestGuardTerminationOfRuntimePod(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, ctx := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)
			if pod.DeletionTimestamp != nil {
				observe(node, pod)
			}
			workers, runtime, processed := newGuardTestWorkers(logger)
			running := &kubecontainer.Pod{ID: pod.UID, Name: pod.Name, Namespace: pod.Namespace}
			runtime.PodList = []*containertest.FakePod{{Pod: running}}

			workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodKill, RunningPod: running, KillPodOptions: &KillPodOptions{}})

			if !kind.Kept {
				drainAllWorkers(workers.podWorkers)
				if !killed(processed[pod.UID]) {
					t.Errorf("records %+v, want a kill", processed[pod.UID])
				}
				node.ExpectHolds(t, pod.UID)
				return
			}
			node.ExpectHolds(t, pod.UID, guard.OrphanedRuntimePod)
			// An entry without an object never ends, and an object that comes back
			// would find it.
			workers.podLock.Lock()
			status, known := workers.podSyncStatuses[pod.UID]
			workers.podLock.Unlock()
			if known {
				t.Errorf("the pod workers have an entry for a pod without an object: %+v", status)
			}
		})
	}
}

// What is left of a pod that ended by itself is cleaned up: its sidecars, its
// cgroup, its volumes.
func TestGuardLetsAPodEndThatCompleted(t *testing.T) {
	logger, ctx := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	// The sidecar still runs.
	node.Run(pod)
	observe(node, pod)
	workers, _, processed := newGuardTestWorkers(logger)
	workers.completeAtOnce()

	workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodCreate, Pod: pod})
	drainAllWorkers(workers.podWorkers)

	if !killed(processed[pod.UID]) {
		t.Errorf("the completed pod was not terminated: %+v", processed[pod.UID])
	}
	for _, cause := range []guard.Cause{guard.RuntimeStop, guard.CgroupCleanup, guard.VolumeUnmount} {
		if guard.RefuseUID(pod.UID, cause, "") {
			t.Errorf("the guard refuses %s of a pod that ended by itself", cause)
		}
	}
	node.ExpectHolds(t, pod.UID)
}

func TestGuardKillPodNow(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, ctx := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)
			workers, _, processed := newGuardTestWorkers(logger)
			if pod.DeletionTimestamp == nil {
				workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodCreate, Pod: pod})
				drainAllWorkers(workers.podWorkers)
			}

			err := workers.killPodNow(ctx)(pod, false, nil, nil)

			drainAllWorkers(workers.podWorkers)
			if got := errors.Is(err, guard.ErrRefused); got != kind.Kept || (err != nil) != kind.Kept {
				t.Errorf("error %v, want a refusal: %v", err, kind.Kept)
			}
			if got := !killed(processed[pod.UID]); got != kind.Kept {
				t.Errorf("records %+v, want a kill: %v", processed[pod.UID], !kind.Kept)
			}
		})
	}
}

func TestGuardKillPod(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)

			err := testKubelet.kubelet.killPod(ctx, pod, kubecontainer.Pod{ID: pod.UID}, nil)

			if got := errors.Is(err, guard.ErrRefused); got != kind.Kept || (err != nil) != kind.Kept {
				t.Errorf("error %v, want a refusal: %v", err, kind.Kept)
			}
			if got := len(testKubelet.fakeRuntime.KilledPods) == 0; got != kind.Kept {
				t.Errorf("killed %v, want kept: %v", testKubelet.fakeRuntime.KilledPods, kind.Kept)
			}
		})
	}
}

// A pod without an object is known from its sandbox.
func TestGuardKillPodThatIsKnownFromTheRuntime(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	defer testKubelet.Cleanup()
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)

	err := testKubelet.kubelet.SyncTerminatingRuntimePod(ctx, &kubecontainer.Pod{ID: pod.UID, Name: pod.Name, Namespace: pod.Namespace})

	if !errors.Is(err, guard.ErrRefused) || len(testKubelet.fakeRuntime.KilledPods) != 0 {
		t.Errorf("error %v, killed %v; want a refusal", err, testKubelet.fakeRuntime.KilledPods)
	}
}

func TestGuardActiveDeadline(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			node := guardtest.Install(t)
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)
			clock := testingclock.NewFakeClock(time.Now())
			started := metav1.NewTime(clock.Now().Add(-time.Minute))
			pod.Status.StartTime = &started
			pod.Spec.ActiveDeadlineSeconds = ptr.To(int64(30))
			handler, err := newActiveDeadlineHandler(&mockPodStatusProvider{pods: []*v1.Pod{pod}}, &record.FakeRecorder{}, clock)
			if err != nil {
				t.Fatal(err)
			}

			evicts := handler.ShouldEvict(pod).Evict

			if evicts == kind.Kept {
				t.Errorf("evicted: %v, want kept: %v", evicts, kind.Kept)
			}
			// Or the pod would be synced every second for ever.
			if syncs := handler.ShouldSync(pod); syncs == kind.Kept {
				t.Errorf("synced because of its deadline: %v, want kept: %v", syncs, kind.Kept)
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.ActiveDeadlineExceeded)
			} else {
				node.ExpectHolds(t, pod.UID)
			}
		})
	}
}

func TestGuardActiveDeadlineThatHasNotPassed(t *testing.T) {
	node := guardtest.Install(t)
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	started := metav1.Now()
	pod.Status.StartTime = &started
	pod.Spec.ActiveDeadlineSeconds = ptr.To(int64(3600))
	handler, err := newActiveDeadlineHandler(&mockPodStatusProvider{pods: []*v1.Pod{pod}}, &record.FakeRecorder{}, testingclock.NewFakeClock(time.Now()))
	if err != nil {
		t.Fatal(err)
	}

	if handler.ShouldEvict(pod).Evict {
		t.Error("evicted before its deadline")
	}
	node.ExpectHolds(t, pod.UID)
}

// A pod that deadline or API have called failed is not what the status says: the
// containers run.
func TestGuardStatusOfHeldPodStaysRunning(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	defer testKubelet.Cleanup()
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	started := metav1.NewTime(testKubelet.fakeClock.Now().Add(-time.Minute))
	pod.Status.StartTime = &started
	pod.Spec.ActiveDeadlineSeconds = ptr.To(int64(30))

	status := guardTestKubelet{testKubelet.kubelet}.generateAPIPodStatus(ctx, pod, runningStatus(pod), false)

	if status.Phase != v1.PodRunning {
		t.Errorf("phase %s, want Running", status.Phase)
	}
	_, condition := podutil.GetPodConditionFromList(status.Conditions, guard.PodKillRefused)
	if condition == nil || condition.Status != v1.ConditionTrue || condition.Reason != string(guard.ActiveDeadlineExceeded) || !strings.Contains(condition.Message, "since") {
		t.Errorf("condition %s: %+v, want True because of %s, with the time", guard.PodKillRefused, condition, guard.ActiveDeadlineExceeded)
	}

	guardtest.Delete(pod)
	guard.RefuseTermination(pod, false, false, false)
	status = guardTestKubelet{testKubelet.kubelet}.generateAPIPodStatus(ctx, pod, runningStatus(pod), false)
	if _, condition := podutil.GetPodConditionFromList(status.Conditions, guard.PodKillRefused); condition != nil && condition.Status == v1.ConditionTrue {
		t.Errorf("condition %s of a pod that is no longer held: %+v", guard.PodKillRefused, condition)
	}
}

// Without its addresses the pod would leave its endpoints.
func TestGuardStatusOfPodWithoutSandboxKeepsItsAddresses(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	defer testKubelet.Cleanup()
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	pod.Status.PodIP = "192.0.2.1"
	pod.Status.PodIPs = []v1.PodIP{{IP: "192.0.2.1"}}
	if !guard.RefuseSandboxChange(pod, 1) {
		t.Fatal("the guard did not refuse")
	}

	status := guardTestKubelet{testKubelet.kubelet}.generateAPIPodStatus(ctx, pod, runningStatus(pod), false)

	if status.PodIP != "192.0.2.1" || len(status.PodIPs) != 1 {
		t.Errorf("addresses %q, %v; want those from before", status.PodIP, status.PodIPs)
	}
}

func TestGuardNodeConditionFollowsTheHolds(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	defer testKubelet.Cleanup()
	kubelet := guardTestKubelet{testKubelet.kubelet}
	setGuardTestMachine(kubelet.Kubelet)
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	object := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: testKubeletHostname}, Status: v1.NodeStatus{Capacity: v1.ResourceList{}, Allocatable: v1.ResourceList{}}}
	expect := func(want v1.ConditionStatus) {
		t.Helper()
		kubelet.setNodeStatus(ctx, object)
		var got []v1.ConditionStatus
		for _, c := range object.Status.Conditions {
			if c.Type == guard.NodeHoldingPods {
				got = append(got, c.Status)
			}
		}
		if len(got) != 1 || got[0] != want {
			t.Errorf("condition %s: %v, want one that is %s", guard.NodeHoldingPods, got, want)
		}
	}

	expect(v1.ConditionFalse)
	guard.Refuse(pod, guard.Evicted, "memory")
	expect(v1.ConditionTrue)
	guardtest.Delete(pod)
	guard.RefuseTermination(pod, false, false, false)
	expect(v1.ConditionFalse)
}

// cgrouplessManager is a container manager whose pods have no cgroup.
type cgrouplessManager struct {
	*cm.FakeContainerManager
	pods *cgrouplessPods
}

func (m *cgrouplessManager) NewPodContainerManager() cm.PodContainerManager { return m.pods }

type cgrouplessPods struct {
	*cm.FakePodContainerManager
	created int
}

func (p *cgrouplessPods) Exists(*v1.Pod) bool { return p.created > 0 }

func (p *cgrouplessPods) EnsureExists(klog.Logger, *v1.Pod) error {
	p.created++
	return nil
}

func TestGuardSyncPodWithoutCgroup(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			kubelet := guardTestKubelet{testKubelet.kubelet}
			kubelet.volumeManager = volumemanager.NewFakeVolumeManager(nil, 0, nil, false)
			pods := &cgrouplessPods{FakePodContainerManager: cm.NewFakePodContainerManager()}
			kubelet.containerManager = &cgrouplessManager{FakeContainerManager: testKubelet.fakeContainerManager, pods: pods}
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)

			_, _, err := kubelet.SyncPod(ctx, kubetypes.SyncPodUpdate, pod, nil, runningStatus(pod))

			if err != nil {
				t.Fatalf("SyncPod: %v", err)
			}
			if got := len(testKubelet.fakeRuntime.KilledPods) == 0; got != kind.Kept {
				t.Errorf("killed %v, want kept: %v", testKubelet.fakeRuntime.KilledPods, kind.Kept)
			}
			if pods.created != 1 {
				t.Errorf("the cgroup was made %d times, want once", pods.created)
			}
			if len(testKubelet.fakeRuntime.StartedPods) != 1 {
				t.Error("the sync did not go on to the containers")
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.PodCgroupMissing)
			} else {
				node.ExpectHolds(t, pod.UID)
			}
		})
	}
}

func TestGuardSyncPodBeyondTheVolumeAttachLimit(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			kubelet := guardTestKubelet{testKubelet.kubelet}
			kubelet.volumeManager = volumemanager.NewFakeVolumeManager(nil, 0, nil, true)
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)

			isTerminal, _, err := kubelet.SyncPod(ctx, kubetypes.SyncPodUpdate, pod, nil, runningStatus(pod))

			if isTerminal == kind.Kept || (err != nil) != kind.Kept {
				t.Errorf("terminal: %v, error: %v; want the pod kept and the sync tried again: %v", isTerminal, err, kind.Kept)
			}
			status, _ := kubelet.statusManager.GetPodStatus(pod.UID)
			if want := map[bool]v1.PodPhase{true: v1.PodRunning, false: v1.PodFailed}[kind.Kept]; status.Phase != want {
				t.Errorf("phase %s, want %s", status.Phase, want)
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.VolumeLimitExceeded)
			} else {
				node.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// waitingVolumes is a volume manager some of whose volumes are never mounted.
type waitingVolumes struct {
	volumemanager.VolumeManager
	// limited: the last caller was not going to wait as long as it takes.
	limited bool
}

func (v *waitingVolumes) WaitForAttachAndMount(ctx context.Context, _ *v1.Pod) error {
	deadline, ok := ctx.Deadline()
	v.limited = ok && time.Until(deadline) < 10*time.Second
	return context.DeadlineExceeded
}

// The claims, secrets and tokens of a pod that is gone from the API cannot be
// read, so its containers would never be started again.
func TestGuardSyncPodOfVanishedPodGoesOnWithoutItsVolumes(t *testing.T) {
	for _, vanished := range []bool{true, false} {
		t.Run(map[bool]string{true: "vanished", false: "present"}[vanished], func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			kubelet := guardTestKubelet{testKubelet.kubelet}
			volumes := &waitingVolumes{VolumeManager: volumemanager.NewFakeVolumeManager(nil, 0, nil, false)}
			kubelet.volumeManager = volumes
			pod := newGuardTestPod()
			guardtest.Protect(pod)
			node.Run(pod)
			observe(node, pod)
			if vanished {
				guard.ObserveSource(kubetypes.ApiserverSource, nil)
				guard.HoldVanished(kubetypes.ApiserverSource, pod)
			}

			isTerminal, _, err := kubelet.SyncPod(ctx, kubetypes.SyncPodUpdate, pod, nil, runningStatus(pod))

			if isTerminal {
				t.Error("the pod counts as ended")
			}
			if (err == nil) != vanished || (len(testKubelet.fakeRuntime.StartedPods) == 1) != vanished {
				t.Errorf("error %v, synced %v; want the sync to go on: %v", err, testKubelet.fakeRuntime.StartedPods, vanished)
			}
			if volumes.limited != vanished {
				t.Errorf("the wait for the volumes was limited: %v, want %v", volumes.limited, vanished)
			}
		})
	}
}

// A container in an unknown state may run: it must not count as an exit that
// completes the pod.
func TestGuardSyncPodWithContainerInUnknownStateIsNoCompletion(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	defer testKubelet.Cleanup()
	kubelet := guardTestKubelet{testKubelet.kubelet}
	kubelet.volumeManager = volumemanager.NewFakeVolumeManager(nil, 0, nil, false)
	pod := newGuardTestPod()
	pod.Spec.RestartPolicy = v1.RestartPolicyNever
	guardtest.Protect(pod)
	node.Run(pod)
	// The status of the last sync: the container ran.
	pod.Status = kubelet.generateAPIPodStatus(ctx, pod, runningStatus(pod), false)
	unknown := runningStatus(pod)
	unknown.ContainerStatuses[0].State = kubecontainer.ContainerStateUnknown

	isTerminal, _, err := kubelet.SyncPod(ctx, kubetypes.SyncPodUpdate, pod, nil, unknown)

	if err != nil {
		t.Fatalf("SyncPod: %v", err)
	}
	if isTerminal {
		t.Error("the pod counts as completed, and will be torn down")
	}
}

func TestGuardCleanupOfOrphanedRuntimePod(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, ctx := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			kubelet := guardTestKubelet{testKubelet.kubelet}
			workers, _, processed := newGuardTestWorkers(logger)
			kubelet.podWorkers = workers.podWorkers
			kubelet.cgroupsPerQOS = true
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)
			if pod.DeletionTimestamp != nil {
				observe(node, pod)
			}
			running := &kubecontainer.Pod{ID: pod.UID, Name: pod.Name, Namespace: pod.Namespace}
			testKubelet.fakeRuntime.PodList = []*containertest.FakePod{{Pod: running}}
			cgroups := testKubelet.fakeContainerManager.PodContainerManager
			cgroups.AddPodFromCgroups(running)

			if err := kubelet.HandlePodCleanups(ctx); err != nil {
				t.Fatalf("HandlePodCleanups: %v", err)
			}
			drainAllWorkers(workers.podWorkers)

			if got := !killed(processed[pod.UID]); got != kind.Kept {
				t.Errorf("records %+v, want a kill: %v", processed[pod.UID], !kind.Kept)
			}
			if !kind.Kept {
				awaitCgroupRemoval(t, cgroups)
				node.ExpectHolds(t, pod.UID)
				return
			}
			node.ExpectHolds(t, pod.UID, guard.OrphanedRuntimePod)
			if len(cgroupNames(t, cgroups)) != 1 {
				t.Error("the cgroup of the orphan was removed")
			}
			// An entry without an object would never end.
			if _, known := workers.podSyncStatuses[pod.UID]; known {
				t.Error("the pod workers have an entry for the orphan")
			}

			// The object comes back: an ordinary pod again.
			workers.UpdatePod(ctx, UpdatePodOptions{UpdateType: kubetypes.SyncPodCreate, Pod: pod})
			drainAllWorkers(workers.podWorkers)
			if records := processed[pod.UID]; len(records) != 1 || records[0].updateType != kubetypes.SyncPodCreate {
				t.Errorf("records %+v after the object came back, want one sync", records)
			}
		})
	}
}

func TestGuardCleanupOfOrphanedPodCgroup(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)
			if pod.DeletionTimestamp != nil {
				observe(node, pod)
			}
			cgroups := testKubelet.fakeContainerManager.PodContainerManager
			cgroups.AddPodFromCgroups(&kubecontainer.Pod{ID: pod.UID, Name: pod.Name})

			guardTestKubelet{testKubelet.kubelet}.cleanupOrphanedPodCgroups(logger, cgroups, cgroupNames(t, cgroups), map[types.UID]sets.Empty{})

			if !kind.Kept {
				awaitCgroupRemoval(t, cgroups)
				node.ExpectHolds(t, pod.UID)
				return
			}
			// Destroy would run in a goroutine; the hold shows that it was not started.
			node.ExpectHolds(t, pod.UID, guard.CgroupCleanup)
			if len(cgroupNames(t, cgroups)) != 1 {
				t.Error("the cgroup was removed")
			}
		})
	}
}

// Nothing stands behind this clean-up: what cannot be found out counts in favour
// of the running pod.
func TestGuardCleanupOfCgroupWhileTheRuntimeDoesNotAnswer(t *testing.T) {
	logger, _ := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	defer testKubelet.Cleanup()
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	node.Runtime.InjectError("ListPodSandbox", errors.New("deadline exceeded"))
	cgroups := testKubelet.fakeContainerManager.PodContainerManager
	cgroups.AddPodFromCgroups(&kubecontainer.Pod{ID: pod.UID, Name: pod.Name})

	guardTestKubelet{testKubelet.kubelet}.cleanupOrphanedPodCgroups(logger, cgroups, cgroupNames(t, cgroups), map[types.UID]sets.Empty{})

	// Destroy runs in a goroutine.
	time.Sleep(50 * time.Millisecond)
	if len(cgroupNames(t, cgroups)) != 1 {
		t.Error("the cgroup was removed although the runtime could not report its pod")
	}
}

// The containers of the pod are in an unknown state, so that the runtime does not list
// it among those that run.
func TestGuardCleanupOfOrphanedPodFolder(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			kubelet := guardTestKubelet{testKubelet.kubelet}
			pod := newGuardTestPod()
			node.RunOrphan(kind, pod)
			file := filepath.Join(kubelet.getPodDir(pod.UID), "etc-hosts")
			if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, nil, 0o640); err != nil {
				t.Fatal(err)
			}
			expectKept := func(kept bool) {
				t.Helper()
				if err := kubelet.cleanupOrphanedPodDirs(logger, nil, nil); err != nil {
					t.Errorf("cleanupOrphanedPodDirs: %v", err)
				}
				if _, err := os.Stat(file); (err == nil) != kept {
					t.Errorf("the file of the pod: %v, want it kept: %v", err, kept)
				}
			}

			expectKept(kind.Kept)
			if !kind.Kept {
				node.ExpectHolds(t, pod.UID)
				return
			}
			node.ExpectHolds(t, pod.UID, guard.OrphanedRuntimePod)

			node.AskDeletion(pod)
			expectKept(false)
			node.ExpectHolds(t, pod.UID)
		})
	}
}

// The controller of a pod whose object is lost makes another of the same name. It does
// not start next to the one that is held when both would write to the same place.
func TestGuardSyncPodOfSuccessor(t *testing.T) {
	dataFrom := func(path string) func(*v1.Pod) {
		return func(pod *v1.Pod) {
			pod.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}}}}
			pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
		}
	}
	cases := []struct {
		name string
		pod  func(*v1.Pod)
		// started: the runtime has containers of the successor already.
		started, waits bool
	}{
		{name: "the same host path", pod: dataFrom("/srv/data"), waits: true},
		{name: "the same host path, started before", pod: dataFrom("/srv/data"), started: true},
		{name: "another host path", pod: dataFrom("/srv/other")},
		{name: "no volume", pod: func(*v1.Pod) {}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			kubelet := guardTestKubelet{testKubelet.kubelet}
			kubelet.volumeManager = volumemanager.NewFakeVolumeManager(nil, 0, nil, false)
			held := newGuardTestPod()
			dataFrom("/srv/data")(held)
			node.Vanish(t, held)
			successor := newGuardTestPod()
			successor.UID = "successor-uid"
			test.pod(successor)
			status := &kubecontainer.PodStatus{ID: successor.UID, Name: successor.Name, Namespace: successor.Namespace}
			if test.started {
				status = runningStatus(successor)
				status.ActiveContainerStatuses = status.ContainerStatuses
			}

			isTerminal, _, err := kubelet.SyncPod(ctx, kubetypes.SyncPodUpdate, successor, nil, status)

			if isTerminal {
				t.Error("the successor counts as ended")
			}
			if got := errors.Is(err, guard.ErrMustWait); got != test.waits || (err != nil) != test.waits {
				t.Errorf("error %v, want one that the pod waits: %v", err, test.waits)
			}
			if got := len(testKubelet.fakeRuntime.StartedPods) == 0; got != test.waits {
				t.Errorf("started %v, want none: %v", testKubelet.fakeRuntime.StartedPods, test.waits)
			}
			node.ExpectHolds(t, held.UID, guard.PodVanished)
			if !test.waits {
				return
			}

			api := kubelet.generateAPIPodStatus(ctx, successor, status, false)
			if _, condition := podutil.GetPodConditionFromList(api.Conditions, guard.PodWaitingForHeldPod); condition == nil || condition.Status != v1.ConditionTrue {
				t.Errorf("condition %s: %+v, want True", guard.PodWaitingForHeldPod, condition)
			}
			// Otherwise the status manager would keep it for ever.
			if !kubetypes.PodConditionByKubelet(guard.PodWaitingForHeldPod) {
				t.Errorf("condition %s is not one of the kubelet", guard.PodWaitingForHeldPod)
			}

			node.Exit()
			node.AskDeletion(held)
			if _, _, err := kubelet.SyncPod(ctx, kubetypes.SyncPodUpdate, successor, nil, status); err != nil || len(testKubelet.fakeRuntime.StartedPods) != 1 {
				t.Errorf("error %v, started %v; want the successor started when nothing of the held pod runs", err, testKubelet.fakeRuntime.StartedPods)
			}
		})
	}
}

func cgroupNames(t *testing.T, cgroups *cm.FakePodContainerManager) map[types.UID]cm.CgroupName {
	t.Helper()
	names, err := allPodsFromCgroups(cgroups)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func awaitCgroupRemoval(t *testing.T, cgroups *cm.FakePodContainerManager) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); len(cgroupNames(t, cgroups)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the cgroup was not removed within 5 s")
			return
		}
	}
}

// After a restart the API may claim that a running pod has ended. All of the
// kubelet believes a terminal phase, so it is checked where it comes in.
func TestGuardAdditionOfPodThatTheAPICallsEnded(t *testing.T) {
	for _, phase := range []v1.PodPhase{v1.PodFailed, v1.PodSucceeded} {
		for _, kind := range guardtest.Kinds() {
			t.Run(string(phase)+"/"+kind.Name, func(t *testing.T) {
				logger, ctx := ktesting.NewTestContext(t)
				node := guardtest.Install(t)
				testKubelet := newTestKubeletExcludeAdmitHandlers(t, false, true)
				defer testKubelet.Cleanup()
				kubelet := guardTestKubelet{testKubelet.kubelet}
				workers, _, processed := newGuardTestWorkers(logger)
				kubelet.podWorkers = workers.podWorkers
				pod := newGuardTestPod()
				pod.Status.Phase = phase
				kind.Change(pod)
				if kubetypes.IsMirrorPod(pod) {
					t.Skip("mirror pods have no worker")
				}
				node.Run(pod)

				kubelet.HandlePodAdditions(ctx, node.Appear(pod))
				drainAllWorkers(workers.podWorkers)

				// The pod cache knows nothing yet, as after a restart.
				if got := !workers.IsPodTerminationRequested(pod.UID); got != kind.Kept {
					t.Errorf("kept: %v, want %v", got, kind.Kept)
				}
				if kind.Kept {
					if records := processed[pod.UID]; len(records) != 1 || killed(records) {
						t.Errorf("records %+v, want one sync", records)
					}
					node.ExpectHolds(t, pod.UID, guard.TerminalPhaseReported)

					// Since 1.37 an update of a pod without an allocation is dropped, and the
					// API's deletion is one. A pod that came with a terminal phase would have none.
					deleted := pod.DeepCopy()
					guardtest.Delete(deleted)
					kubelet.HandlePodUpdates(ctx, node.Appear(deleted))
					drainAllWorkers(workers.podWorkers)
					if !killed(processed[pod.UID]) {
						t.Errorf("records %+v, want the deleted pod terminated at once", processed[pod.UID])
					}
				}
				node.ExpectHolds(t, pod.UID)
			})
		}
	}
}

func TestGuardAdditionOfPodThatEnded(t *testing.T) {
	logger, ctx := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	testKubelet := newTestKubelet(t, false)
	defer testKubelet.Cleanup()
	kubelet := guardTestKubelet{testKubelet.kubelet}
	workers, _, processed := newGuardTestWorkers(logger)
	kubelet.podWorkers = workers.podWorkers
	pod := newGuardTestPod()
	pod.Status.Phase = v1.PodSucceeded
	guardtest.Protect(pod)
	node.Run(pod)
	node.Exit()

	kubelet.HandlePodAdditions(ctx, node.Appear(pod))
	drainAllWorkers(workers.podWorkers)

	if !killed(processed[pod.UID]) {
		t.Errorf("records %+v: the pod that ended was started again", processed[pod.UID])
	}
	node.ExpectHolds(t, pod.UID)
}

// A rejected pod is kept and synced, and its status reports that.
func TestGuardAdditionOfPodThatAdmissionRejects(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, ctx := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			testKubelet := newTestKubelet(t, false)
			defer testKubelet.Cleanup()
			kubelet := guardTestKubelet{testKubelet.kubelet}
			workers, _, processed := newGuardTestWorkers(logger)
			kubelet.podWorkers = workers.podWorkers
			pod := newGuardTestPod()
			pod.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("1000")}
			kind.Change(pod)
			if kubetypes.IsMirrorPod(pod) {
				t.Skip("mirror pods are not admitted")
			}
			node.Run(pod)

			kubelet.HandlePodAdditions(ctx, []*v1.Pod{pod})
			drainAllWorkers(workers.podWorkers)

			status, _ := kubelet.statusManager.GetPodStatus(pod.UID)
			if got := status.Phase != v1.PodFailed; got != kind.Kept {
				t.Errorf("phase %q (%s), want the pod kept: %v", status.Phase, status.Reason, kind.Kept)
			}
			if got := len(processed[pod.UID]) == 1 && !killed(processed[pod.UID]); got != kind.Kept {
				t.Errorf("records %+v, want one sync: %v", processed[pod.UID], kind.Kept)
			}
		})
	}
}
