package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestProtects(t *testing.T) {
	byExpression := func(c *Configuration) {
		c.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "tier", Operator: metav1.LabelSelectorOpIn, Values: []string{"database", "queue"}},
			{Key: "scratch", Operator: metav1.LabelSelectorOpDoesNotExist},
		}}
	}
	labels := func(l map[string]string) *v1.Pod { return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: l}} }
	annotated := func(annotations map[string]string) *v1.Pod {
		pod := protectedPod("p")
		pod.Annotations = annotations
		return pod
	}
	for name, test := range map[string]struct {
		option func(*Configuration)
		pod    *v1.Pod
		want   bool
	}{
		"labelled pod of the API source":          {pod: protectedPod("p"), want: true},
		"labelled pod as the API sends it":        {pod: annotated(nil), want: true},
		"pod without labels":                      {pod: labels(nil)},
		"pod with other labels":                   {pod: plainPod("p")},
		"label with another value":                {pod: labels(map[string]string{ExplicitDeletionLabel: "optional"})},
		"label without a value":                   {pod: labels(map[string]string{ExplicitDeletionLabel: ""})},
		"mirror pod":                              {pod: annotated(map[string]string{mirrorAnnotation: "x", sourceAnnotation: apiSource})},
		"static pod from a file":                  {pod: annotated(map[string]string{sourceAnnotation: "file"})},
		"static pod from a URL":                   {pod: annotated(map[string]string{sourceAnnotation: "http"})},
		"labelled pod in mode Audit":              {option: inMode(Audit), pod: protectedPod("p"), want: true},
		"labelled pod in mode Off":                {option: inMode(Off), pod: protectedPod("p")},
		"pod that matches the expressions":        {option: byExpression, pod: labels(map[string]string{"tier": "queue"}), want: true},
		"pod that matches one expression only":    {option: byExpression, pod: labels(map[string]string{"tier": "queue", "scratch": ""})},
		"default label with another selector":     {option: byExpression, pod: protectedPod("p")},
		"pod without labels and another selector": {option: byExpression, pod: labels(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			var options []func(*Configuration)
			if test.option != nil {
				options = append(options, test.option)
			}
			assert.Equal(t, test.want, newFixture(t, options...).Protects(test.pod))
		})
	}
}

// attempt calls the hook with which the kubelet attempts to stop the pod for
// the cause, the last line of defence included.
func (f *fixture) attempt(pod *v1.Pod, cause Cause) bool {
	f.t.Helper()
	switch cause {
	case PodVanished:
		return f.HoldVanished(apiSource, pod)
	case OrphanedRuntimePod:
		return f.RefuseTermination(&v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}}, true, true, false)
	case VolumeUnmount, ResourcesReclaimed:
		return f.RefuseUID(pod.UID, cause, "detail")
	case TerminalPhaseReported:
		return f.RefuseTermination(inPhase(pod, v1.PodFailed), false, false, false)
	case Evicted:
		return f.RefuseTermination(pod, false, true, true)
	case Preempted, NodeShutdown:
		return len(f.FilterStoppable([]*v1.Pod{pod}, cause, "detail")) == 0
	case CgroupCleanup:
		return f.RefuseCgroupRemoval([]string{"kubepods", "pod" + string(pod.UID)})
	case SandboxChanged:
		f.runtime.mu.Lock()
		known := 0
		if f.runtime.containers[string(pod.UID)+"-c"] != nil {
			known = 1
		}
		f.runtime.mu.Unlock()
		return f.RefuseSandboxChange(pod, known)
	case ContainerHashChanged:
		return f.RefuseContainerChange(pod, &pod.Spec.Containers[0], string(pod.UID)+"-c")
	case RuntimeStop:
		err := f.RuntimeService(f.runtime).StopContainer(context.Background(), string(pod.UID)+"-c", 0)
		if err != nil && f.runtime.err == nil && len(f.runtime.failing) == 0 {
			assert.ErrorIs(f.t, err, ErrRefused)
		}
		return err != nil
	default:
		return f.Refuse(pod, cause, "detail")
	}
}

