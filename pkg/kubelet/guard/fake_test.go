package guard

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/component-base/metrics"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	testingclock "k8s.io/utils/clock/testing"
)

// A thousand refusals would hide the failure that matters; go test -v shows them.
func TestMain(m *testing.M) {
	flag.Parse()
	if !testing.Verbose() {
		klog.SetLogger(klog.Logger{})
	}
	os.Exit(m.Run())
}

// epoch is the time at which every test starts.
var epoch = time.Date(2026, time.January, 2, 3, 4, 5, 0, time.UTC)

// fakeRuntime is a CRI runtime of sandboxes and containers in memory. Methods
// that the guard has no reason to call are those of a nil interface and panic.
type fakeRuntime struct {
	internalapi.RuntimeService

	mu         sync.Mutex
	sandboxes  map[string]*runtimeapi.PodSandbox
	containers map[string]*runtimeapi.Container
	// images are those in a list of containers, statusImages those in the status.
	images, statusImages map[string]*runtimeapi.ImageSpec
	// err is the response to every query, failing to those of one method.
	err     error
	failing map[string]error
	// hang makes every query wait for the end of its context.
	hang bool
	// unfiltered makes lists ignore their filter.
	unfiltered bool
	// during runs once inside the next query, without the lock.
	during func()
	// calls counts the calls per method; done has the stops and removals.
	calls map[string]int
	done  []string
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{
		sandboxes:    map[string]*runtimeapi.PodSandbox{},
		containers:   map[string]*runtimeapi.Container{},
		images:       map[string]*runtimeapi.ImageSpec{},
		statusImages: map[string]*runtimeapi.ImageSpec{},
		failing:      map[string]error{},
		calls:        map[string]int{},
	}
}

// run starts a ready sandbox of the pod with one container in the given state.
// The IDs are the pod's UID and "s" or "c".
func (f *fakeRuntime) run(pod *v1.Pod, state runtimeapi.ContainerState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	uid := string(pod.UID)
	labels := maps.Clone(pod.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[podUIDLabel], labels[podNameLabel], labels[podNamespaceLabel] = uid, pod.Name, pod.Namespace
	f.sandboxes[uid+"-s"] = &runtimeapi.PodSandbox{
		Id: uid + "-s", Labels: labels, Annotations: maps.Clone(pod.Annotations),
		State: runtimeapi.PodSandboxState_SANDBOX_READY,
	}
	f.containers[uid+"-c"] = &runtimeapi.Container{
		Id: uid + "-c", PodSandboxId: uid + "-s", State: state,
		Labels: map[string]string{podUIDLabel: uid, podNameLabel: pod.Name, podNamespaceLabel: pod.Namespace, containerNameLabel: "app"},
	}
	f.images[uid+"-c"] = &runtimeapi.ImageSpec{Image: "sha256:4242", UserSpecifiedImage: "app:1"}
	// What containerd makes of it, see its internal/cri/server/container_status.go.
	f.statusImages[uid+"-c"] = &runtimeapi.ImageSpec{Image: "docker.io/library/app:1"}
}

func (f *fakeRuntime) setContainer(pod *v1.Pod, state runtimeapi.ContainerState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[string(pod.UID)+"-c"]; c != nil {
		c.State = state
	}
}

func (f *fakeRuntime) setSandbox(pod *v1.Pod, state runtimeapi.PodSandboxState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sandboxes[string(pod.UID)+"-s"]; s != nil {
		s.State = state
	}
}

// remove deletes all that there is of the pod.
func (f *fakeRuntime) remove(pod *v1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sandboxes, string(pod.UID)+"-s")
	delete(f.containers, string(pod.UID)+"-c")
}

func (f *fakeRuntime) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// queries returns the number of queries of the guard.
func (f *fakeRuntime) queries() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, calls := range f.calls {
		n += calls
	}
	return n
}

