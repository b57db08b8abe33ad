package guard

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// This file has a test for each invariant of doc.go, with counters: calls of the
// runtime, requests to the API server, files. No clock decides anything here. A hook
// that is missing in podHooks or otherHooks fails TestEveryHookIsCounted: add it there,
// and the invariants are tested for it.

// podHooks call every hook of hooks.go that is about one pod, and report whether the
// result differs from that of the stock kubelet.
var podHooks = map[string]func(pod *v1.Pod) bool{
	"Refuse": func(pod *v1.Pod) bool {
		return slices.ContainsFunc(allCauses, func(cause Cause) bool { return Refuse(pod, cause, "") })
	},
	"RefuseUID": func(pod *v1.Pod) bool {
		return slices.ContainsFunc(allCauses, func(cause Cause) bool { return RefuseUID(pod.UID, cause, "") })
	},
	"RefuseTermination": func(pod *v1.Pod) bool {
		return RefuseTermination(pod, true, false, false) || RefuseTermination(pod, false, true, false) ||
			RefuseTermination(pod, false, true, true) || RefuseTermination(pod, false, false, false)
	},
	"RefuseSandboxChange": func(pod *v1.Pod) bool { return RefuseSandboxChange(pod, 1) || RefuseSandboxChange(pod, 0) },
	"RefuseContainerChange": func(pod *v1.Pod) bool {
		return RefuseContainerChange(pod, &pod.Spec.Containers[0], lifeContainer(pod))
	},
	"RefuseCgroupRemoval":   func(pod *v1.Pod) bool { return RefuseCgroupRemoval([]string{"kubepods", "pod" + string(pod.UID)}) },
	"RefuseUnknownState":    func(pod *v1.Pod) bool { return RefuseUnknownState(pod, "app", lifeContainer(pod)) },
	"RefuseUnknownStateUID": func(pod *v1.Pod) bool { return RefuseUnknownStateUID(pod.UID, "app", lifeContainer(pod)) },
	"CheckStart":            func(pod *v1.Pod) bool { return CheckStart(pod, true) != nil || CheckStart(pod, false) != nil },
	"SparesNeighbour": func(pod *v1.Pod) bool {
		return SparesNeighbour(pod, []*v1.Pod{pod}, v1.ResourceMemory, func(*v1.Pod) (s statsapi.PodStats, found bool) { return s, false })
	},
	"CheckKill":    func(pod *v1.Pod) bool { return CheckKill(pod) != nil },
	"HoldVanished": func(pod *v1.Pod) bool { return HoldVanished(apiSource, pod) },
	"Vanished":     func(pod *v1.Pod) bool { return Vanished(pod.UID) },
	"SetCgroupResources": func(pod *v1.Pod) bool {
		limit, done := int64(1<<20), false
		err := SetCgroupResources([]string{"kubepods", "pod" + string(pod.UID)}, "/nowhere", &limit, func() error { done = true; return nil })
		return err != nil || !done
	},
	"OnlyVanished": func(pod *v1.Pod) bool {
		references := map[types.UID]int{pod.UID: 1}
		return OnlyVanished(references)
	},
	"RequestToken": func(pod *v1.Pod) bool {
		request := authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{UID: pod.UID}}}
		token, err := RequestToken(sameToken, "default", pod.Namespace, &request)
		return err != nil || token != &request
	},
	"AllowStop":   func(pod *v1.Pod) bool { AllowStop(pod, "another-container"); return false },
	"SaveVolume":  func(pod *v1.Pod) bool { SaveVolume(pod, lifeClaim, lifeVolume); return false },
	"SavedClaim":  func(pod *v1.Pod) bool { return SavedClaim(pod, "data", nil, errNotFound) != nil },
	"SavedVolume": func(pod *v1.Pod) bool { return SavedVolume(pod, "claim-uid", errNotFound) != nil },
	"MountContext": func(pod *v1.Pod) bool {
		ctx, cancel := MountContext(background, pod.UID)
		defer cancel()
		return ctx != background
	},
	"CorrectPhase": func(pod *v1.Pod) bool {
		lost := v1.PodStatus{Phase: v1.PodFailed, ContainerStatuses: lostContainer}
		CorrectPhase(pod, &lost)
		return lost.Phase != v1.PodFailed
	},
	"CompletePodStatus": func(pod *v1.Pod) bool {
		var old, status v1.PodStatus
		CompletePodStatus(pod, &old, &status)
		return len(status.Conditions) > 0
	},
}