// Every cause, against every condition in which the runtime can be.
func TestRefuse(t *testing.T) {
	conditions := []struct {
		name    string
		arrange func(*fakeRuntime, *v1.Pod)
		refused func(Cause) bool
	}{
		{
			name:    "running container",
			arrange: func(r *fakeRuntime, p *v1.Pod) { r.run(p, runtimeapi.ContainerState_CONTAINER_RUNNING) },
			refused: func(Cause) bool { return true },
		},
		{
			name:    "container in an unknown state",
			arrange: func(r *fakeRuntime, p *v1.Pod) { r.run(p, runtimeapi.ContainerState_CONTAINER_UNKNOWN) },
			refused: func(Cause) bool { return true },
		},
		{
			name:    "exited container in a ready sandbox",
			arrange: func(r *fakeRuntime, p *v1.Pod) { r.run(p, runtimeapi.ContainerState_CONTAINER_EXITED) },
			// The caller of ContainerHashChanged knows that the container runs.
			refused: func(c Cause) bool { return !c.needsRunningContainer() || c == ContainerHashChanged },
		},
		{
			name: "running container in a lost sandbox",
			arrange: func(r *fakeRuntime, p *v1.Pod) {
				r.run(p, runtimeapi.ContainerState_CONTAINER_RUNNING)
				r.setSandbox(p, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
			},
			refused: func(Cause) bool { return true },
		},
		{
			name: "exited container in a stopped sandbox",
			arrange: func(r *fakeRuntime, p *v1.Pod) {
				r.run(p, runtimeapi.ContainerState_CONTAINER_EXITED)
				r.setSandbox(p, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
			},
			refused: func(c Cause) bool { return c == ContainerHashChanged },
		},
		{
			name:    "nothing",
			arrange: func(*fakeRuntime, *v1.Pod) {},
			refused: func(c Cause) bool { return c == ContainerHashChanged },
		},
		{
			name: "runtime that responds with errors",
			arrange: func(r *fakeRuntime, p *v1.Pod) {
				r.run(p, runtimeapi.ContainerState_CONTAINER_RUNNING)
				r.err = errors.New("connection refused")
			},
			refused: func(Cause) bool { return true },
		},
		{
			name: "runtime that lists containers but no sandboxes",
			arrange: func(r *fakeRuntime, p *v1.Pod) {
				r.run(p, runtimeapi.ContainerState_CONTAINER_EXITED)
				r.failing["ListPodSandbox"] = errors.New("unavailable")
			},
			refused: func(c Cause) bool { return !c.needsRunningContainer() || c == ContainerHashChanged },
		},
		{
			name: "containers of another pod",
			arrange: func(r *fakeRuntime, _ *v1.Pod) {
				r.run(protectedPod("other"), runtimeapi.ContainerState_CONTAINER_RUNNING)
				r.unfiltered = true
			},
			refused: func(c Cause) bool { return c == ContainerHashChanged },
		},
	}
	for _, condition := range conditions {
		for _, cause := range causes {
			t.Run(condition.name+"/"+string(cause), func(t *testing.T) {
				f := newFixture(t)
				pod := protectedPod("p")
				f.ObserveSource(apiSource, []*v1.Pod{pod})
				condition.arrange(f.runtime, pod)
				want := condition.refused(cause)
				assert.Equal(t, want, f.attempt(pod, cause))
				if !want {
					assert.Nil(t, append([]Cause(nil), f.held(pod)...))
				}

				f = newFixture(t)
				plain := plainPod("p")
				f.ObserveSource(apiSource, []*v1.Pod{plain})
				condition.arrange(f.runtime, plain)
				if cause != RuntimeStop || f.runtime.err == nil {
					assert.False(t, f.attempt(plain, cause), "unprotected")
				}
				assert.Empty(t, f.series(), "unprotected")

				f = newFixture(t)
				f.ObserveSource(apiSource, []*v1.Pod{pod})
				f.observe(deleted(pod))
				condition.arrange(f.runtime, pod)
				if cause != RuntimeStop || f.runtime.err == nil {
					assert.False(t, f.attempt(pod, cause), "with evidence")
				}
				assert.Nil(t, append([]Cause(nil), f.held(pod)...))
			})
		}
	}
}

func TestRefuseQueriesTheRuntimeOnlyWhenItMatters(t *testing.T) {
	for name, test := range map[string]struct {
		option  func(*Configuration)
		arrange func(*fixture, *v1.Pod)
		label   string
	}{
		"unprotected": {arrange: func(f *fixture, p *v1.Pod) {
			delete(p.Labels, ExplicitDeletionLabel)
			f.ObserveSource(apiSource, []*v1.Pod{p})
		}},
		"evidence":      {arrange: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }},
		"completed":     {arrange: func(f *fixture, p *v1.Pod) { f.AllowCompletion(p.UID) }},
		"exempt causes": {option: allowing(causes...), arrange: func(*fixture, *v1.Pod) {}},
		"mode Off":      {option: inMode(Off), arrange: func(*fixture, *v1.Pod) {}},
	} {
		t.Run(name, func(t *testing.T) {
			var options []func(*Configuration)
			if test.option != nil {
				options = append(options, test.option)
			}
			f := newFixture(t, options...)
			pod := protectedPod("p")
			f.running(pod)
			test.arrange(f, pod)
			for _, cause := range causes {
				if cause != RuntimeStop && cause != ContainerHashChanged {
					assert.False(t, f.attempt(pod, cause), cause)
				}
			}
			assert.Zero(t, f.runtime.queries())
		})
	}
}

func TestRuntimeThatDoesNotRespond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		var pods []*v1.Pod
		for i := range 110 {
			pods = append(pods, protectedPod(fmt.Sprint("p", i)))
		}
		f.running(pods...)
		f.runtime.hang = true
		start := time.Now()
		for _, pod := range pods {
			assert.True(t, f.Refuse(pod, Evicted, ""))
		}
		assert.Equal(t, queryTimeout, time.Since(start), "only the first pod waits")
		assert.Equal(t, 1.0, f.series()["errors_total{operation=Runtime}"])

		f.clock.Step(confirmInterval)
		f.runtime.hang = false
		f.runtime.remove(pods[0])
		assert.False(t, f.Refuse(pods[0], Preempted, ""), "checked again later")
	})
}

