package kuberuntime

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/util/flowcontrol"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	apitest "k8s.io/cri-api/pkg/apis/testing"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	proberesults "k8s.io/kubernetes/pkg/kubelet/prober/results"
	"k8s.io/kubernetes/test/utils/ktesting"
	"k8s.io/utils/ptr"
)

// guardTest is a runtime manager over a fake runtime in which one pod runs, with
// the last line of defence between the two.
type guardTest struct {
	*guardtest.Node
	ctx ktesting.TContext
	m   *kubeGenericRuntimeManager
	pod *v1.Pod
	// containers of the pod by name.
	containers map[string]*apitest.FakeContainer
	sandbox    *apitest.FakePodSandbox
}

func newGuardTest(t *testing.T, kind guardtest.Kind, pod *v1.Pod) *guardTest {
	t.Helper()
	return newGuardTestWith(t, guardtest.Install(t), kind, pod)
}

func newGuardTestWith(t *testing.T, node *guardtest.Node, kind guardtest.Kind, pod *v1.Pod) *guardTest {
	t.Helper()
	ctx := ktesting.Init(t)
	m, err := newGuardTestManager(ctx, node.Guard.RuntimeService(node.Runtime))
	if err != nil {
		t.Fatal(err)
	}
	kind.Change(pod)
	sandbox, containers := setGuardTestPod(t, ctx, m, node.Runtime, pod)
	sandbox.Annotations = pod.Annotations
	g := &guardTest{Node: node, ctx: ctx, m: m, pod: pod, sandbox: sandbox, containers: map[string]*apitest.FakeContainer{}}
	for _, c := range containers {
		g.containers[c.Metadata.Name] = c
	}
	return g
}

func newGuardTestPod() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "web-uid"},
		Spec: v1.PodSpec{
			RestartPolicy: v1.RestartPolicyAlways,
			Containers:    []v1.Container{{Name: "server", Image: "server:1", ImagePullPolicy: v1.PullIfNotPresent}},
		},
	}
}