// podLists are those about several pods. They return a new list.
var podLists = map[string]func(pods []*v1.Pod) bool{
	"FilterStoppable":   func(pods []*v1.Pod) bool { return len(FilterStoppable(pods, Preempted, "")) < len(pods) },
	"FilterUnprotected": func(pods []*v1.Pod) bool { return len(FilterUnprotected(pods, Preempted)) < len(pods) },
	"OthersInAdmission": func(pods []*v1.Pod) bool { return !slices.Equal(pods, OthersInAdmission(pods[0], pods)) },
	"ObserveSource":     func(pods []*v1.Pod) bool { return !slices.Equal(pods, ObserveSource(apiSource, pods)) },
}

// endings change what is known about a pod; they have tests of their own.
var endings = map[string]func(pod *v1.Pod){
	"AllowCompletion": func(pod *v1.Pod) { AllowCompletion(pod.UID) },
	"AllowRestart":    AllowRestart,
}

// otherHooks are about no pod, or report what is in its object. WatchSource is tested with a
// source, Run with what it calls.
var otherHooks = []string{"AddFlags", "Start", "Install", "Run", "Handler", "SetNodeCondition", "WatchSource", "RunsAlready", "Protects", "UpdateReserved", "EventRecorder"}

var (
	allCauses             = Causes()
	background            = context.Background()
	errNotFound           = errors.New("not found")
	lifeClaim, lifeVolume = &v1.PersistentVolumeClaim{}, &v1.PersistentVolume{}
	lostContainer         = []v1.ContainerStatus{{State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: statusUnknown}}}}
)

// responses are the ways in which a runtime responds to queries. Commands it
// does.
var responses = map[string]func(*fakeRuntime){
	"runtime responds":        func(*fakeRuntime) {},
	"runtime fails one query": func(r *fakeRuntime) { r.failing["ListContainers"] = errors.New("busy") },
	"runtime fails all queries": func(r *fakeRuntime) {
		for _, query := range []string{"ListContainers", "ListPodSandbox", "ContainerStatus", "PodSandboxStatus"} {
			r.failing[query] = errors.New("busy")
		}
	},
}

// sameToken stands for the API server.
func sameToken(_, _ string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return request, nil
}

func lifeContainer(pod *v1.Pod) string { return string(pod.UID) + "-c" }
func lifeSandbox(pod *v1.Pod) string   { return string(pod.UID) + "-s" }

func TestEveryHookIsCounted(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "hooks.go", nil, 0)
	require.NoError(t, err)
	known := map[string]bool{}
	for _, names := range [][]string{slices.Collect(maps.Keys(podHooks)), slices.Collect(maps.Keys(podLists)), slices.Collect(maps.Keys(endings)), otherHooks} {
		for _, name := range names {
			known[name] = true
		}
	}
	named := maps.Clone(HookCauses)
	for _, declaration := range file.Decls {
		if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.IsExported() {
			delete(named, f.Name.Name)
			assert.True(t, known[f.Name.Name], "hook %s is in none of podHooks, podLists, endings, otherHooks", f.Name.Name)
			delete(known, f.Name.Name)
		}
	}
	assert.Empty(t, known, "hooks that hooks.go does not have")
	assert.Empty(t, named, "hooks of HookCauses that hooks.go does not have")
}

// nodeCounters is a guard with everything that costs something counted.
type nodeCounters struct {
	*fixture
	service internalapi.RuntimeService
	runtime *lifeRuntime
	api     *countedDeletions
	disk    *fakeDisk
	dir     string
}