func TestRetriesQueryTheRuntimeOnlyNowAndThen(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	for range 100 {
		assert.True(t, f.RefuseUID(pod.UID, VolumeUnmount, ""))
	}
	assert.Equal(t, 1, f.runtime.queries())
	f.clock.Step(confirmInterval)
	f.runtime.setContainer(pod, runtimeapi.ContainerState_CONTAINER_EXITED)
	assert.False(t, f.RefuseUID(pod.UID, VolumeUnmount, ""))
	assert.Equal(t, 2, f.runtime.queries())
}

func TestEvidence(t *testing.T) {
	t.Run("is a deletionTimestamp on the object that a hook has", func(t *testing.T) {
		for _, hook := range []func(*fixture, *v1.Pod) bool{
			func(f *fixture, p *v1.Pod) bool { return f.Refuse(p, Evicted, "") },
			func(f *fixture, p *v1.Pod) bool { return f.RefuseTermination(p, false, true, false) },
			func(f *fixture, p *v1.Pod) bool { return f.RefuseSandboxChange(p, 1) },
			func(f *fixture, p *v1.Pod) bool { return f.RefuseContainerChange(p, &p.Spec.Containers[0], "p-uid-c") },
			func(f *fixture, p *v1.Pod) bool { return f.CheckKill(p) != nil },
			func(f *fixture, p *v1.Pod) bool { return f.HoldVanished(apiSource, p) },
			func(f *fixture, p *v1.Pod) bool { return len(f.FilterUnprotected([]*v1.Pod{p}, Preempted)) == 0 },
		} {
			f := newFixture(t)
			pod := protectedPod("p")
			f.running(pod)
			assert.False(t, hook(f, deleted(pod)))
			assert.Equal(t, Terminating, f.state(pod))
			assert.False(t, f.Refuse(pod, Evicted, ""), "sticky, also for an older object")
		}
	})
	t.Run("that arrives during the query of the runtime ends the attempt, without a hold", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		f.runtime.during = func() { f.observe(deleted(pod)) }
		assert.False(t, f.HoldVanished(apiSource, pod))
		assert.Empty(t, f.held(pod))
		assert.Empty(t, f.events.take())
	})
	t.Run("releases a held pod at once", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		for _, cause := range causes {
			require.True(t, f.attempt(pod, cause), cause)
		}
		f.observe(deleted(pod))
		for _, cause := range causes {
			assert.False(t, f.attempt(pod, cause), cause)
		}
		assert.Equal(t, 1.0, f.series()["allowed_kills_total{cause=ExplicitDeletion}"], "counted once per pod")
	})
	t.Run("outlives the API object, a restore and the containers", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		f.observe(deleted(pod))
		f.ObserveSource(apiSource, nil)
		f.pass(time.Hour)
		assert.False(t, f.HoldVanished(apiSource, pod))
		f.ObserveSource(apiSource, []*v1.Pod{pod})
		assert.False(t, f.Refuse(pod, Evicted, ""))
		f.runtime.setContainer(pod, runtimeapi.ContainerState_CONTAINER_EXITED)
		f.ObserveSource(apiSource, nil)
		f.pass(time.Hour)
		assert.Equal(t, Terminating, f.state(pod), "its sandbox is up")
	})
	t.Run("counts for a pod that has just lost its label", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		last := deleted(pod)
		delete(last.Labels, ExplicitDeletionLabel)
		f.observe(last)
		assert.False(t, f.HoldVanished(apiSource, pod))
	})
	t.Run("of an unprotected pod is not kept", func(t *testing.T) {
		f := newFixture(t)
		f.observe(deleted(plainPod("p")))
		assert.Empty(t, f.records)
	})
}

func TestRefuseTermination(t *testing.T) {
	for name, test := range map[string]struct {
		pod                      func(*v1.Pod) *v1.Pod
		runtimeOnly, kill, evict bool
		want                     []Cause
	}{
		"ordinary update":                   {},
		"kill":                              {kill: true, want: []Cause{PodVanished}},
		"eviction":                          {kill: true, evict: true, want: []Cause{Evicted}},
		"orphan":                            {runtimeOnly: true, kill: true, want: []Cause{OrphanedRuntimePod}},
		"claimed failure":                   {pod: func(p *v1.Pod) *v1.Pod { return inPhase(p, v1.PodFailed) }, want: []Cause{TerminalPhaseReported}},
		"claimed success":                   {pod: func(p *v1.Pod) *v1.Pod { return inPhase(p, v1.PodSucceeded) }, want: []Cause{TerminalPhaseReported}},
		"deletion":                          {pod: deleted},
		"deletion with a kill":              {pod: deleted, kill: true},
		"deletion of a pod claimed to fail": {pod: func(p *v1.Pod) *v1.Pod { return deleted(inPhase(p, v1.PodFailed)) }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := protectedPod("p")
			f.running(pod)
			if test.pod != nil {
				pod = test.pod(pod)
			}
			assert.Equal(t, len(test.want) > 0, f.RefuseTermination(pod, test.runtimeOnly, test.kill, test.evict))
			assert.Equal(t, test.want, append([]Cause(nil), f.held(pod)...))
		})
	}
}