// status returns what the manager reads from the runtime.
func (g *guardTest) status(t *testing.T) *kubecontainer.PodStatus {
	t.Helper()
	status, err := getPodStatus(g.ctx, g.m, g.pod)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func (g *guardTest) sync(t *testing.T) error {
	t.Helper()
	result := g.m.SyncPod(g.ctx, g.pod, g.status(t), nil, flowcontrol.NewBackOff(time.Second, time.Minute), false)
	return result.Error()
}

// calls returns the number of calls of the runtime that stop or remove something.
func (g *guardTest) calls() int {
	n := 0
	for _, call := range g.Runtime.GetCalls() {
		switch call {
		case "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox":
			n++
		}
	}
	return n
}

// What computePodActions concludes from damaged records is not followed for
// protected pods.
func TestGuardSyncPodWithDamagedRecords(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	damages := []struct {
		name   string
		pod    func(*v1.Pod)
		damage func(*guardTest)
		cause  guard.Cause
	}{
		{
			name:   "sandbox is not ready",
			damage: func(g *guardTest) { g.sandbox.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY },
			cause:  guard.SandboxChanged,
		},
		{
			name:   "sandbox is gone",
			damage: func(g *guardTest) { delete(g.Runtime.Sandboxes, g.sandbox.Id) },
			cause:  guard.SandboxChanged,
		},
		{
			name:   "hash of a container differs",
			damage: func(g *guardTest) { g.containers["server"].Annotations[containerHashLabel] = "1" },
			cause:  guard.ContainerHashChanged,
		},
		{
			name: "hash of a sidecar differs",
			pod: func(pod *v1.Pod) {
				pod.Spec.InitContainers = []v1.Container{{Name: "sidecar", Image: "sidecar:1", RestartPolicy: &always}}
			},
			damage: func(g *guardTest) { g.containers["sidecar"].Annotations[containerHashLabel] = "1" },
			cause:  guard.ContainerHashChanged,
		},
		{
			name: "state of a container is unknown",
			damage: func(g *guardTest) {
				g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
			},
			cause: guard.ContainerStateUnknown,
		},
		{
			name: "state of a sidecar is unknown",
			pod: func(pod *v1.Pod) {
				pod.Spec.InitContainers = []v1.Container{{Name: "sidecar", Image: "sidecar:1", RestartPolicy: &always}}
			},
			damage: func(g *guardTest) {
				g.containers["sidecar"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
			},
			cause: guard.ContainerStateUnknown,
		},
	}
	for _, damage := range damages {
		for _, kind := range guardtest.Kinds() {
			t.Run(damage.name+"/"+kind.Name, func(t *testing.T) {
				pod := newGuardTestPod()
				if damage.pod != nil {
					damage.pod(pod)
				}
				g := newGuardTest(t, kind, pod)
				damage.damage(g)
				if kind.Kept && damage.name == "sandbox is gone" {
					// The guard knows the pod from its object.
					guard.ObserveSource("api", []*v1.Pod{pod})
				}

				if err := g.sync(t); err != nil {
					t.Errorf("SyncPod: %v", err)
				}

				if got := g.calls() == 0; got != kind.Kept {
					t.Errorf("calls %v, want none that stops: %v", g.Runtime.GetCalls(), kind.Kept)
				}
				if kind.Kept {
					g.ExpectHolds(t, pod.UID, damage.cause)
				} else {
					g.ExpectHolds(t, pod.UID)
				}
			})
		}
	}
}

// A regular init container in an unknown state may run, too.
func TestGuardInitContainerInUnknownState(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			pod := newGuardTestPod()
			pod.Spec.InitContainers = []v1.Container{{Name: "init", Image: "init:1"}}
			g := newGuardTest(t, kind, pod)
			g.containers["init"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
			delete(g.Runtime.Containers, g.containers["server"].Id)

			actions := g.m.computePodActions(g.ctx, pod, g.status(t), false)

			if got := len(actions.ContainersToKill) == 0 && len(actions.InitContainersToStart) == 0; got != kind.Kept {
				t.Errorf("kills %v, starts %v; want the container kept: %v", actions.ContainersToKill, actions.InitContainersToStart, kind.Kept)
			}
			if kind.Kept {
				g.ExpectHolds(t, pod.UID, guard.ContainerStateUnknown)
			} else {
				g.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// The records of init containers may be lost together with the state of the others.
// They are not started a second time next to a container that runs.
func TestGuardInitContainersOfContainerInUnknownState(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			pod := newGuardTestPod()
			pod.Spec.InitContainers = []v1.Container{{Name: "sidecar", Image: "sidecar:1", RestartPolicy: &always}, {Name: "init", Image: "init:1"}}
			g := newGuardTest(t, kind, pod)
			g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
			delete(g.Runtime.Containers, g.containers["init"].Id)

			actions := g.m.computePodActions(g.ctx, pod, g.status(t), false)

			// Since 1.37 upstream starts them for no pod.
			if kind.Kept && len(actions.InitContainersToStart) > 0 {
				t.Errorf("starts the init containers %v, want none", actions.InitContainersToStart)
			}
			if kind.Kept && len(actions.ContainersToKill)+len(actions.ContainersToStart) > 0 {
				t.Errorf("kills %v, starts %v; want neither", actions.ContainersToKill, actions.ContainersToStart)
			}
			if kind.Kept {
				g.ExpectHolds(t, pod.UID, guard.ContainerStateUnknown)
			} else {
				g.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// A container in an unknown state is kept while a process of it runs, and restarted
// when none does.
func TestGuardContainerInUnknownStateWithAndWithoutProcesses(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	containers := []struct{ name, unknown string }{
		{"container", "server"},
		{"sidecar", "sidecar"},
	}
	for _, c := range containers {
		for _, runs := range []bool{true, false} {
			t.Run(c.name+map[bool]string{true: " runs", false: " is dead"}[runs], func(t *testing.T) {
				pod := newGuardTestPod()
				pod.Spec.InitContainers = []v1.Container{{Name: "sidecar", Image: "sidecar:1", RestartPolicy: &always, ImagePullPolicy: v1.PullIfNotPresent}}
				// The other container of the pod runs in any case.
				procDir := t.TempDir()
				node := guardtest.InstallWith(t, func(d *guard.Dependencies) { d.ProcDir = procDir })
				g := newGuardTestWith(t, node, guardtest.Kinds()[0], pod)
				var cgroups []string
				for name, container := range g.containers {
					if runs || name != c.unknown {
						cgroups = append(cgroups, "/kubepods/besteffort/pod"+string(pod.UID)+"/"+container.Id)
					}
				}
				if err := os.CopyFS(procDir, os.DirFS(guardtest.ProcDir(t, cgroups...))); err != nil {
					t.Fatal(err)
				}
				g.containers[c.unknown].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN

				if err := g.sync(t); err != nil {
					t.Errorf("SyncPod: %v", err)
				}

				started := 0
				for _, call := range g.Runtime.GetCalls() {
					if call == "StartContainer" {
						started++
					}
				}
				if want := map[bool]int{true: 0, false: 1}[runs]; started != want {
					t.Errorf("%d containers started, want %d", started, want)
				}
				if runs {
					g.ExpectHolds(t, pod.UID, guard.ContainerStateUnknown)
				} else {
					g.ExpectHolds(t, pod.UID)
				}
			})
		}
	}
}

// One restart of the container runtime can do both.
func TestGuardSandboxLostWithContainerInUnknownState(t *testing.T) {
	pod := newGuardTestPod()
	g := newGuardTest(t, guardtest.Kinds()[0], pod)
	g.sandbox.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN

	if err := g.sync(t); err != nil {
		t.Errorf("SyncPod: %v", err)
	}

	if g.calls() != 0 {
		t.Errorf("calls %v, want none that stops", g.Runtime.GetCalls())
	}
	for _, cause := range g.Holds(pod.UID) {
		if cause == guard.RuntimeStop {
			t.Error("only the last line of defence kept the pod")
		}
	}
}

// lostSandboxes are the ways in which the kubelet wants a new sandbox although the
// containers of the pod run.
func lostSandboxes() map[string]func(*guardTest) {
	return map[string]func(*guardTest){
		"sandbox is not ready": func(g *guardTest) { g.sandbox.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY },
		"sandbox is gone": func(g *guardTest) {
			// The guard knows the pod from its object.
			g.Appear(g.pod)
			delete(g.Runtime.Sandboxes, g.sandbox.Id)
		},
		"two sandboxes are ready": func(g *guardTest) {
			g.Runtime.Sandboxes["newer"] = &apitest.FakePodSandbox{PodSandboxStatus: runtimeapi.PodSandboxStatus{
				Id:          "newer",
				Metadata:    &runtimeapi.PodSandboxMetadata{Name: g.pod.Name, Namespace: g.pod.Namespace, Uid: string(g.pod.UID), Attempt: 1},
				State:       runtimeapi.PodSandboxState_SANDBOX_READY,
				CreatedAt:   g.sandbox.CreatedAt + 1,
				Network:     g.sandbox.Network,
				Linux:       g.sandbox.Linux,
				Labels:      g.sandbox.Labels,
				Annotations: g.sandbox.Annotations,
			}}
		},
	}
}

// In a kept sandbox init containers are not started again next to the running
// containers, and what the author declared goes on.
func TestGuardInitContainersOfKeptSandbox(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	for name, lose := range lostSandboxes() {
		t.Run(name, func(t *testing.T) {
			pod := newGuardTestPod()
			pod.Spec.InitContainers = []v1.Container{
				{Name: "migrate", Image: "migrate:1"},
				{Name: "sidecar", Image: "sidecar:1", RestartPolicy: &always},
			}
			pod.Spec.Containers = append(pod.Spec.Containers,
				v1.Container{Name: "crashed", Image: "crashed:1"}, v1.Container{Name: "unhealthy", Image: "unhealthy:1"})
			g := newGuardTest(t, guardtest.Kinds()[0], pod)
			g.containers["migrate"].State = runtimeapi.ContainerState_CONTAINER_EXITED
			g.containers["crashed"].State = runtimeapi.ContainerState_CONTAINER_EXITED
			g.containers["crashed"].ExitCode = 1
			unhealthy := kubecontainer.ContainerID{Type: g.m.runtimeName, ID: g.containers["unhealthy"].Id}
			g.m.livenessManager.Set(unhealthy, proberesults.Failure, pod)
			lose(g)

			actions := g.m.computePodActions(g.ctx, pod, g.status(t), false)

			if len(actions.InitContainersToStart) > 0 {
				t.Errorf("starts the init containers %v, want none", actions.InitContainersToStart)
			}
			if _, kills := actions.ContainersToKill[unhealthy]; !kills || len(actions.ContainersToKill) != 1 {
				t.Errorf("kills %v, want the container whose probe failed", actions.ContainersToKill)
			}
			if got := actions.ContainersToStart; !slices.Equal(got, []int{1, 2}) {
				t.Errorf("starts the containers %v, want the one that crashed and the one whose probe failed", got)
			}
			if actions.CreateSandbox || actions.KillPod {
				t.Error("the sandbox is replaced")
			}
			g.ExpectHolds(t, pod.UID, guard.SandboxChanged)
		})
	}
}

// A container that has exited may be of an earlier sandbox, and does not show that the
// init containers of this one are done.
func TestGuardInitContainerThatRunsInKeptSandbox(t *testing.T) {
	for name, lose := range lostSandboxes() {
		t.Run(name, func(t *testing.T) {
			pod := newGuardTestPod()
			pod.Spec.InitContainers = []v1.Container{{Name: "migrate", Image: "migrate:1"}, {Name: "warm-up", Image: "warm-up:1"}}
			g := newGuardTest(t, guardtest.Kinds()[0], pod)
			g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_EXITED
			delete(g.Runtime.Containers, g.containers["warm-up"].Id)
			lose(g)

			actions := g.m.computePodActions(g.ctx, pod, g.status(t), false)

			if len(actions.InitContainersToStart)+len(actions.ContainersToStart) > 0 {
				t.Errorf("starts init containers %v and containers %v, want none while the first init container runs", actions.InitContainersToStart, actions.ContainersToStart)
			}
			g.ExpectHolds(t, pod.UID, guard.SandboxChanged)
		})
	}
}

func TestGuardSandboxOfPodInWhichNothingRunsIsReplaced(t *testing.T) {
	pod := newGuardTestPod()
	g := newGuardTest(t, guardtest.Kinds()[0], pod)
	g.sandbox.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_EXITED

	if err := g.sync(t); err != nil {
		t.Errorf("SyncPod: %v", err)
	}

	if n := len(g.Runtime.Sandboxes); n != 2 {
		t.Errorf("%d sandboxes, want the old and a new one", n)
	}
	g.ExpectHolds(t, pod.UID)
}

// enableResize gives the pod resources whose change restarts the container.
func enableResize(pod *v1.Pod) {
	pod.Spec.Containers[0].Resources = v1.ResourceRequirements{
		Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m"), v1.ResourceMemory: resource.MustParse("100Mi")},
		Limits:   v1.ResourceList{v1.ResourceCPU: resource.MustParse("200m"), v1.ResourceMemory: resource.MustParse("200Mi")},
	}
	pod.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{
		{ResourceName: v1.ResourceCPU, RestartPolicy: v1.NotRequired},
		{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer},
	}
}

// Without the record every resource looks changed.
func TestGuardLostRecordOfResources(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.InPlacePodVerticalScaling, true)
			pod := newGuardTestPod()
			enableResize(pod)
			g := newGuardTest(t, kind, pod)
			status := g.status(t)
			if resizable := len(g.m.computePodActions(g.ctx, pod, status, false).ContainersToKill); resizable == 0 && !kind.Kept {
				t.Skip("pods of this kind are not resized")
			}

			actions := g.m.computePodActions(g.ctx, pod, status, false)

			if got := len(actions.ContainersToKill) == 0; got != kind.Kept {
				t.Errorf("kills %v, want the container kept: %v", actions.ContainersToKill, kind.Kept)
			}
			if !kind.Kept {
				g.ExpectHolds(t, pod.UID)
				return
			}
			g.ExpectHolds(t, pod.UID, guard.ResizeRecordLost)
			if len(actions.ContainersToUpdate[v1.ResourceMemory]) == 0 {
				t.Error("the resources are not brought up to date in place")
			}
		})
	}
}

// Upstream compares a new memory limit of the pod with what is in use only when
// containers are resized with it.
func TestGuardMemoryLimitOfThePodBelowWhatIsInUse(t *testing.T) {
	const inUse = uint64(300 << 20)
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			pod := newGuardTestPod()
			g := newGuardTest(t, kind, pod)
			g.m.runtimeHelper = &containertest.FakeRuntimeHelper{PodStats: map[types.UID]*statsapi.PodStats{
				pod.UID: {Memory: &statsapi.MemoryStats{UsageBytes: ptr.To(inUse)}},
			}}
			status := g.status(t)
			validate := func(limit int64) error {
				current, desired := &cm.ResourceConfig{Memory: ptr.To(int64(1 << 30))}, &cm.ResourceConfig{Memory: &limit}
				return g.m.validatePodResizeAction(g.ctx, pod, status, current, desired, podActions{UpdatePodLevelResources: true})
			}

			// A pod that is deleted is labelled as well, and nothing is lost by the check.
			if err, want := validate(200<<20), kind.Kept || pod.DeletionTimestamp != nil; (err != nil) != want {
				t.Errorf("limit below what is in use: error %v, want one: %v", err, want)
			}
			if err := validate(400 << 20); err != nil {
				t.Errorf("limit above what is in use: %v", err)
			}
			g.ExpectHolds(t, pod.UID)
		})
	}
}

