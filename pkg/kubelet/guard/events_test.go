package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// noNamespace is what an API server says whose storage was emptied.
func noNamespace(event *v1.Event) error {
	return apierrors.NewNotFound(v1.Resource("namespaces"), event.Namespace)
}

// noServer is no answer at all.
func noServer(*v1.Event) error { return errors.New("connection refused") }

// write lets time go by in steps of a second; the guard writes events as in Run.
func (f *fixture) write(d time.Duration) {
	for ; d > 0; d -= time.Second {
		f.clock.Step(time.Second)
		f.writeDueEvents(context.Background())
	}
}

// vanished makes the guard hold a running pod whose object is gone.
func (f *fixture) vanished(name string) *v1.Pod {
	f.t.Helper()
	pod := protectedPod(name)
	f.running(pod)
	f.ObserveSource(apiSource, nil)
	require.True(f.t, f.HoldVanished(apiSource, pod))
	return pod
}

func TestRefusedEventIsWrittenAgain(t *testing.T) {
	both := []string{"Warning KillRefused Pod/p", "Warning KillRefused Node/node-1"}
	for name, refuse := range map[string]func(*v1.Event) error{
		"namespace not there": noNamespace,
		"forbidden": func(e *v1.Event) error {
			return apierrors.NewForbidden(v1.Resource("events"), e.Name, errors.New("no"))
		},
		"no API server": noServer,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.events.setRefuse(refuse)
			f.vanished("p")
			assert.Empty(t, f.events.take())
			f.write(time.Hour)
			assert.Empty(t, f.events.take())

			f.events.setRefuse(nil)
			f.write(2 * maxEventRetry)
			assert.ElementsMatch(t, both, f.events.take(), "accepted as soon as the API does, however long the hold lasts")
			f.write(time.Hour)
			assert.Empty(t, f.events.take(), "once")
			assert.Empty(t, f.queue.pending)
		})
	}
	t.Run("at growing intervals", func(t *testing.T) {
		f := newFixture(t)
		f.events.setRefuse(noNamespace)
		f.vanished("p")
		f.write(time.Hour)
		require.Len(t, f.events.attempts, 2)
		for name, attempts := range f.events.attempts {
			assert.Greater(t, attempts, int(time.Hour/(2*maxEventRetry)), name)
			assert.Less(t, attempts, int(time.Hour/maxEventRetry)+10, name)
		}
	})
	t.Run("one that cannot be accepted holds up no other", func(t *testing.T) {
		f := newFixture(t)
		f.events.setRefuse(func(e *v1.Event) error {
			if e.InvolvedObject.Kind == "Pod" {
				return noNamespace(e)
			}
			return nil
		})
		f.vanished("p")
		assert.Equal(t, []string{"Warning KillRefused Node/node-1"}, f.events.take())
	})
	t.Run("one that was accepted without an answer is there once", func(t *testing.T) {
		f := newFixture(t)
		f.running(protectedPod("p"))
		require.True(t, f.Refuse(protectedPod("p"), Evicted, ""))
		lost := true
		f.events.setRefuse(func(e *v1.Event) error {
			if lost {
				lost = false
				f.events.created[e.Namespace+"/"+e.Name] = e
				return errors.New("timeout")
			}
			return nil
		})
		f.write(time.Minute)
		assert.Len(t, f.events.created, 1)
		assert.Equal(t, []int{2}, slices.Collect(maps.Values(f.events.attempts)))
		assert.Empty(t, f.queue.pending)
	})
	t.Run("a server that does not answer is asked once per pause", func(t *testing.T) {
		f := newFixture(t)
		f.events.setRefuse(noServer)
		for i := range 10 {
			f.vanished(fmt.Sprint("p", i))
			f.writeDueEvents(context.Background())
		}
		assert.Len(t, f.events.attempts, 1)
		f.events.setRefuse(nil)
		f.write(2 * maxEventRetry)
		assert.Len(t, f.events.created, 20)
	})
}

func TestEventOfAnEndedHold(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	f.events.setRefuse(noServer)
	require.True(t, f.Refuse(pod, Evicted, ""))
	f.write(time.Hour)
	f.observe(deleted(pod))

	t.Run("is still written for a while", func(t *testing.T) {
		f.write(eventPatience - time.Minute)
		f.events.setRefuse(nil)
		f.write(time.Minute)
		assert.ElementsMatch(t, []string{"Warning KillRefused Pod/p", "Normal HoldReleased Pod/p"}, f.events.take())
	})
	t.Run("and then given up", func(t *testing.T) {
		f := newFixture(t)
		f.running(pod)
		f.events.setRefuse(noNamespace)
		require.True(t, f.Refuse(pod, Evicted, ""))
		f.observe(deleted(pod))
		f.write(eventPatience + 2*maxEventRetry)
		assert.Empty(t, f.queue.pending)
	})
}