// newNodeCounters installs a guard with a state directory until the test ends.
func newNodeCounters(t *testing.T, options ...func(*Configuration)) *nodeCounters {
	t.Helper()
	// Not t.TempDir: it fails when the guard still writes at the end.
	dir, err := os.MkdirTemp("", "guard-invariants-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n := &nodeCounters{dir: dir, runtime: &lifeRuntime{fakeRuntime: newFakeRuntime()}, api: &countedDeletions{}}
	n.restart(t, options...)
	return n
}

// restart makes a new guard over the same node.
func (n *nodeCounters) restart(t *testing.T, options ...func(*Configuration)) {
	t.Helper()
	config := DefaultConfiguration()
	config.StateDir = n.dir
	for _, option := range options {
		option(config)
	}
	f := newFixture(t)
	f.runtime = n.runtime.fakeRuntime
	g, err := New(Dependencies{Configuration: config, NodeName: "node-1", Recorder: f.events, Events: f.events, Runtime: n.runtime, Deletions: n.api, Clock: f.clock})
	require.NoError(t, err)
	g.kernel = f.kernel
	f.Guard, f.events.guard = g, g
	n.fixture, n.service = f, g.RuntimeService(n.runtime)
	n.disk = f.countSyncs()
	before := Install(g)
	t.Cleanup(func() { Install(before) })
}

// lifeRuntime is a fakeRuntime that starts and ends pods, and distinguishes queries about
// single pods from those about the node.
type lifeRuntime struct {
	*fakeRuntime

	countMu  sync.Mutex
	filtered int
	lists    int
}

func (r *lifeRuntime) note(filtered bool) {
	r.countMu.Lock()
	defer r.countMu.Unlock()
	if filtered {
		r.filtered++
	} else {
		r.lists++
	}
}

func (r *lifeRuntime) ListContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	r.note(filter.GetId() != "" || filter.GetPodSandboxId() != "" || len(filter.GetLabelSelector()) > 0)
	if filter == nil {
		filter = &runtimeapi.ContainerFilter{}
	}
	return r.fakeRuntime.ListContainers(ctx, filter)
}

func (r *lifeRuntime) ListPodSandbox(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	r.note(filter.GetId() != "" || len(filter.GetLabelSelector()) > 0)
	if filter == nil {
		filter = &runtimeapi.PodSandboxFilter{}
	}
	return r.fakeRuntime.ListPodSandbox(ctx, filter)
}

func (r *lifeRuntime) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	r.note(true)
	return r.fakeRuntime.ContainerStatus(ctx, id, verbose)
}

func (r *lifeRuntime) PodSandboxStatus(ctx context.Context, id string, _ bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.note(true)
	return &runtimeapi.PodSandboxStatusResponse{}, r.respond(ctx, "PodSandboxStatus")
}

func (r *lifeRuntime) CreateContainer(_ context.Context, sandboxID string, config *runtimeapi.ContainerConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := config.GetLabels()[podUIDLabel] + "-c"
	r.containers[id] = &runtimeapi.Container{Id: id, PodSandboxId: sandboxID, State: runtimeapi.ContainerState_CONTAINER_CREATED, Labels: config.GetLabels()}
	r.images[id] = config.GetImage()
	return id, nil
}

func (r *lifeRuntime) StartContainer(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id].State = runtimeapi.ContainerState_CONTAINER_RUNNING
	return nil
}

func (r *lifeRuntime) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	id, err := r.fakeRuntime.RunPodSandbox(ctx, config, handler)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sandboxes[id] = &runtimeapi.PodSandbox{Id: id, State: runtimeapi.PodSandboxState_SANDBOX_READY, Labels: config.GetLabels(), Annotations: config.GetAnnotations()}
	return id, err
}

func (r *lifeRuntime) StopContainer(ctx context.Context, id string, timeout int64) error {
	err := r.fakeRuntime.StopContainer(ctx, id, timeout)
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[id]; c != nil {
		c.State = runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return err
}

func (r *lifeRuntime) RemoveContainer(ctx context.Context, id string) error {
	err := r.fakeRuntime.RemoveContainer(ctx, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.containers, id)
	return err
}

func (r *lifeRuntime) StopPodSandbox(ctx context.Context, id string) error {
	err := r.fakeRuntime.StopPodSandbox(ctx, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[id]; s != nil {
		s.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return err
}

func (r *lifeRuntime) RemovePodSandbox(ctx context.Context, id string) error {
	err := r.fakeRuntime.RemovePodSandbox(ctx, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sandboxes, id)
	return err
}

// countedDeletions counts the queries for records; there are none.
type countedDeletions struct {
	mu       sync.Mutex
	requests int
}

func (d *countedDeletions) OfNode(context.Context, string) ([]DeletionRecord, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
	return nil, nil
}

func (d *countedDeletions) Of(context.Context, types.UID) (*DeletionRecord, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
	return nil, nil
}

// costs is what was spent so far.
type costs struct {
	// Queries to the runtime about pods, and lists of all that it has.
	Queries, Lists int
	// Kernel has the queries about processes.
	Kernel int
	// Requests to the API server, events included.
	Requests int
	// Files in the state directory, and fsyncs.
	Files []string
	Syncs int
}

func (n *nodeCounters) costs() costs {
	n.t.Helper()
	n.runtime.countMu.Lock()
	c := costs{Queries: n.runtime.filtered, Lists: n.runtime.lists}
	n.runtime.countMu.Unlock()
	n.kernel.mu.Lock()
	c.Kernel = n.kernel.queries
	n.kernel.mu.Unlock()
	n.api.mu.Lock()
	c.Requests = n.api.requests
	n.api.mu.Unlock()
	c.Requests += len(n.events.all())
	n.saved()
	c.Files, c.Syncs = n.files(), n.disk.count()
	return c
}

// files returns the names of the files in the state directory.
func (n *nodeCounters) files() []string {
	n.t.Helper()
	var files []string
	err := filepath.WalkDir(n.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, entry.Name())
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	require.NoError(n.t, err)
	return files
}

// start runs the pod as the kubelet does, through the guard's CRI client.
func (n *nodeCounters) start(pod *v1.Pod) {
	n.t.Helper()
	_, err := n.service.RunPodSandbox(n.t.Context(), sandboxConfig(pod), "")
	require.NoError(n.t, err)
	n.startContainer(pod)
}

func sandboxConfig(pod *v1.Pod) *runtimeapi.PodSandboxConfig {
	labels := maps.Clone(pod.Labels)
	labels[podUIDLabel], labels[podNameLabel], labels[podNamespaceLabel] = string(pod.UID), pod.Name, pod.Namespace
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID), Name: pod.Name, Namespace: pod.Namespace},
		Labels:   labels, Annotations: pod.Annotations,
	}
}