// A resize that restarts is what the pod's author declared.
func TestGuardResizeThatRestartsIsAllowed(t *testing.T) {
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.InPlacePodVerticalScaling, true)
	pod := newGuardTestPod()
	enableResize(pod)
	g := newGuardTest(t, guardtest.Kinds()[0], pod)
	if err := setActuated(g.ctx, g.m, pod.UID, "server", *pod.Spec.Containers[0].Resources.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	pod.Spec.Containers[0].Resources.Limits[v1.ResourceMemory] = resource.MustParse("400Mi")

	actions := g.m.computePodActions(g.ctx, pod, g.status(t), false)

	if len(actions.ContainersToKill) != 1 {
		t.Errorf("kills %v, want the container restarted", actions.ContainersToKill)
	}
	g.ExpectHolds(t, pod.UID)
}

// What the author of the pod declared passes the last line of defence.
func TestGuardDeclaredStopsOfProtectedPods(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	stops := []struct {
		name string
		pod  func(*v1.Pod)
		// prepare makes the reason for the stop.
		prepare func(*guardTest)
		// stopped is the container that must be stopped.
		stopped string
	}{
		{
			name: "liveness probe failed",
			prepare: func(g *guardTest) {
				g.m.livenessManager.Set(kubecontainer.ContainerID{Type: g.m.runtimeName, ID: g.containers["server"].Id}, proberesults.Failure, g.pod)
			},
			stopped: "server",
		},
		{
			name: "startup probe failed",
			prepare: func(g *guardTest) {
				g.m.startupManager.Set(kubecontainer.ContainerID{Type: g.m.runtimeName, ID: g.containers["server"].Id}, proberesults.Failure, g.pod)
			},
			stopped: "server",
		},
		{
			name:    "image changed",
			prepare: func(g *guardTest) { g.pod.Spec.Containers[0].Image = "server:2" },
			stopped: "server",
		},
		{
			name: "image of a sidecar changed",
			pod: func(pod *v1.Pod) {
				pod.Spec.InitContainers = []v1.Container{{Name: "sidecar", Image: "sidecar:1", RestartPolicy: &always, ImagePullPolicy: v1.PullIfNotPresent}}
			},
			prepare: func(g *guardTest) { g.pod.Spec.InitContainers[0].Image = "sidecar:2" },
			stopped: "sidecar",
		},
		{
			name: "the pod is done and its sidecar runs",
			pod: func(pod *v1.Pod) {
				pod.Spec.RestartPolicy = v1.RestartPolicyNever
				pod.Spec.InitContainers = []v1.Container{{Name: "sidecar", Image: "sidecar:1", RestartPolicy: &always}}
			},
			prepare: func(g *guardTest) { g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_EXITED },
			stopped: "sidecar",
		},
	}
	for _, stop := range stops {
		t.Run(stop.name, func(t *testing.T) {
			pod := newGuardTestPod()
			if stop.pod != nil {
				stop.pod(pod)
			}
			g := newGuardTest(t, guardtest.Kinds()[0], pod)
			stop.prepare(g)

			if err := g.sync(t); err != nil {
				t.Errorf("SyncPod: %v", err)
			}

			if state := g.containers[stop.stopped].State; state != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("container %s is %s, want it stopped", stop.stopped, state)
			}
			g.ExpectHolds(t, pod.UID)
		})
	}
}