func TestManyEvents(t *testing.T) {
	t.Run("come in batches, and all of them", func(t *testing.T) {
		f := newFixture(t)
		const pods = 3 * eventBatch
		for i := range pods {
			f.vanished(fmt.Sprint("p", i))
		}
		f.writeDueEvents(context.Background())
		assert.Len(t, f.events.take(), eventBatch)
		f.write(time.Minute)
		var names []string
		for _, event := range f.events.created {
			if event.InvolvedObject.Kind == "Node" {
				names = append(names, strings.Fields(event.Message)[1])
			}
		}
		slices.Sort(names)
		assert.Len(t, slices.Compact(names), pods, "each pod has its own event on the node")
	})
	t.Run("do not grow without bound, and holds that last come last", func(t *testing.T) {
		f := newFixture(t)
		f.events.setRefuse(noServer)
		held := protectedPod("held")
		f.running(held)
		require.True(t, f.Refuse(held, Evicted, ""))
		pod := protectedPod("p")
		f.running(held, pod)
		for range maxEvents {
			require.True(t, f.Refuse(pod, TerminalPhaseReported, ""))
			f.ObserveSource(apiSource, []*v1.Pod{held, pod})
		}
		assert.Len(t, f.queue.pending, maxEvents)
		assert.Equal(t, held.UID, f.queue.pending[0].event.InvolvedObject.UID)
	})
}

func TestEventAsTheKubeletWritesIt(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod(strings.Repeat("p", 230))
	f.running(pod)
	require.True(t, f.Refuse(pod, Evicted, "detail"))
	f.ObserveSource(apiSource, nil)
	require.True(t, f.HoldVanished(apiSource, pod))
	f.events.all()
	require.Len(t, f.events.created, 3)
	for _, event := range f.events.created {
		assert.Empty(t, validation.NameIsDNSSubdomain(event.Name, false), event.Name)
		event.Name = ""
		about := v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "default", Name: pod.Name, UID: pod.UID}
		if event.InvolvedObject.Kind == "Node" {
			// What kubectl describe node looks for.
			about = v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "node-1", UID: "node-1"}
		}
		message := event.Message
		assert.Contains(t, message, "The kubelet did not stop this pod")
		assert.Equal(t, &v1.Event{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, InvolvedObject: about,
			Type: v1.EventTypeWarning, Reason: EventKillRefused, Message: message, Count: 1,
			FirstTimestamp: metav1.NewTime(epoch), LastTimestamp: metav1.NewTime(epoch),
			Source:              v1.EventSource{Component: "kubelet", Host: "node-1"},
			ReportingController: "kubelet", ReportingInstance: "node-1",
		}, event)
	}
}

func TestWithoutAPIServerNoEventWaits(t *testing.T) {
	g, err := New(Dependencies{Configuration: DefaultConfiguration(), NodeName: "node-1"})
	require.NoError(t, err)
	require.True(t, g.Refuse(protectedPod("p"), Evicted, ""), "a runtime that cannot be asked counts as one where the pod runs")
	assert.Empty(t, g.queue.pending)
}

// The loop of Run, in the time of a bubble, in which a goroutine that is left over is
// an error.
func TestWriteEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := &fakeEvents{}
		runtime := newFakeRuntime()
		g, err := New(Dependencies{Configuration: DefaultConfiguration(), NodeName: "node-1", Runtime: runtime, Events: events, Clock: clock.RealClock{}})
		require.NoError(t, err)
		f := &fixture{Guard: g, t: t, runtime: runtime, events: events}
		events.setRefuse(noNamespace)
		ctx, cancel := context.WithCancel(t.Context())
		f.vanished("before")
		go f.Run(ctx, func(_ types.UID, _ bool) {})
		time.Sleep(time.Minute)
		start := time.Now()
		f.vanished("during")
		synctest.Wait()
		assert.Empty(t, events.created)
		assert.Len(t, events.attempts, 4, "the first attempt is made at once")
		assert.Zero(t, time.Since(start), "and nobody waits for it")

		events.setRefuse(nil)
		time.Sleep(2 * maxEventRetry)
		synctest.Wait()
		assert.Len(t, events.created, 4)

		// A server that never answers must not keep Run from its end.
		hanging := make(chan struct{})
		events.setRefuse(func(*v1.Event) error { close(hanging); <-ctx.Done(); return ctx.Err() })
		f.vanished("at the end")
		<-hanging
		cancel()
	})
}
