package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// This file holds a second, deliberately dumb guard and lets chance compare the
// two. The environment repeats a run or makes it longer:
//
//	GUARD_MODEL_SEED=7 GUARD_MODEL_SEQUENCES=1 go test -run TestModel ./pkg/kubelet/guard
//
// runs exactly the sequence that a failure names.

// modelPod is a pod of the simulated node, and what there is to know about it.
type modelPod struct {
	name                   string
	static, mirror         bool
	labelled, sandboxLabel bool // label of the object, and of the sandbox
	inAPI, wasInAPI        bool // object exists; existed in the message before
	stamped, claim         bool // object has a deletionTimestamp; phase Failed
	object                 bool // the kubelet has the object
	made, ready, running   bool // a sandbox exists; is ready; a container runs
	listed                 bool // the kubelet has listed it since its start

	// What the guard is to know.
	known, unprotected  bool // as protected; as unprotected
	seen                bool // evidence
	ended, endedByClaim bool
	endedByVanishing    bool
	restarting          bool
	declared            time.Time
	goneSince           time.Time
	held                map[Cause]time.Time // newest attempt
	counted             bool                // as allowed by evidence
}

func (p *modelPod) eligible() bool { return p.labelled && !p.static && !p.mirror }

// forget is the end of a record.
func (p *modelPod) forget() {
	p.known, p.seen, p.restarting, p.counted = false, false, false, false
	p.ended, p.endedByClaim, p.endedByVanishing = false, false, false
	p.held, p.goneSince = map[Cause]time.Time{}, time.Time{}
}

func (p *modelPod) alive(c Cause) bool { return p.running || p.ready && !c.needsRunningContainer() }

// pod returns the object as the API has it now.
func (p *modelPod) pod() *v1.Pod {
	pod := plainPod(p.name)
	if p.labelled {
		pod.Labels[ExplicitDeletionLabel] = ExplicitDeletionRequired
	}
	if p.static {
		pod.Annotations[sourceAnnotation] = "file"
	}
	if p.mirror {
		pod.Annotations[mirrorAnnotation] = "x"
	}
	if p.claim {
		pod.Status.Phase = v1.PodFailed
	}
	if p.stamped {
		pod = deleted(pod)
	}
	return pod
}

// byUID are the causes whose attempts know no more than the UID.
var byUID = []Cause{OrphanedRuntimePod, VolumeUnmount, ResourcesReclaimed, CgroupCleanup, RuntimeStop}

// modelNode is the node: the API, the runtime, the kubelet around the guard.
type modelNode struct {
	*fixture
	random  *rand.Rand
	pods    []*modelPod
	made    int
	down    bool // the runtime returns no list
	refused map[Cause]int
	allowed int // by evidence
	log     []string
}

func newModelNode(t *testing.T, seed uint64) *modelNode {
	return &modelNode{fixture: newFixture(t), random: rand.New(rand.NewPCG(seed, 0)), refused: map[Cause]int{}}
}

func (n *modelNode) note(format string, args ...any) {
	n.log = append(n.log, fmt.Sprintf(format, args...))
}