func TestGuardRestartOfAllContainersIsAllowed(t *testing.T) {
	featuregatetesting.SetFeatureGatesDuringTest(t, utilfeature.DefaultFeatureGate, featuregatetesting.FeatureOverrides{
		features.ContainerRestartRules:                true,
		features.NodeDeclaredFeatures:                 true,
		features.RestartAllContainersOnContainerExits: true,
	})
	pod := newGuardTestPod()
	pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: "source", Image: "source:1"})
	g := newGuardTest(t, guardtest.Kinds()[0], pod)
	g.containers["source"].State = runtimeapi.ContainerState_CONTAINER_EXITED

	result := g.m.SyncPod(g.ctx, pod, g.status(t), nil, flowcontrol.NewBackOff(time.Second, time.Minute), true)

	if err := result.Error(); err != nil {
		t.Errorf("SyncPod: %v", err)
	}
	if n := len(g.Runtime.Containers); n != 0 {
		t.Errorf("%d containers are left, want all removed", n)
	}
	g.ExpectHolds(t, pod.UID)
}

func TestGuardFailedPostStartHookStopsTheContainer(t *testing.T) {
	pod := newGuardTestPod()
	g := newGuardTest(t, guardtest.Kinds()[0], pod)
	g.m.runner = lifecycle.NewHandlerRunner(&fakeHTTP{}, &containertest.FakeContainerCommandRunner{Err: errors.New("exit 1")}, nil, nil)
	container := pod.Spec.Containers[0].DeepCopy()
	container.Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"register"}}}}
	config, err := g.m.generatePodSandboxConfig(g.ctx, pod, 0)
	if err != nil {
		t.Fatal(err)
	}
	g.Runtime.Containers = map[string]*apitest.FakeContainer{}

	_, err = g.m.startContainer(g.ctx, g.sandbox.Id, config, containerStartSpec(container), pod, &kubecontainer.PodStatus{}, nil, "", nil, nil)

	if err == nil {
		t.Fatal("startContainer succeeded although the hook failed")
	}
	if n := len(g.Runtime.Containers); n != 1 {
		t.Fatalf("%d containers, want one", n)
	}
	for _, c := range g.Runtime.Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("the container is %s, want it stopped", c.State)
		}
	}
	g.ExpectHolds(t, pod.UID)
}