func (f *fakeRuntime) respond(ctx context.Context, method string) error {
	f.mu.Lock()
	f.calls[method]++
	during, hang, err := f.during, f.hang, errors.Join(f.err, f.failing[method])
	f.during = nil
	f.mu.Unlock()
	if during != nil {
		during()
	}
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (f *fakeRuntime) Version(ctx context.Context, _ string) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{}, f.respond(ctx, "Version")
}

func (f *fakeRuntime) ListContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	if err := f.respond(ctx, "ListContainers"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*runtimeapi.Container
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		c := f.containers[id]
		if f.unfiltered || (filter.Id == "" || filter.Id == c.Id) && (filter.PodSandboxId == "" || filter.PodSandboxId == c.PodSandboxId) && selected(filter.LabelSelector, c.Labels) {
			found = append(found, &runtimeapi.Container{Id: c.Id, PodSandboxId: c.PodSandboxId, State: c.State, CreatedAt: c.CreatedAt, Labels: c.Labels, Image: f.images[id]})
		}
	}
	return found, nil
}

func (f *fakeRuntime) ListPodSandbox(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	if err := f.respond(ctx, "ListPodSandbox"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []*runtimeapi.PodSandbox
	for _, id := range slices.Sorted(maps.Keys(f.sandboxes)) {
		s := f.sandboxes[id]
		if f.unfiltered || selected(filter.LabelSelector, s.Labels) {
			found = append(found, &runtimeapi.PodSandbox{Id: s.Id, State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels, Annotations: s.Annotations})
		}
	}
	return found, nil
}

func selected(selector, labels map[string]string) bool {
	for key, value := range selector {
		if labels[key] != value {
			return false
		}
	}
	return true
}

func (f *fakeRuntime) ContainerStatus(ctx context.Context, id string, _ bool) (*runtimeapi.ContainerStatusResponse, error) {
	if err := f.respond(ctx, "ContainerStatus"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.containers[id] == nil {
		return nil, fmt.Errorf("container %s not found", id)
	}
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{Id: id, Image: f.statusImages[id]}}, nil
}

// fakeProcesses is the kernel: the pods and the containers that have processes.
type fakeProcesses struct {
	mu      sync.Mutex
	pods    map[types.UID]bool
	dead    map[string]bool
	err     error
	queries int
}

func (p *fakeProcesses) podHasProcesses(uid types.UID) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queries++
	return p.pods[uid], p.err
}

// OfContainer: a container in an unknown state runs unless a test changes that.
func (p *fakeProcesses) containerHasProcesses(_ types.UID, id string) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queries++
	return !p.dead[id], p.err
}

func (f *fakeRuntime) act(call, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, call+" "+id)
	return f.failing[call]
}

func (f *fakeRuntime) StopContainer(_ context.Context, id string, _ int64) error {
	return f.act("StopContainer", id)
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, id string) error {
	return f.act("RemoveContainer", id)
}

func (f *fakeRuntime) StopPodSandbox(_ context.Context, id string) error {
	return f.act("StopPodSandbox", id)
}

func (f *fakeRuntime) RemovePodSandbox(_ context.Context, id string) error {
	return f.act("RemovePodSandbox", id)
}

func (f *fakeRuntime) RunPodSandbox(_ context.Context, config *runtimeapi.PodSandboxConfig, _ string) (string, error) {
	id := config.GetMetadata().GetUid() + "-s"
	return id, f.act("RunPodSandbox", id)
}

func (f *fakeRuntime) CreateContainer(_ context.Context, _ string, _ *runtimeapi.ContainerConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	id := sandbox.GetMetadata().GetUid() + "-c"
	return id, f.act("CreateContainer", id)
}

// fakeEvents is an API server for events, and a recorder. It keeps events as
// "type reason object: message".
type fakeEvents struct {
	mu     sync.Mutex
	events []string
	// created has the written ones by namespace and name, attempts how often each
	// was to be written.
	created  map[string]*v1.Event
	attempts map[string]int
	// refuse, when set, is the response to an attempt.
	refuse func(*v1.Event) error
	// guard, when set, is called with every event: a guard that
	// reports with its lock held does not return from that.
	guard *Guard
}