// expect is the second model: may the kubelet do this to the pod?
func (n *modelNode) expect(p *modelPod, c Cause) (refused bool) {
	byUID := slices.Contains(byUID, c)
	if c == RuntimeStop {
		switch {
		case !p.declared.IsZero():
			return false
		case !p.listed && n.down:
			return true // it may be anybody's
		case !p.listed && !p.made:
			return false
		}
	}
	fresh := false
	if !p.known && !p.unprotected {
		fresh = byUID
		if byUID && n.down && !p.listed {
			return true // its pod is unknown
		}
		if byUID && !p.made {
			return false
		}
		p.known = p.eligible()
		if byUID {
			p.known = p.sandboxLabel && !p.static
			p.unprotected = !p.known
		}
	}
	if !p.known {
		return false
	}
	if !byUID && p.stamped {
		n.evidence(p)
	}
	switch {
	case p.seen:
		if !p.counted {
			p.counted = true
			n.allowed++
		}
		return false
	case p.ended, p.restarting && c == RuntimeStop:
		return false
	}
	_, held := p.held[c]
	switch alive := p.alive(c) || n.down || held && c.lasting(); {
	case c == SandboxChanged && !p.made:
		return false
	case !alive && fresh:
		p.known = false
		return false
	case !alive:
		if c.endsPod() && c != Preempted {
			p.ended, p.held = true, map[Cause]time.Time{}
			p.endedByClaim, p.endedByVanishing = c == TerminalPhaseReported, c == PodVanished || c == OrphanedRuntimePod
		}
		return false
	}
	if !held {
		n.refused[c]++
	}
	p.held[c] = n.clock.Now()
	return true
}

func (n *modelNode) evidence(p *modelPod) {
	p.known, p.unprotected, p.seen, p.held = true, false, true, map[Cause]time.Time{}
}

// try makes an attempt on the guard and on the model.
func (n *modelNode) try(p *modelPod, c Cause) (refused bool) {
	evident, mayStop := p.known && p.seen, p.ended || p.restarting || !p.declared.IsZero()
	protected, unknown := p.known && p.eligible(), !p.known && !p.unprotected || c == RuntimeStop && !p.listed
	want := n.expect(p, c)
	refused = n.attempt(p.pod(), c)
	n.note("%s %s: refused=%v", p.name, c, refused)
	if refused && !(n.down && unknown) {
		require.True(n.t, p.known, "refused for an unprotected pod")
		require.False(n.t, evident, "refused in spite of evidence")
	}
	if !refused && p.running && protected && !p.stamped {
		require.True(n.t, evident || mayStop, "a protected container was given up")
	}
	require.Equal(n.t, want, refused, "the model differs")
	return refused
}

// stop is what the kubelet does to a pod that it may end.
func (n *modelNode) stop(p *modelPod) {
	p.running, p.ready = false, false
	n.toRuntime(p)
}

// toRuntime makes the fake runtime look like the pod. Earlier responses have
// expired afterwards.
func (n *modelNode) toRuntime(p *modelPod) {
	pod := p.pod()
	container, sandbox := runtimeapi.ContainerState_CONTAINER_EXITED, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	if p.running {
		container = runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	if p.ready {
		sandbox = runtimeapi.PodSandboxState_SANDBOX_READY
	}
	n.runtime.setContainer(pod, container)
	n.runtime.setSandbox(pod, sandbox)
	n.clock.Step(confirmInterval)
	n.list()
}

// list is what the kubelet does once a second.
func (n *modelNode) list() {
	if n.down {
		return
	}
	n.fixture.relist()
	for _, p := range n.pods {
		p.listed = p.made
	}
}

func (n *modelNode) run(p *modelPod) {
	if p.made && p.ready {
		p.running = true
		n.toRuntime(p)
		return
	}
	pod, service := p.pod(), n.RuntimeService(n.runtime)
	labels := maps.Clone(pod.Labels)
	labels[podUIDLabel], labels[podNameLabel], labels[podNamespaceLabel] = string(pod.UID), pod.Name, pod.Namespace
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID)}, Labels: labels, Annotations: pod.Annotations}
	sandbox, err := service.RunPodSandbox(context.Background(), config, "")
	require.NoError(n.t, err)
	_, err = service.CreateContainer(context.Background(), sandbox, nil, config)
	require.NoError(n.t, err)
	n.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
	p.listed = true
	p.made, p.ready, p.running, p.sandboxLabel, p.restarting = true, true, true, p.labelled, false
	n.list()
}

// event shows the guard one watch event, or an item of a list.
func (n *modelNode) event(p *modelPod) {
	n.observe(p.pod())
	n.eventInModel(p)
}