func TestGuardGarbageCollectionOfContainerInUnknownState(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			pod := newGuardTestPod()
			g := newGuardTest(t, kind, pod)
			if pod.DeletionTimestamp != nil {
				guard.RefuseTermination(pod, false, false, false)
			}
			g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
			g.containers["server"].CreatedAt = 1
			provider := g.m.podStateProvider.(*fakePodStateProvider)
			provider.removed = map[types.UID]struct{}{pod.UID: {}}
			provider.terminated = map[types.UID]struct{}{pod.UID: {}}

			if err := g.m.containerGC.evictContainers(g.ctx, kubecontainer.GCPolicy{MaxPerPodContainer: 0, MaxContainers: 0}, true, true); err != nil {
				t.Errorf("evictContainers: %v", err)
			}

			if got := len(g.Runtime.Containers) == 1; got != kind.Kept {
				t.Errorf("%d containers, want it kept: %v", len(g.Runtime.Containers), kind.Kept)
			}
			if kind.Kept {
				g.ExpectHolds(t, pod.UID, guard.ContainerStateUnknown)
			} else {
				g.ExpectHolds(t, pod.UID)
			}
		})
	}
}

func TestGuardGarbageCollectionOfContainerInUnknownStateWithoutProcesses(t *testing.T) {
	pod := newGuardTestPod()
	node := guardtest.InstallWith(t, func(d *guard.Dependencies) { d.ProcDir = guardtest.ProcDir(t) })
	g := newGuardTestWith(t, node, guardtest.Kinds()[0], pod)
	g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
	g.containers["server"].CreatedAt = 1
	g.sandbox.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	provider := g.m.podStateProvider.(*fakePodStateProvider)
	provider.removed = map[types.UID]struct{}{pod.UID: {}}
	provider.terminated = map[types.UID]struct{}{pod.UID: {}}

	if err := g.m.containerGC.evictContainers(g.ctx, kubecontainer.GCPolicy{MaxPerPodContainer: 0, MaxContainers: 0}, true, true); err != nil {
		t.Errorf("evictContainers: %v", err)
	}

	if n := len(g.Runtime.Containers); n != 0 {
		t.Errorf("%d containers are left, want the dead one removed", n)
	}
	g.ExpectHolds(t, pod.UID)
}