func (n *nodeCounters) startContainer(pod *v1.Pod) {
	n.t.Helper()
	id, err := n.service.CreateContainer(n.t.Context(), lifeSandbox(pod), &runtimeapi.ContainerConfig{
		Image:  &runtimeapi.ImageSpec{Image: pod.Spec.Containers[0].Image, UserSpecifiedImage: pod.Spec.Containers[0].Image},
		Labels: map[string]string{podUIDLabel: string(pod.UID), podNameLabel: pod.Name, podNamespaceLabel: pod.Namespace, containerNameLabel: "app"},
	}, sandboxConfig(pod))
	require.NoError(n.t, err)
	require.NoError(n.t, n.service.StartContainer(n.t.Context(), id))
}

// end stops and removes the pod as the kubelet does, with its garbage collection, and
// returns the errors.
func (n *nodeCounters) end(pod *v1.Pod) error { return errors.Join(n.stop(pod), n.collect(pod)) }

func (n *nodeCounters) stop(pod *v1.Pod) error {
	ctx := n.t.Context()
	return errors.Join(
		n.service.StopContainer(ctx, lifeContainer(pod), 1),
		n.service.StopPodSandbox(ctx, lifeSandbox(pod)),
		n.service.RemoveContainer(ctx, lifeContainer(pod)),
	)
}

// collect is the kubelet's garbage collection, which comes once a minute.
func (n *nodeCounters) collect(pod *v1.Pod) error {
	ctx := n.t.Context()
	return errors.Join(n.service.StopPodSandbox(ctx, lifeSandbox(pod)), n.service.RemovePodSandbox(ctx, lifeSandbox(pod)))
}

// relist is what the kubelet does once a second. It is no cost of the guard.
func (n *nodeCounters) relist() {
	n.t.Helper()
	n.runtime.countMu.Lock()
	lists := n.runtime.lists
	n.runtime.countMu.Unlock()
	_, err := n.service.ListPodSandbox(n.t.Context(), &runtimeapi.PodSandboxFilter{})
	require.NoError(n.t, err)
	_, err = n.service.ListContainers(n.t.Context(), &runtimeapi.ContainerFilter{})
	require.NoError(n.t, err)
	n.runtime.countMu.Lock()
	n.runtime.lists = lists
	n.runtime.countMu.Unlock()
}

// differences calls every hook for a pod and returns the hooks whose result is not
// that of the stock kubelet.
func differences(pod *v1.Pod) []string {
	var different []string
	for name, hook := range podHooks {
		if hook(pod) {
			different = append(different, name)
		}
	}
	for name, hook := range podLists {
		if hook([]*v1.Pod{pod}) {
			different = append(different, name)
		}
	}
	slices.Sort(different)
	return different
}