func (n *modelNode) eventInModel(p *modelPod) {
	if p.stamped && (p.known || p.eligible()) {
		n.evidence(p)
	}
}

// message is the merge of the kubelet: the full set of the API source.
func (n *modelNode) message() {
	var set []*v1.Pod
	var claimed []*modelPod
	for _, p := range n.pods {
		if !p.inAPI {
			continue
		}
		set = append(set, p.pod())
		if !p.eligible() {
			p.forget()
			p.unprotected = true
			continue
		}
		if p.endedByVanishing && !p.wasInAPI {
			p.ended, p.endedByVanishing = false, false
		}
		p.known, p.unprotected, p.goneSince = true, false, time.Time{}
		delete(p.held, PodVanished)
		delete(p.held, OrphanedRuntimePod)
		delete(p.held, ObjectRolledBack)
		switch {
		case !p.claim:
			delete(p.held, TerminalPhaseReported)
			if p.endedByClaim {
				p.ended, p.endedByClaim = false, false
			}
		case !p.seen && !p.ended && !p.stamped:
			claimed = append(claimed, p)
		}
	}
	believed := map[string]bool{}
	for _, pod := range n.ObserveSource(apiSource, set) {
		believed[pod.Name] = pod.Status.Phase == v1.PodFailed
	}
	for _, p := range claimed {
		refused := n.expect(p, TerminalPhaseReported)
		require.Equal(n.t, !refused, believed[p.name], "claim of %s", p.name)
		if refused {
			p.claim = false // the kubelet will write the truth back
		} else {
			n.stop(p)
		}
	}
	for _, p := range slices.Clone(n.pods) {
		p.wasInAPI = p.inAPI
		switch {
		case p.inAPI:
			p.object = true
		case p.object && !p.static:
			if !n.try(p, PodVanished) {
				p.object = false
				n.stop(p)
				if !p.known {
					n.drop(p)
				}
			}
		}
	}
}

// drop takes a pod of which nothing is left from the node.
func (n *modelNode) drop(p *modelPod) {
	n.runtime.remove(p.pod())
	n.pods = slices.DeleteFunc(n.pods, func(other *modelPod) bool { return other == p })
}

func (n *modelNode) relist() {
	list := &v1.PodList{}
	for _, p := range n.pods {
		if p.inAPI {
			list.Items = append(list.Items, *p.pod())
			n.eventInModel(p)
		}
	}
	_, err := cache.ToListerWatcherWithContext(n.WatchSource(&listerWatcher{list: list})).ListWithContext(context.Background(), metav1.ListOptions{})
	require.NoError(n.t, err)
	n.message()
}

func (n *modelNode) restart() {
	n.compareMetrics()
	old := n.fixture
	g, err := New(Dependencies{Configuration: DefaultConfiguration(), NodeName: "node-1", Recorder: old.events, Events: old.events, Runtime: old.runtime, Clock: old.clock})
	require.NoError(n.t, err)
	g.kernel = old.kernel
	n.fixture = &fixture{Guard: g, t: old.t, runtime: old.runtime, kernel: old.kernel, events: old.events, clock: old.clock}
	n.events.guard = g
	n.refused, n.allowed = map[Cause]int{}, 0
	for _, p := range n.pods {
		p.forget()
		p.unprotected, p.object, p.declared, p.listed = false, p.static, time.Time{}, false
	}
	n.list()
	n.relist()
}

// rest lets time go by.
func (n *modelNode) rest(d time.Duration) {
	n.clock.Step(d)
	n.tidy()
	now := n.clock.Now()
	for _, p := range slices.Clone(n.pods) {
		maps.DeleteFunc(p.held, func(c Cause, newest time.Time) bool { return !c.lasting() && now.Sub(newest) > holdLinger })
		if now.Sub(p.declared) > time.Hour {
			p.declared = time.Time{}
		}
		if !p.known || p.inAPI && p.eligible() {
			continue
		}
		if p.goneSince.IsZero() {
			p.goneSince = now
		}
		managed := p.object && len(p.held) > 0
		if now.Sub(p.goneSince) > goneLinger && !p.running && !p.ready && !n.down && !managed {
			n.drop(p)
			require.Empty(n.t, n.state(p.pod()), "nothing of %s is left", p.name)
		}
	}
}