func TestExemptions(t *testing.T) {
	endOfPod := func(f *fixture, p *v1.Pod) { f.AllowCompletion(p.UID) }
	for name, test := range map[string]struct {
		options []func(*Configuration)
		before  func(*fixture, *v1.Pod)
		// refused are the causes that are refused afterwards.
		refused func(Cause) bool
	}{
		"completion ends protection": {before: endOfPod, refused: func(Cause) bool { return false }},
		"a restart lets containers be stopped, and nothing else": {
			before:  func(f *fixture, p *v1.Pod) { f.AllowRestart(p) },
			refused: func(c Cause) bool { return c != RuntimeStop },
		},
		"a restart ends with the new sandbox": {
			before: func(f *fixture, p *v1.Pod) {
				f.AllowRestart(p)
				_, err := f.RuntimeService(f.runtime).RunPodSandbox(context.Background(),
					&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(p.UID)}}, "")
				require.NoError(f.t, err)
			},
			refused: func(Cause) bool { return true },
		},
		"a declared stop is for the container": {
			before:  func(f *fixture, p *v1.Pod) { f.AllowStop(p, string(p.UID)+"-c") },
			refused: func(c Cause) bool { return c != RuntimeStop },
		},
		"a declared stop is for that container only": {
			before:  func(f *fixture, p *v1.Pod) { f.AllowStop(p, "another") },
			refused: func(Cause) bool { return true },
		},
		"a declared stop of an unprotected pod is not noted": {
			before: func(f *fixture, p *v1.Pod) {
				f.AllowStop(plainPod("x"), string(p.UID)+"-c")
				f.AllowStop(nil, string(p.UID)+"-c")
			},
			refused: func(Cause) bool { return true },
		},
		"an exempt cause that ends the pod lets it end": {
			options: []func(*Configuration){allowing(NodeShutdown)},
			before:  func(f *fixture, p *v1.Pod) { assert.False(f.t, f.attempt(p, NodeShutdown)) },
			refused: func(Cause) bool { return false },
		},
		"an exempt cause that restarts the pod does not disarm the guard": {
			options: []func(*Configuration){allowing(SandboxChanged)},
			before:  func(f *fixture, p *v1.Pod) { assert.False(f.t, f.attempt(p, SandboxChanged)) },
			refused: func(c Cause) bool { return c != SandboxChanged && c != RuntimeStop },
		},
		"an exempt cause that touches one container does not disarm the guard": {
			options: []func(*Configuration){allowing(ContainerHashChanged)},
			before:  func(f *fixture, p *v1.Pod) { assert.False(f.t, f.attempt(p, ContainerHashChanged)) },
			refused: func(c Cause) bool { return c != ContainerHashChanged },
		},
		"an exempt claim that the kubelet withdraws is no end": {
			options: []func(*Configuration){allowing(TerminalPhaseReported)},
			before: func(f *fixture, p *v1.Pod) {
				f.ObserveSource(apiSource, []*v1.Pod{inPhase(p, v1.PodFailed)})
				assert.Equal(f.t, Terminating, f.state(p))
				f.ObserveSource(apiSource, []*v1.Pod{p})
			},
			refused: func(c Cause) bool { return c != TerminalPhaseReported },
		},
		"a pod that vanished while nothing ran is protected again when it is back": {
			before: func(f *fixture, p *v1.Pod) {
				f.runtime.remove(p)
				f.ObserveSource(apiSource, nil)
				assert.False(f.t, f.HoldVanished(apiSource, p))
				assert.Equal(f.t, Terminating, f.state(p))
				f.running(p)
				assert.Equal(f.t, Protected, f.state(p))
			},
			refused: func(Cause) bool { return true },
		},
		"a pod that vanished by an exempt cause is still being stopped when it is back": {
			options: []func(*Configuration){allowing(PodVanished)},
			before: func(f *fixture, p *v1.Pod) {
				f.ObserveSource(apiSource, nil)
				assert.False(f.t, f.HoldVanished(apiSource, p))
				f.ObserveSource(apiSource, []*v1.Pod{p})
			},
			refused: func(Cause) bool { return false },
		},
		"completion of an unknown pod is no exemption": {
			before:  func(f *fixture, _ *v1.Pod) { f.AllowCompletion("unknown") },
			refused: func(Cause) bool { return true },
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, cause := range causes {
				f := newFixture(t, test.options...)
				pod := protectedPod("p")
				f.running(pod)
				test.before(f, pod)
				assert.Equal(t, test.refused(cause), f.attempt(pod, cause), cause)
			}
		})
	}
	t.Run("a victim of which nothing runs is protected until it is stopped", func(t *testing.T) {
		f := newFixture(t)
		victim, other := protectedPod("victim"), protectedPod("other")
		f.ObserveSource(apiSource, []*v1.Pod{victim, other})
		f.runtime.run(other, runtimeapi.ContainerState_CONTAINER_RUNNING)
		assert.Equal(t, []*v1.Pod{victim}, f.FilterStoppable([]*v1.Pod{victim, other}, Preempted, ""))
		assert.Empty(t, f.FilterUnprotected([]*v1.Pod{victim, other}, Preempted), "others are chosen")
		f.runtime.run(victim, runtimeapi.ContainerState_CONTAINER_RUNNING)
		assert.True(t, f.Refuse(victim, Evicted, ""))
	})
	t.Run("an end that is allowed, or finds nothing, ends the holds", func(t *testing.T) {
		for name, end := range map[string]func(*fixture, *v1.Pod){
			"completion": endOfPod,
			"exemption":  func(f *fixture, p *v1.Pod) { assert.False(t, f.attempt(p, NodeShutdown)) },
			"nothing runs": func(f *fixture, p *v1.Pod) {
				f.runtime.remove(p)
				f.clock.Step(confirmInterval)
				assert.False(t, f.attempt(p, Evicted))
			},
		} {
			t.Run(name, func(t *testing.T) {
				f := newFixture(t, allowing(NodeShutdown))
				pod := protectedPod("p")
				f.running(pod)
				f.ObserveSource(apiSource, nil)
				require.True(t, f.HoldVanished(apiSource, pod))
				end(f, pod)
				assert.Empty(t, f.held(pod))
				assert.Equal(t, Terminating, f.state(pod))
				assert.False(t, f.HoldVanished(apiSource, pod))
				f.runtime.remove(pod)
				f.pass(time.Hour)
				assert.Empty(t, f.records, "nothing is left of it")
			})
		}
	})
}