// books lets the guard keep its books for a while, as Run does.
func (n *nodeCounters) books() {
	n.t.Helper()
	for range 3 * time.Minute / tidyInterval {
		if _, some := n.planLookup(); some {
			n.lookUp(n.t.Context())
		}
		n.pass(tidyInterval)
		// The clock goes on when the disk is done, or it would seem to hang.
		n.saved()
	}
}

// Invariant 1: an unprotected pod takes the stock path. Its whole life, through every
// hook and every call to the runtime, costs nothing.
func TestInvariantUnprotectedPodsCostNothing(t *testing.T) {
	n := newNodeCounters(t)
	pod := plainPod("p")
	source, err := watchSource(t, n.Guard, watchOf(pod, deleted(pod)))
	require.NoError(t, err)
	<-source.ResultChan()
	ObserveSource(apiSource, []*v1.Pod{pod})

	step := func(name string, act func()) {
		t.Helper()
		n.relist()
		act()
		assert.Empty(t, differences(pod), "%s: hooks whose result is not that of the stock kubelet", name)
		n.books()
		assert.Equal(t, costs{}, n.costs(), "%s: costs", name)
	}
	step("before it runs", func() {})
	step("started", func() { n.start(pod) })
	step("restarted", func() {
		AllowStop(pod, lifeContainer(pod))
		require.NoError(t, n.service.StopContainer(t.Context(), lifeContainer(pod), 1))
		require.NoError(t, n.service.RemoveContainer(t.Context(), lifeContainer(pod)))
		n.startContainer(pod)
	})
	step("changed", func() {
		pod = pod.DeepCopy()
		pod.Annotations["changed"], pod.ResourceVersion = "yes", "2"
		ObserveSource(apiSource, []*v1.Pod{pod})
	})
	step("sandbox and restart", func() {
		AllowRestart(pod)
	})
	step("deletion", func() {
		<-source.ResultChan()
		pod = deleted(pod)
		ObserveSource(apiSource, []*v1.Pod{pod})
	})
	step("stopped", func() {
		AllowCompletion(pod.UID)
		require.NoError(t, n.end(pod))
	})
	step("gone", func() { ObserveSource(apiSource, nil) })
	assert.Empty(t, n.Pods().Items, "records of unprotected pods")
	assert.Empty(t, n.series(), "metrics")
}

// No decision about an unprotected pod allocates.
func TestInvariantUnprotectedDecisionsAllocateNothing(t *testing.T) {
	n := newNodeCounters(t)
	pod := ordinaryPod()
	pod.Spec.Containers = []v1.Container{{Name: "app", Image: "app:1"}}
	ObserveSource(apiSource, []*v1.Pod{pod})
	cgroup, id := []string{"kubepods", "pod" + string(pod.UID)}, lifeContainer(pod)
	allHooks := maps.Clone(podHooks)
	// Those of podHooks allocate their arguments.
	allHooks["RefuseContainerChange"] = func(pod *v1.Pod) bool { return RefuseContainerChange(pod, &pod.Spec.Containers[0], id) }
	allHooks["RefuseCgroupRemoval"] = func(*v1.Pod) bool { return RefuseCgroupRemoval(cgroup) }
	references, request := map[types.UID]int{pod.UID: 1}, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{UID: pod.UID}}}
	limit, set := int64(1<<20), func() error { return nil }
	allHooks["SetCgroupResources"] = func(*v1.Pod) bool { return SetCgroupResources(cgroup, "/nowhere", &limit, set) != nil }
	allHooks["OnlyVanished"] = func(*v1.Pod) bool { return OnlyVanished(references) }
	allHooks["RequestToken"] = func(*v1.Pod) bool { _, err := RequestToken(sameToken, "default", "n", request); return err != nil }
	allHooks["RefuseUnknownState"] = func(pod *v1.Pod) bool { return RefuseUnknownState(pod, "app", id) }
	allHooks["RefuseUnknownStateUID"] = func(pod *v1.Pod) bool { return RefuseUnknownStateUID(pod.UID, "app", id) }
	var old, status v1.PodStatus
	allHooks["CompletePodStatus"] = func(pod *v1.Pod) bool { CompletePodStatus(pod, &old, &status); return false }
	lost := v1.PodStatus{Phase: v1.PodFailed, ContainerStatuses: lostContainer}
	allHooks["CorrectPhase"] = func(pod *v1.Pod) bool { CorrectPhase(pod, &lost); return false }
	for name, hook := range allHooks {
		t.Run(name, func(t *testing.T) {
			assert.Zero(t, testing.AllocsPerRun(100, func() { hook(pod) }))
		})
	}
	assert.Zero(t, n.costs().Queries)
}