// step does one thing that chance chooses.
func (n *modelNode) step() {
	if len(n.pods) == 0 || len(n.pods) < 4 && n.random.IntN(6) == 0 {
		n.made++
		p := &modelPod{name: fmt.Sprint("p", n.made), labelled: n.random.IntN(4) > 0, held: map[Cause]time.Time{}}
		switch n.random.IntN(8) {
		case 0:
			p.static, p.object = true, true
		case 1:
			p.mirror, p.inAPI = true, true
		default:
			p.inAPI = true
		}
		n.note("%s created: labelled=%v static=%v mirror=%v", p.name, p.labelled, p.static, p.mirror)
		n.pods = append(n.pods, p)
		n.message()
		if !p.mirror {
			n.run(p)
		}
		return
	}
	p := n.pods[n.random.IntN(len(n.pods))]
	ordinary := !p.static && !p.mirror
	operations := []struct {
		name     string
		possible bool
		do       func()
	}{
		{"label added", ordinary && p.inAPI && !p.labelled, func() { p.labelled = true; n.event(p); n.message() }},
		{"label removed", ordinary && p.inAPI && p.labelled, func() { p.labelled = false; n.event(p); n.message() }},
		{"deleted", ordinary && p.inAPI && !p.stamped, func() { p.stamped = true; n.event(p); n.message() }},
		{"deleted, seen in a list", ordinary && p.inAPI && !p.stamped, func() { p.stamped = true; n.relist() }},
		{"deleted by force", ordinary && p.inAPI, func() {
			p.stamped = true
			n.event(p)
			// The kubelet has the previous object.
			p.inAPI, p.stamped = false, false
			n.message()
		}},
		{"key lost", ordinary && p.inAPI && !p.stamped, func() { n.event(p); p.inAPI = false; n.message() }},
		{"object back", ordinary && !p.inAPI && !p.stamped, func() { p.inAPI = true; n.event(p); n.message() }},
		{"claimed to have failed", ordinary && p.inAPI, func() { p.claim = true; n.message() }},
		{"crashes", p.running, func() { p.running = false; n.toRuntime(p) }},
		{"starts", p.object && !p.mirror && !p.running && !p.seen && !p.ended, func() { n.run(p) }},
		{"loses its sandbox", p.ready, func() { p.ready = false; n.toRuntime(p) }},
		{"completes", p.object && p.made && !p.static, func() {
			n.AllowCompletion(p.pod().UID)
			if p.known {
				p.endedByClaim, p.endedByVanishing = p.ended && p.endedByClaim, p.ended && p.endedByVanishing
				p.ended, p.held = true, map[Cause]time.Time{}
			}
			n.stop(p)
		}},
		{"declared stop", p.object && p.eligible() && p.running, func() {
			n.AllowStop(p.pod(), p.name+"-uid-c")
			p.declared = n.clock.Now()
		}},
		{"declared restart", p.object && p.eligible(), func() {
			n.AllowRestart(p.pod())
			p.known, p.restarting = true, true
			if p.stamped {
				n.evidence(p)
			}
		}},
		{"kubelet restarts", n.random.IntN(4) == 0, n.restart},
		{"message", true, n.message},
		{"time passes", true, func() {
			n.rest([]time.Duration{time.Second, 7 * time.Second, 40 * time.Second, 4 * time.Minute}[n.random.IntN(4)])
		}},
		{"runtime changes", n.random.IntN(4) == 0, func() {
			n.down = !n.down
			n.clock.Step(confirmInterval)
			n.runtime.mu.Lock()
			defer n.runtime.mu.Unlock()
			clear(n.runtime.failing)
			if n.down {
				n.runtime.failing["ListContainers"] = errors.New("unavailable")
				n.runtime.failing["ListPodSandbox"] = errors.New("unavailable")
			}
		}},
	}
	// Half of all steps are attempts.
	if n.random.IntN(2) == 0 {
		c := causes[n.random.IntN(len(causes))]
		switch {
		case c == PodVanished || c == TerminalPhaseReported: // by messages only
			return
		case c == OrphanedRuntimePod && (p.object || !p.running):
			return
		case c == ContainerHashChanged && !p.running:
			return
		case !p.object && !slices.Contains(byUID, c):
			return // the kubelet has no object to call with
		}
		refused := n.try(p, c)
		if c == Preempted && !refused {
			refused = n.try(p, Evicted) // the hook of the pod workers for a victim
		}
		if !refused && c.endsPod() {
			n.stop(p)
		}
		return
	}
	operations = slices.DeleteFunc(operations, func(o struct {
		name     string
		possible bool
		do       func()
	}) bool {
		return !o.possible
	})
	o := operations[n.random.IntN(len(operations))]
	n.note("%s %s", p.name, o.name)
	o.do()
}