func (f *fakeEvents) add(object, eventType, reason, message string) {
	if f.guard != nil {
		f.guard.Pods()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf("%s %s %s: %s", eventType, reason, object, message))
}

// Event implements record.EventRecorder for events on the node.
func (f *fakeEvents) Event(object runtime.Object, eventType, reason, message string) {
	about := object.(*v1.ObjectReference)
	f.add(about.Kind+"/"+about.Name, eventType, reason, message)
}

func (f *fakeEvents) Eventf(object runtime.Object, eventType, reason, format string, args ...any) {
	f.Event(object, eventType, reason, fmt.Sprintf(format, args...))
}

func (f *fakeEvents) AnnotatedEventf(object runtime.Object, _ map[string]string, eventType, reason, format string, args ...any) {
	f.Eventf(object, eventType, reason, format, args...)
}

// Events implements typedcorev1.EventsGetter. The guard may only create.
func (f *fakeEvents) Events(namespace string) typedcorev1.EventInterface {
	return &fakeEventClient{events: f, namespace: namespace}
}

type fakeEventClient struct {
	typedcorev1.EventInterface
	events    *fakeEvents
	namespace string
}

func (c *fakeEventClient) Create(ctx context.Context, event *v1.Event, _ metav1.CreateOptions) (*v1.Event, error) {
	f, key := c.events, c.namespace+"/"+event.Name
	f.mu.Lock()
	if f.attempts == nil {
		f.attempts, f.created = map[string]int{}, map[string]*v1.Event{}
	}
	f.attempts[key]++
	refuse := f.refuse
	f.mu.Unlock()
	if refuse != nil {
		if err := refuse(event); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	_, exists := f.created[key]
	if !exists {
		f.created[key] = event.DeepCopy()
	}
	f.mu.Unlock()
	switch {
	case exists:
		return nil, apierrors.NewAlreadyExists(v1.Resource("events"), event.Name)
	case event.Namespace != c.namespace:
		return nil, apierrors.NewBadRequest("the namespace of the event is " + event.Namespace)
	}
	f.add(event.InvolvedObject.Kind+"/"+event.InvolvedObject.Name, event.Type, event.Reason, event.Message)
	return event, nil
}

// setRefuse changes the response to attempts.
func (f *fakeEvents) setRefuse(refuse func(*v1.Event) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = refuse
}

// all lets the guard write what is due, and returns the events since the last call
// of take.
func (f *fakeEvents) all() []string {
	if f.guard != nil {
		f.guard.writeDueEvents(context.Background())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

// take returns type, reason and object of the events since the last call.
func (f *fakeEvents) take() []string {
	taken := f.all()
	for i, e := range taken {
		taken[i], _, _ = strings.Cut(e, ":")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = nil
	return taken
}

// fixture is a Guard over a fake runtime, recorder and clock.
type fixture struct {
	*Guard
	t       testing.TB
	runtime *fakeRuntime
	kernel  *fakeProcesses
	events  *fakeEvents
	clock   *testingclock.FakeClock
}

// newFixture makes a Guard with the defaults, changed by the options.
func newFixture(t testing.TB, options ...func(*Configuration)) *fixture {
	t.Helper()
	config := DefaultConfiguration()
	for _, option := range options {
		option(config)
	}
	f := &fixture{
		t: t, runtime: newFakeRuntime(), events: &fakeEvents{}, clock: testingclock.NewFakeClock(epoch),
		kernel: &fakeProcesses{pods: map[types.UID]bool{}, dead: map[string]bool{}},
	}
	g, err := New(Dependencies{Configuration: config, NodeName: "node-1", Recorder: f.events, Events: f.events, Runtime: f.runtime, Clock: f.clock})
	require.NoError(t, err)
	g.kernel = f.kernel
	f.Guard, f.events.guard = g, g
	return f
}

func inMode(mode Mode) func(*Configuration) {
	return func(c *Configuration) { c.Mode = mode }
}

func allowing(causes ...Cause) func(*Configuration) {
	return func(c *Configuration) { c.AllowedCauses = causes }
}

// protectedPod returns a labelled pod as the kubelet knows it; its UID is its
// name with "-uid".
func protectedPod(name string) *v1.Pod {
	pod := plainPod(name)
	pod.Labels[ExplicitDeletionLabel] = ExplicitDeletionRequired
	return pod
}

func plainPod(name string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: types.UID(name + "-uid"),
			Labels:      map[string]string{"app": "web"},
			Annotations: map[string]string{sourceAnnotation: apiSource},
		},
		Spec:   v1.PodSpec{Containers: []v1.Container{{Name: "app", Image: "app:1"}}},
		Status: v1.PodStatus{Phase: v1.PodRunning},
	}
}

// deleted returns a copy of the pod with a deletionTimestamp.
func deleted(pod *v1.Pod) *v1.Pod {
	pod = pod.DeepCopy()
	at := metav1.NewTime(epoch)
	pod.DeletionTimestamp = &at
	return pod
}

// inPhase returns a copy of the pod whose object claims the phase.
func inPhase(pod *v1.Pod, phase v1.PodPhase) *v1.Pod {
	pod = pod.DeepCopy()
	pod.Status = v1.PodStatus{Phase: phase, Reason: "Claimed", Message: "claimed"}
	return pod
}

// running makes the runtime run the pods, and the API source show them.
func (f *fixture) running(pods ...*v1.Pod) {
	f.t.Helper()
	for _, pod := range pods {
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
	}
	f.ObserveSource(apiSource, pods)
}

// relist is what the kubelet's PLEG does once a second.
func (f *fixture) relist() {
	f.t.Helper()
	service := f.RuntimeService(f.runtime)
	_, err := service.ListPodSandbox(context.Background(), &runtimeapi.PodSandboxFilter{})
	require.NoError(f.t, err)
	_, err = service.ListContainers(context.Background(), &runtimeapi.ContainerFilter{})
	require.NoError(f.t, err)
}

// pass lets time go by; the guard keeps its books as it does in Run.
func (f *fixture) pass(d time.Duration) {
	for ; d > 0; d -= tidyInterval {
		f.clock.Step(min(d, tidyInterval))
		f.tidy()
	}
}

// held returns the causes of a pod's holds, nil for a pod without a record.
func (f *fixture) held(pod *v1.Pod) []Cause {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.records[pod.UID]; r != nil {
		return r.heldLocked()
	}
	return nil
}

// state returns the state of a pod, empty for one without a record.
func (f *fixture) state(pod *v1.Pod) State {
	for _, p := range f.Pods().Items {
		if p.UID == pod.UID {
			return p.State
		}
	}
	return ""
}

// series returns every series of the guard's metrics that is not zero, as
// name{labels}, without the histogram and the constant info.
func (f *fixture) series() map[string]float64 {
	f.t.Helper()
	all := gather(f.t, f.Guard)
	maps.DeleteFunc(all, func(name string, value float64) bool {
		return value == 0 || strings.HasPrefix(name, "info{") || strings.Contains(name, "duration")
	})
	return all
}

// gather reads all metrics of a Guard through a registry of their own.
func gather(t testing.TB, g *Guard) map[string]float64 {
	t.Helper()
	registry := metrics.NewKubeRegistry()
	for _, c := range g.metrics.registerables() {
		require.NoError(t, registry.Register(c))
	}
	require.NoError(t, registry.CustomRegister(newStateCollector(g)))
	families, err := registry.Gather()
	require.NoError(t, err)
	found := map[string]float64{}
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), subsystem+"_") {
			continue
		}
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			name := strings.TrimPrefix(family.GetName(), subsystem+"_") + "{" + strings.Join(labels, ",") + "}"
			switch {
			case m.Counter != nil:
				found[name] = m.Counter.GetValue()
			case m.Gauge != nil:
				found[name] = m.Gauge.GetValue()
			case m.Histogram != nil:
				found[name] = float64(m.Histogram.GetSampleCount())
			}
		}
	}
	return found
}