// Invariant 1, at the last line: no query to the runtime comes before a stop of what
// is unprotected, and no failure of one.
func TestInvariantLastLineIsFreeForUnprotectedPods(t *testing.T) {
	for name, fail := range responses {
		t.Run(name, func(t *testing.T) {
			n := newNodeCounters(t)
			pod := plainPod("p")
			ObserveSource(apiSource, []*v1.Pod{pod})
			n.start(pod)
			fail(n.runtime.fakeRuntime)
			before := n.costs()
			assert.NoError(t, n.end(pod))
			assert.Equal(t, before.Queries, n.costs().Queries, "queries about the pod")
			assert.Equal(t, []string{"RunPodSandbox p-uid-s", "StopContainer p-uid-c", "StopPodSandbox p-uid-s", "RemoveContainer p-uid-c", "StopPodSandbox p-uid-s", "RemovePodSandbox p-uid-s"},
				n.runtime.done, "what reaches the runtime")
		})
	}
	t.Run("started by an earlier kubelet", func(t *testing.T) {
		n := newNodeCounters(t)
		pod := plainPod("p")
		ObserveSource(apiSource, []*v1.Pod{pod})
		n.start(pod)
		n.restart(t)
		ObserveSource(apiSource, []*v1.Pod{pod})
		n.relist()
		before := n.costs()
		assert.NoError(t, n.end(pod))
		assert.Equal(t, before, n.costs())
	})
}

// A pod that is unknown and has no sandbox is queried once, however often the
// kubelet comes back: the volume reconciler does ten times a second.
func TestInvariantUnknownPodsAreQueriedOnce(t *testing.T) {
	n := newNodeCounters(t)
	ObserveSource(apiSource, nil)
	n.relist()
	before := n.costs()
	for range 100 {
		assert.False(t, RefuseUID("gone-uid", VolumeUnmount, ""))
	}
	assert.LessOrEqual(t, n.costs().Queries-before.Queries, 1)
}

// A storage rollback is news about protected pods only: the stock kubelet does not hear
// of the others until it relists.
func TestInvariantStorageRollbackLeavesUnprotectedPodsAlone(t *testing.T) {
	n := newNodeCounters(t)
	plain, kept := plainPod("plain"), protectedPod("kept")
	server := newFakeServer(100, plain, kept)
	reflected := cache.ToListerWatcherWithContext(n.WatchSource(server))
	list, err := reflected.ListWithContext(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, list.(*v1.PodList).Items, 2)
	ObserveSource(apiSource, []*v1.Pod{plain, kept})
	older := plain.DeepCopy()
	older.Spec.Containers[0].Image = "app:0"
	server.replace(50, older, kept)
	w, err := reflected.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "100"})
	require.NoError(t, err)
	defer w.Stop()
	var seen []string
	for event := range w.ResultChan() {
		if event.Type == watch.Bookmark {
			break
		}
		seen = append(seen, fmt.Sprint(event.Type, " ", event.Object.(*v1.Pod).Name))
	}
	assert.NotContains(t, seen, "MODIFIED plain", "events that the kubelet sees")
	assert.NotContains(t, seen, "DELETED plain", "events that the kubelet sees")
}

// The costs of a protected pod that is never held: its file, no request, and at most two
// queries to the runtime.
func TestInvariantProtectedPodsCostLittle(t *testing.T) {
	t.Run("whose sandbox is collected at once", func(t *testing.T) {
		testProtectedPodCostsLittle(t, (*nodeCounters).end, func(*nodeCounters, *v1.Pod) error { return nil })
	})
	t.Run("whose sandbox is collected when the guard has forgotten the pod", func(t *testing.T) {
		testProtectedPodCostsLittle(t, (*nodeCounters).stop, (*nodeCounters).collect)
	})
}