// The kubelet has no object of the pod, and the runtime does not list it among those
// that run, since the state of its container is unknown.
func TestGuardGarbageCollectionOfLogFolders(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			pod := newGuardTestPod()
			g := newGuardTest(t, kind, pod)
			if pod.DeletionTimestamp != nil {
				g.AskDeletion(pod)
			}
			g.containers["server"].State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
			logs := t.TempDir()
			if err := os.Mkdir(filepath.Join(logs, "shop_web_"+string(pod.UID)), 0o755); err != nil {
				t.Fatal(err)
			}
			fakeOS := g.m.osInterface.(*containertest.FakeOS)
			fakeOS.ReadDirFn = func(string) ([]os.DirEntry, error) { return os.ReadDir(logs) }
			g.m.podStateProvider.(*fakePodStateProvider).removed = map[types.UID]struct{}{pod.UID: {}}

			if err := g.m.containerGC.evictPodLogsDirectories(g.ctx, true); err != nil {
				t.Errorf("evictPodLogsDirectories: %v", err)
			}

			if got := len(fakeOS.Removes) == 0; got != kind.Kept {
				t.Errorf("removed %v, want nothing removed: %v", fakeOS.Removes, kind.Kept)
			}
			if kind.Kept {
				g.ExpectHolds(t, pod.UID, guard.OrphanedRuntimePod)
			} else {
				g.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// The last line of defence: a stop that no other hook had allowed.
func TestGuardLastLine(t *testing.T) {
	calls := []struct {
		name string
		call func(*guardTest) error
	}{
		{"KillPod", func(g *guardTest) error {
			running := kubecontainer.ConvertPodStatusToRunningPod(g.m.runtimeName, &kubecontainer.PodStatus{
				ID: g.pod.UID, Name: g.pod.Name, Namespace: g.pod.Namespace,
				ContainerStatuses: []*kubecontainer.Status{{ID: kubecontainer.ContainerID{Type: g.m.runtimeName, ID: g.containers["server"].Id}, Name: "server", State: kubecontainer.ContainerStateRunning}},
				SandboxStatuses:   []*runtimeapi.PodSandboxStatus{{Id: g.sandbox.Id}},
			})
			return g.m.KillPod(g.ctx, g.pod, running, nil)
		}},
		{"StopContainer", func(g *guardTest) error { return g.m.runtimeService.StopContainer(g.ctx, g.containers["server"].Id, 0) }},
		{"RemoveContainer", func(g *guardTest) error { return removeContainer(g.ctx, g.m, g.containers["server"].Id) }},
		{"StopPodSandbox", func(g *guardTest) error { return g.m.runtimeService.StopPodSandbox(g.ctx, g.sandbox.Id) }},
		{"RemovePodSandbox", func(g *guardTest) error { return g.m.runtimeService.RemovePodSandbox(g.ctx, g.sandbox.Id) }},
	}
	for _, call := range calls {
		for _, kind := range guardtest.Kinds() {
			t.Run(call.name+"/"+kind.Name, func(t *testing.T) {
				pod := newGuardTestPod()
				g := newGuardTest(t, kind, pod)
				if pod.DeletionTimestamp != nil {
					guard.RefuseTermination(pod, false, false, false)
				}

				err := call.call(g)

				if (err != nil) != kind.Kept {
					t.Errorf("error %v, want one: %v", err, kind.Kept)
				}
				if got := g.calls() == 0; got != kind.Kept {
					t.Errorf("calls %v, want none that stops: %v", g.Runtime.GetCalls(), kind.Kept)
				}
				if kind.Kept {
					g.ExpectHolds(t, pod.UID, guard.RuntimeStop)
				} else {
					g.ExpectHolds(t, pod.UID)
				}
			})
		}
	}
}

func TestGuardLastLineWhileTheRuntimeDoesNotAnswer(t *testing.T) {
	pod := newGuardTestPod()
	g := newGuardTest(t, guardtest.Kinds()[0], pod)
	g.Runtime.InjectError("ListContainers", errors.New("unavailable"))

	if err := g.m.runtimeService.StopContainer(g.ctx, g.containers["server"].Id, 0); err == nil {
		t.Error("a container was stopped although the runtime could not report its pod")
	}
	if g.calls() != 0 {
		t.Errorf("calls %v, want none that stops", g.Runtime.GetCalls())
	}
}

// After the declared restart the new container is protected again.
func TestGuardRestartedContainerIsProtected(t *testing.T) {
	pod := newGuardTestPod()
	g := newGuardTest(t, guardtest.Kinds()[0], pod)
	g.m.livenessManager.Set(kubecontainer.ContainerID{Type: g.m.runtimeName, ID: g.containers["server"].Id}, proberesults.Failure, pod)
	if err := g.sync(t); err != nil {
		t.Fatalf("SyncPod: %v", err)
	}

	stopped := 0
	for id, c := range g.Runtime.Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		if err := g.m.runtimeService.StopContainer(g.ctx, id, 0); !errors.Is(err, guard.ErrRefused) {
			t.Errorf("stop of the restarted container: %v, want a refusal", err)
		}
		stopped++
	}
	if stopped != 1 {
		t.Errorf("%d containers run after the restart, want one", stopped)
	}
}