// compare checks all that the guard reports about the pods.
func (n *modelNode) compare() {
	want, got := map[string]string{}, map[string]string{}
	describe := func(state State, present bool, held []Cause) string {
		return fmt.Sprint(state, " present=", present, " ", held)
	}
	for _, p := range n.pods {
		if p.known {
			state := Protected
			switch {
			case p.seen || p.ended:
				state = Terminating
			case len(p.held) > 0:
				state = Held
			}
			want[p.name] = describe(state, p.inAPI, slices.Sorted(maps.Keys(p.held)))
		}
	}
	for _, p := range n.Pods().Items {
		var held []Cause
		for _, h := range p.Holds {
			held = append(held, h.Cause)
		}
		got[p.Name] = describe(p.State, p.ObjectPresent, held)
	}
	require.Equal(n.t, want, got)
}

func (n *modelNode) compareMetrics() {
	want := map[string]float64{}
	for c, count := range n.refused {
		want["refused_kills_total{cause="+string(c)+"}"] = float64(count)
	}
	if n.allowed > 0 {
		want["allowed_kills_total{cause=ExplicitDeletion}"] = float64(n.allowed)
	}
	for _, p := range n.pods {
		if p.known && !p.seen && !p.ended {
			want["protected_pods{}"]++
		}
		for c := range p.held {
			want["held_pods{cause="+string(c)+"}"]++
		}
	}
	got := n.series()
	delete(got, "oldest_hold_seconds{}")
	delete(got, "errors_total{operation=Runtime}")
	require.Equal(n.t, want, got)
}

func TestModel(t *testing.T) {
	number := func(name string, otherwise uint64) uint64 {
		if value, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
			return value
		}
		return otherwise
	}
	first := number("GUARD_MODEL_SEED", rand.Uint64N(1<<32))
	usual := uint64(2000)
	if testing.Short() {
		usual = 200
	}
	sequences := number("GUARD_MODEL_SEQUENCES", usual)
	var n *modelNode
	seed := first
	defer func() {
		if t.Failed() {
			t.Logf("Sequence of GUARD_MODEL_SEED=%d GUARD_MODEL_SEQUENCES=1:\n%s", seed, strings.Join(n.log, "\n"))
		}
	}()
	attempts, holds := 0, 0
	for ; seed < first+sequences; seed++ {
		n = newModelNode(t, seed)
		for range 60 {
			n.step()
			n.compare()
		}
		n.compareMetrics()
		attempts += len(n.log)
		for _, count := range n.refused {
			holds += count
		}
	}
	t.Logf("%d sequences from seed %d, %d steps, %d holds in the last life of the kubelet", sequences, first, attempts, holds)
	require.Positive(t, holds)
}