func testProtectedPodCostsLittle(t *testing.T, end, late func(*nodeCounters, *v1.Pod) error) {
	n := newNodeCounters(t)
	pod := protectedPod("p")
	pod.ResourceVersion = "1"
	ObserveSource(apiSource, []*v1.Pod{pod})
	n.start(pod)
	assert.Equal(t, []string{"p-uid.pod"}, n.files(), "the file is there before the sandbox")
	for range 100 {
		n.tidy()
		ObserveSource(apiSource, []*v1.Pod{pod})
	}
	AllowStop(pod, lifeContainer(pod))
	require.NoError(t, n.service.StopContainer(t.Context(), lifeContainer(pod), 1))
	require.NoError(t, n.service.RemoveContainer(t.Context(), lifeContainer(pod)))
	n.startContainer(pod)
	before := n.costs()
	assert.Zero(t, before.Queries, "queries before its deletion")
	pod = deleted(pod)
	n.observe(pod)
	ObserveSource(apiSource, []*v1.Pod{pod})
	assert.Empty(t, differences(pod))
	require.NoError(t, end(n, pod))
	AllowCompletion(pod.UID)
	ObserveSource(apiSource, nil)
	n.books()
	require.NoError(t, late(n, pod))
	after := n.costs()
	assert.LessOrEqual(t, after.Queries, 2, "queries to the runtime")
	assert.LessOrEqual(t, after.Syncs, 6, "fsyncs: its first file, and its evidence")
	assert.Zero(t, after.Requests, "requests to the API server")
	assert.Empty(t, after.Files, "its file goes with it")
}

// A change of annotations alone is not worth a write each: controllers write one every
// few seconds.
func TestInvariantAnnotationsAreWrittenSeldom(t *testing.T) {
	n := newNodeCounters(t)
	pod := protectedPod("p")
	pod.ResourceVersion = "0"
	ObserveSource(apiSource, []*v1.Pod{pod})
	n.start(pod)
	before := n.costs()
	for i := range 60 {
		pod = pod.DeepCopy()
		pod.ResourceVersion = fmt.Sprint(i + 1)
		pod.Annotations["status"] = fmt.Sprint(i)
		ObserveSource(apiSource, []*v1.Pod{pod})
		n.pass(tidyInterval)
		n.saved()
	}
	// Five minutes have passed, and a write is two fsyncs.
	assert.LessOrEqual(t, n.costs().Syncs-before.Syncs, 2*6)
}

// Invariant 2: with evidence no hook refuses, and none waits: not for the runtime, not
// for the disk.
func TestInvariantEvidenceEndsProtection(t *testing.T) {
	for name, fail := range map[string]func(*fakeRuntime){
		"runtime responds":        func(*fakeRuntime) {},
		"runtime fails one query": func(r *fakeRuntime) { r.failing["ListContainers"] = errors.New("busy") },
		"runtime hangs":           func(r *fakeRuntime) { r.hang = true },
	} {
		for _, kind := range []EvidenceKind{DeletionTimestampSeen, PodDeletionRecord, ReleaseFile} {
			t.Run(fmt.Sprint(name, ", ", kind), func(t *testing.T) {
				n := newNodeCounters(t)
				pod := protectedPod("p")
				ObserveSource(apiSource, []*v1.Pod{pod})
				n.start(pod)
				if kind == DeletionTimestampSeen {
					n.observe(deleted(pod))
				} else {
					require.True(t, n.release(pod.UID, kind))
				}
				fail(n.runtime.fakeRuntime)
				before := n.costs()
				assert.Empty(t, differences(pod), "hooks that refuse")
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				ended := make(chan error, 1)
				go func() { ended <- n.end(pod) }()
				select {
				case err := <-ended:
					assert.NoError(t, err)
				case <-ctx.Done():
					t.Error("a stop waits for the runtime's response to a query")
					n.runtime.mu.Lock()
					n.runtime.hang = false
					n.runtime.mu.Unlock()
				}
				assert.Equal(t, before.Queries, n.costs().Queries, "queries about the pod")
			})
		}
	}
}

// Invariant 3: without evidence a living pod is not stopped, by no hook and not at the
// last line, and what cannot be found out counts in its favour.
func TestInvariantDoubtKeepsThePod(t *testing.T) {
	for name, fail := range responses {
		t.Run(name, func(t *testing.T) {
			n := newNodeCounters(t)
			pod := protectedPod("p")
			ObserveSource(apiSource, []*v1.Pod{pod})
			n.start(pod)
			fail(n.runtime.fakeRuntime)
			ctx := t.Context()
			assert.Error(t, n.service.StopContainer(ctx, lifeContainer(pod), 1))
			assert.Error(t, n.service.RemoveContainer(ctx, lifeContainer(pod)))
			assert.Error(t, n.service.StopPodSandbox(ctx, lifeSandbox(pod)))
			assert.Error(t, n.service.RemovePodSandbox(ctx, lifeSandbox(pod)))
			for _, cause := range allCauses {
				assert.True(t, Refuse(pod, cause, ""), cause)
				assert.True(t, RefuseUID(pod.UID, cause, ""), cause)
			}
			assert.Equal(t, []string{"RunPodSandbox p-uid-s"}, n.runtime.done, "what reaches the runtime")
		})
	}
}