func TestAudit(t *testing.T) {
	for _, cause := range causes {
		t.Run(string(cause), func(t *testing.T) {
			f := newFixture(t, inMode(Audit))
			pod := protectedPod("p")
			f.running(pod)
			for range 3 {
				assert.False(t, f.attempt(pod, cause))
			}
			protected := 1.0
			if cause.endsPod() {
				protected = 0
			}
			want := map[string]float64{"audited_kills_total{cause=" + string(cause) + "}": 1}
			if protected > 0 {
				want["protected_pods{}"] = protected
			}
			assert.Equal(t, want, f.series())
			assert.Empty(t, f.events.take())
			assert.Empty(t, f.held(pod))
			if cause == RuntimeStop {
				assert.Equal(t, []string{"StopContainer p-uid-c", "StopContainer p-uid-c", "StopContainer p-uid-c"}, f.runtime.done)
			}
		})
	}
	t.Run("what ends the pod is one audited kill, not one per step of it", func(t *testing.T) {
		f := newFixture(t, inMode(Audit))
		pod := protectedPod("p")
		f.running(pod)
		for _, cause := range causes {
			assert.False(t, f.attempt(pod, cause))
		}
		assert.Equal(t, map[string]float64{"audited_kills_total{cause=AdmissionRejected}": 1}, f.series())
	})
	t.Run("a false claim is handed on", func(t *testing.T) {
		f := newFixture(t, inMode(Audit))
		pod := inPhase(protectedPod("p"), v1.PodFailed)
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		assert.Equal(t, []*v1.Pod{pod}, f.ObserveSource(apiSource, []*v1.Pod{pod}))
	})
	t.Run("an attempt after a pause counts again", func(t *testing.T) {
		f := newFixture(t, inMode(Audit))
		pod := protectedPod("p")
		f.running(pod)
		f.attempt(pod, VolumeUnmount)
		f.pass(holdLinger + time.Minute)
		f.attempt(pod, VolumeUnmount)
		assert.Equal(t, 2.0, f.series()["audited_kills_total{cause=VolumeUnmount}"])
	})
	t.Run("a pod that cannot be judged is not kept", func(t *testing.T) {
		f := newFixture(t, inMode(Audit))
		f.runtime.run(protectedPod("p"), runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.runtime.failing["ListPodSandbox"] = errors.New("unavailable")
		assert.False(t, f.RefuseUID("p-uid", VolumeUnmount, ""))
		assert.False(t, f.attempt(protectedPod("p"), RuntimeStop))
	})
}

func TestOff(t *testing.T) {
	f := newFixture(t, inMode(Off))
	assert.Equal(t, Off, f.Mode())
	pod := protectedPod("p")
	f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
	claim := inPhase(pod, v1.PodFailed)
	assert.Equal(t, []*v1.Pod{claim}, f.ObserveSource(apiSource, []*v1.Pod{claim}))
	assert.Same(t, f.runtime, f.RuntimeService(f.runtime))
	for _, cause := range causes {
		assert.False(t, f.attempt(pod, cause), cause)
	}
	f.observe(deleted(pod))
	f.AllowCompletion(pod.UID)
	f.AllowRestart(pod)
	f.AllowStop(pod, "c")
	require.NoError(t, f.CheckKill(pod))
	assert.Equal(t, []*v1.Pod{pod}, f.FilterUnprotected([]*v1.Pod{pod}, Preempted))
	status, node := &v1.PodStatus{}, &v1.Node{}
	f.CompletePodStatus(pod, &v1.PodStatus{}, status)
	f.SetNodeCondition(node)
	assert.Equal(t, &v1.PodStatus{}, status)
	assert.Equal(t, &v1.Node{}, node)
	f.tidy()
	assert.Zero(t, f.runtime.queries())
	assert.Empty(t, f.records)
	assert.Empty(t, f.stops)
	assert.Empty(t, f.unprotected)
	assert.Empty(t, f.series())
	assert.Equal(t, PodList{Version: Version(), Mode: Off, Items: []PodState{}}, f.Pods())
}

func TestAllowedCauses(t *testing.T) {
	for _, exempt := range causes {
		t.Run(string(exempt), func(t *testing.T) {
			f := newFixture(t, allowing(exempt))
			pod := protectedPod("p")
			f.running(pod)
			for range 3 {
				assert.False(t, f.attempt(pod, exempt))
			}
			assert.Equal(t, 1.0, f.series()["allowed_kills_total{cause="+string(exempt)+"}"])
			assert.Empty(t, f.held(pod))
			assert.Empty(t, f.events.take())
		})
	}
}

func TestFilterStoppableAndUnprotected(t *testing.T) {
	f := newFixture(t)
	plain, running, ended, going := plainPod("plain"), protectedPod("running"), protectedPod("ended"), protectedPod("going")
	static := protectedPod("static")
	static.Annotations[sourceAnnotation] = "file"
	all := []*v1.Pod{plain, running, ended, deleted(going), static}
	f.ObserveSource(apiSource, []*v1.Pod{plain, running, ended, going})
	f.observe(deleted(going))
	f.runtime.run(running, runtimeapi.ContainerState_CONTAINER_RUNNING)
	f.runtime.run(going, runtimeapi.ContainerState_CONTAINER_RUNNING)

	t.Run("choosing among pods takes note of nothing", func(t *testing.T) {
		before := f.series()
		assert.Equal(t, []*v1.Pod{plain, all[3], static}, f.FilterUnprotected(all, Preempted))
		assert.Equal(t, before, f.series())
		assert.Zero(t, f.runtime.queries())
	})
	t.Run("those that may be stopped keep their order, the others are held", func(t *testing.T) {
		assert.Equal(t, []*v1.Pod{plain, ended, all[3], static}, f.FilterStoppable(all, NodeShutdown, "the node shuts down"))
		assert.Equal(t, []Cause{NodeShutdown}, f.held(running))
		assert.Len(t, all, 5)
	})
}

func TestLabelRemoved(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	require.True(t, f.Refuse(pod, Evicted, ""))
	f.events.take()
	without := plainPod("p")
	f.ObserveSource(apiSource, []*v1.Pod{without})

	assert.Equal(t, []string{"Normal HoldReleased Pod/p"}, f.events.take())
	assert.Empty(t, f.records)
	for _, cause := range causes {
		assert.False(t, f.attempt(without, cause), cause)
	}
	assert.False(t, f.Refuse(pod, Evicted, ""), "a hook with an object from before")
	assert.False(t, f.RefuseUID(pod.UID, VolumeUnmount, ""), "its sandbox still has the label")
	assert.Empty(t, f.records)

	t.Run("during the query of the runtime", func(t *testing.T) {
		f := newFixture(t)
		f.running(pod)
		f.runtime.during = func() { f.ObserveSource(apiSource, []*v1.Pod{without}) }
		assert.False(t, f.Refuse(pod, Evicted, ""))
		assert.Empty(t, f.records)
		assert.Empty(t, f.series())
	})
	t.Run("and restored", func(t *testing.T) {
		f.ObserveSource(apiSource, []*v1.Pod{pod})
		assert.True(t, f.Refuse(pod, Evicted, ""))
	})
}

func TestPodKnownFromItsSandboxOnly(t *testing.T) {
	t.Run("is protected by the labels of the sandbox", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		assert.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, "detail"))
		assert.Equal(t, []string{"Warning KillRefused Pod/p", "Warning KillRefused Node/node-1"}, f.events.take())
		assert.Equal(t, []PodState{{
			Namespace: "default", Name: "p", UID: pod.UID, State: Held,
			Holds: []HoldState{{Cause: OrphanedRuntimePod, Since: epoch, LastAttempt: epoch, Message: "detail"}}, Audited: []HoldState{},
		}}, f.Pods().Items)
	})
	t.Run("is protected after one of its containers was found to have ended", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.runtime.containers["ended"] = &runtimeapi.Container{
			Id: "ended", PodSandboxId: "p-uid-s", State: runtimeapi.ContainerState_CONTAINER_EXITED, Labels: f.runtime.containers["p-uid-c"].Labels,
		}
		f.relist()
		service := f.RuntimeService(f.runtime)
		require.NoError(t, service.RemoveContainer(t.Context(), "ended"), "nothing of it runs")
		assert.ErrorIs(t, service.StopContainer(t.Context(), "p-uid-c", 1), ErrRefused)
		assert.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
	})
	t.Run("is protected in its back-off", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_EXITED)
		f.relist()
		require.False(t, f.attempt(pod, RuntimeStop), "its container has ended")
		assert.True(t, f.RefuseUID(pod.UID, ResourcesReclaimed, ""), "its sandbox is up")
	})
	t.Run("is protected as soon as it starts again", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_EXITED)
		f.runtime.setSandbox(pod, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
		f.relist()
		require.False(t, f.RefuseUID(pod.UID, ResourcesReclaimed, ""), "it has ended")
		service := f.RuntimeService(f.runtime)
		labels := maps.Clone(pod.Labels)
		labels[podUIDLabel], labels[podNameLabel], labels[podNamespaceLabel] = string(pod.UID), pod.Name, pod.Namespace
		config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID)}, Labels: labels, Annotations: pod.Annotations}
		_, err := service.RunPodSandbox(t.Context(), config, "")
		require.NoError(t, err)
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.relist()
		assert.True(t, f.RefuseUID(pod.UID, ResourcesReclaimed, ""))
	})
	t.Run("of a static pod is not protected", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		pod.Annotations[sourceAnnotation] = "file"
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		for range 10 {
			assert.False(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
		}
		assert.Equal(t, 1, f.runtime.queries(), "remembered")
	})
	t.Run("is judged by the newest sandbox", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.runtime.sandboxes["p-uid-s"].CreatedAt = 2
		f.runtime.sandboxes["older"] = &runtimeapi.PodSandbox{Id: "older", CreatedAt: 1, Labels: map[string]string{podUIDLabel: "p-uid"}}
		assert.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
	})
	t.Run("is kept while the sandbox cannot be read", func(t *testing.T) {
		f := newFixture(t, allowing(VolumeUnmount))
		f.runtime.run(protectedPod("p"), runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.runtime.fail(errors.New("unavailable"))
		assert.True(t, f.RefuseUID("p-uid", CgroupCleanup, ""))
		assert.False(t, f.RefuseUID("p-uid", VolumeUnmount, ""), "exempt")
		assert.Empty(t, f.records)
		assert.Equal(t, map[string]float64{"errors_total{operation=Runtime}": 2}, f.series())
		f.runtime.fail(nil)
		assert.True(t, f.RefuseUID("p-uid", CgroupCleanup, ""))
	})
	t.Run("is not judged by the sandboxes of other pods", func(t *testing.T) {
		f := newFixture(t)
		f.runtime.run(protectedPod("p"), runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.runtime.unfiltered = true
		assert.False(t, f.RefuseUID("nobody", CgroupCleanup, ""))
		assert.Empty(t, f.records)
	})
	t.Run("that does not exist is nobody's", func(t *testing.T) {
		f := newFixture(t)
		assert.False(t, f.RefuseUID("nobody", CgroupCleanup, ""))
		assert.False(t, f.RefuseCgroupRemoval([]string{"kubepods", "podnobody"}))
		assert.Empty(t, f.records)
	})
	t.Run("that the API delivers meanwhile is judged by the object", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.runtime.run(plainPod("p"), runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.runtime.during = func() { f.ObserveSource(apiSource, []*v1.Pod{pod}) }
		assert.True(t, f.RefuseUID(pod.UID, CgroupCleanup, ""))
		assert.True(t, f.Refuse(pod, Evicted, ""))
	})
	t.Run("without a runtime is nobody's", func(t *testing.T) {
		g, err := New(Dependencies{Configuration: DefaultConfiguration()})
		require.NoError(t, err)
		assert.False(t, g.RefuseUID("p-uid", CgroupCleanup, ""))
	})
}

func TestSandboxOfAPodWithoutContainersIsReplacedWithoutAQuery(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	assert.False(t, f.RefuseSandboxChange(pod, 0))
	assert.Zero(t, f.runtime.queries())
	assert.True(t, f.RefuseSandboxChange(pod, 1))
}

func TestRefuseCgroupRemovalIgnoresOtherCgroups(t *testing.T) {
	f := newFixture(t)
	f.running(protectedPod("p"))
	for _, name := range [][]string{nil, {}, {"kubepods"}, {"kubepods", "burstable"}, {"podp-uid", "container"}, {"kubepods", "p-uid"}} {
		assert.False(t, f.RefuseCgroupRemoval(name), name)
	}
	assert.True(t, f.RefuseCgroupRemoval([]string{"kubepods", "burstable", "podp-uid"}))
}

func TestNoRecordOutlivesItsPod(t *testing.T) {
	f := newFixture(t)
	pods := []*v1.Pod{protectedPod("a"), protectedPod("b"), plainPod("c")}
	f.running(pods...)
	for _, pod := range pods {
		f.AllowStop(pod, string(pod.UID)+"-c")
		f.observe(deleted(pod))
		f.runtime.remove(pod)
	}
	f.ObserveSource(apiSource, nil)
	f.observe(deleted(protectedPod("seen-in-one-event")))
	f.pass(unprotectedLinger + time.Hour)
	assert.Empty(t, f.records)
	assert.Empty(t, f.stops)
	assert.Empty(t, f.unprotected)

	t.Run("but a held pod's does while its sandbox is replaced", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		f.ObserveSource(apiSource, nil)
		require.True(t, f.HoldVanished(apiSource, pod))
		f.runtime.remove(pod)
		f.pass(time.Hour)
		assert.True(t, f.HoldVanished(apiSource, pod))
	})
	t.Run("and an orphan's ends with its containers", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		require.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
		f.events.take()
		f.pass(time.Hour)
		require.Len(t, f.records, 1)
		f.runtime.remove(pod)
		f.pass(time.Minute)
		assert.Empty(t, f.records)
		assert.Equal(t, []string{"Normal HoldReleased Pod/p", "Normal HoldReleased Node/node-1"}, f.events.take())
	})
	t.Run("nor does a refusal get lost with one that is forgotten just then", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		f.runtime.during = func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.records, pod.UID)
		}
		require.True(t, f.Refuse(pod, Evicted, ""))
		assert.Equal(t, []Cause{Evicted}, f.held(pod))
	})
	t.Run("nor while the runtime does not respond", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		f.ObserveSource(apiSource, nil)
		f.runtime.fail(errors.New("unavailable"))
		f.pass(time.Hour)
		assert.Len(t, f.records, 1)
	})
}