// Invariant 4: the stop of one container that the pod's author declared passes, without
// a query, and it is no leave to stop another one.
func TestInvariantDeclaredStopsPass(t *testing.T) {
	n := newNodeCounters(t)
	pod := protectedPod("p")
	ObserveSource(apiSource, []*v1.Pod{pod})
	n.start(pod)
	n.runtime.mu.Lock()
	n.runtime.containers["other"] = &runtimeapi.Container{
		Id: "other", PodSandboxId: lifeSandbox(pod), State: runtimeapi.ContainerState_CONTAINER_RUNNING,
		Labels: map[string]string{podUIDLabel: string(pod.UID)},
	}
	responses["runtime fails all queries"](n.runtime.fakeRuntime)
	n.runtime.mu.Unlock()
	before := n.costs()
	AllowStop(pod, lifeContainer(pod))
	assert.NoError(t, n.service.StopContainer(t.Context(), lifeContainer(pod), 1))
	assert.NoError(t, n.service.RemoveContainer(t.Context(), lifeContainer(pod)))
	assert.Equal(t, before.Queries, n.costs().Queries)
	n.runtime.mu.Lock()
	clear(n.runtime.failing)
	n.runtime.mu.Unlock()
	assert.ErrorIs(t, n.service.StopContainer(t.Context(), "other", 1), ErrRefused)
	assert.ErrorIs(t, n.service.StopPodSandbox(t.Context(), lifeSandbox(pod)), ErrRefused)

	AllowCompletion(pod.UID)
	assert.NoError(t, n.service.StopContainer(t.Context(), "other", 1))
	assert.NoError(t, n.service.StopPodSandbox(t.Context(), lifeSandbox(pod)))
}

// Mode Audit changes nothing: every result is that of the stock kubelet, at the last
// line, too, and when the runtime fails.
func TestInvariantAuditChangesNothing(t *testing.T) {
	for name, fail := range responses {
		for _, pod := range []*v1.Pod{protectedPod("p"), plainPod("p")} {
			t.Run(fmt.Sprintf("%s, protected: %t", name, pod.Labels[ExplicitDeletionLabel] != ""), func(t *testing.T) {
				n := newNodeCounters(t, inMode(Audit))
				ObserveSource(apiSource, []*v1.Pod{pod})
				n.start(pod)
				fail(n.runtime.fakeRuntime)
				assert.NoError(t, n.service.StopContainer(t.Context(), lifeContainer(pod), 1), "first of all at the last line")
				assert.Empty(t, differences(pod), "hooks whose result is not that of the stock kubelet")
				assert.NoError(t, n.end(pod))
				list := []*v1.Pod{inPhase(pod, v1.PodFailed)}
				assert.Equal(t, list, ObserveSource(apiSource, list), "a phase that the object claims")
				assert.Zero(t, n.costs().Requests, "events")
				assert.Zero(t, n.heldPods())
			})
		}
	}
	t.Run("unknown pod, runtime fails", func(t *testing.T) {
		n := newNodeCounters(t, inMode(Audit))
		responses["runtime fails all queries"](n.runtime.fakeRuntime)
		for name, call := range map[string]func() error{
			"StopContainer":    func() error { return n.service.StopContainer(t.Context(), "unknown", 1) },
			"RemoveContainer":  func() error { return n.service.RemoveContainer(t.Context(), "unknown") },
			"StopPodSandbox":   func() error { return n.service.StopPodSandbox(t.Context(), "unknown") },
			"RemovePodSandbox": func() error { return n.service.RemovePodSandbox(t.Context(), "unknown") },
		} {
			assert.NoError(t, call(), name)
		}
	})
}

// watchSource opens a watch of the API source through the guard.
func watchSource(t *testing.T, g *Guard, w watch.Interface) (watch.Interface, error) {
	t.Helper()
	source := cache.ToListerWatcherWithContext(g.WatchSource(&listerWatcher{watch: w}))
	return source.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
}

// watchOf returns a watch with the pods as modified.
func watchOf(pods ...*v1.Pod) watch.Interface {
	w := watch.NewFakeWithChanSize(len(pods), false)
	for _, pod := range pods {
		w.Modify(pod)
	}
	return w
}