func TestClockSetBack(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	require.True(t, f.Refuse(pod, Evicted, ""))
	f.clock.SetTime(epoch.Add(-24 * time.Hour))
	f.tidy()
	assert.Equal(t, []Cause{Evicted}, f.held(pod))
	assert.NotContains(t, f.series(), "oldest_hold_seconds{}")
	assert.True(t, f.Refuse(pod, Evicted, ""))
	f.pass(holdLinger + time.Minute)
	assert.Empty(t, f.held(pod))
	assert.Equal(t, 1.0, f.series()["refused_kills_total{cause=Evicted}"])
}

func TestRun(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	ctx, cancel := context.WithCancel(context.Background())
	synced := make(chan types.UID, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx, func(uid types.UID, _ bool) { synced <- uid })
	}()
	require.True(t, f.Refuse(pod, Evicted, ""))
	assert.Equal(t, pod.UID, <-synced, "a hold")
	require.Eventually(t, f.clock.HasWaiters, time.Minute, time.Millisecond)
	f.clock.Step(holdLinger + tidyInterval)
	assert.Equal(t, pod.UID, <-synced, "the end of the hold")
	cancel()
	<-done

	t.Run("a full queue blocks nobody", func(t *testing.T) {
		f := newFixture(t)
		for i := range 2 * cap(f.syncs) {
			pod := protectedPod(fmt.Sprint("p", i))
			f.running(pod)
			require.True(t, f.Refuse(pod, Evicted, ""))
		}
	})
	t.Run("a rejected pod is not synced before its resources are allocated", func(t *testing.T) {
		f := newFixture(t)
		f.running(pod)
		require.True(t, f.Refuse(pod, AdmissionRejected, ""))
		assert.Empty(t, f.syncs)
	})
}

// Everything at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	f := newFixture(t)
	f.events.guard = f.Guard
	var pods []*v1.Pod
	for i := range 8 {
		pods = append(pods, protectedPod(fmt.Sprint("p", i)))
	}
	pods = append(pods, plainPod("plain"))
	f.running(pods...)
	service := f.RuntimeService(f.runtime)
	ctx, cancel := context.WithCancel(context.Background())
	go f.Run(ctx, func(types.UID, bool) {})
	var workers sync.WaitGroup
	work := func(do func(i int, pod *v1.Pod)) {
		workers.Go(func() {
			for i := range 200 {
				do(i, pods[i%len(pods)])
			}
		})
	}
	for _, cause := range causes {
		if cause != RuntimeStop {
			work(func(_ int, pod *v1.Pod) { f.attempt(pod, cause) })
		}
	}
	work(func(_ int, pod *v1.Pod) { _ = service.StopContainer(ctx, string(pod.UID)+"-c", 0) })
	work(func(_ int, pod *v1.Pod) { _ = service.StopPodSandbox(ctx, string(pod.UID)+"-s") })
	work(func(i int, _ *v1.Pod) { f.ObserveSource(apiSource, pods[i%2:]) })
	work(func(i int, pod *v1.Pod) {
		if i > 150 {
			f.observe(deleted(pod))
		}
	})
	work(func(int, *v1.Pod) { f.clock.Step(time.Second) })
	work(func(int, *v1.Pod) { f.tidy() })
	work(func(int, *v1.Pod) { f.Pods() })
	work(func(int, *v1.Pod) { f.SetNodeCondition(&v1.Node{}) })
	work(func(_ int, pod *v1.Pod) { f.CompletePodStatus(pod, &v1.PodStatus{}, &v1.PodStatus{}) })
	work(func(i int, pod *v1.Pod) {
		if i > 190 {
			f.AllowCompletion(pod.UID)
		}
		f.AllowRestart(pod)
		f.AllowStop(pod, fmt.Sprint(i))
	})
	work(func(i int, _ *v1.Pod) {
		if i%50 == 0 {
			gather(t, f.Guard)
		}
	})
	workers.Wait()
	cancel()
	for _, pod := range pods[:8] {
		f.observe(deleted(pod))
		assert.Empty(t, f.held(pod))
		assert.False(t, f.Refuse(pod, Evicted, ""))
	}
}
