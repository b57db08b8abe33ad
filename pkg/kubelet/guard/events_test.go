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

// noNamespace is the error of an API server whose storage was emptied.
func noNamespace(event *v1.Event) error {
	return apierrors.NewNotFound(v1.Resource("namespaces"), event.Namespace)
}

// noServer never responds.
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
			// Jitter doubles both: the wait of the first, and that of the second behind it.
			f.write(2*maxEventRetry + 2*slowEvent)
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
	t.Run("one that was accepted without a response exists once", func(t *testing.T) {
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
	t.Run("a server that does not respond is tried once per pause", func(t *testing.T) {
		f := newFixture(t)
		f.events.setRefuse(noServer)
		for i := range 10 {
			f.vanished(fmt.Sprint("p", i))
			f.writeDueEvents(context.Background())
		}
		assert.Len(t, f.events.attempts, 1)
		f.events.setRefuse(nil)
		f.write(2 * maxEventRetry)
		assert.Len(t, f.events.created, 2*crowdAfter+1+5, "five pods by themselves, one event for the others, theirs one after the other")
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
		// Retries are jittered up to twice maxEventRetry, and one waits for the other.
		f.write(eventPatience - 3*time.Minute)
		f.events.setRefuse(nil)
		f.write(3 * time.Minute)
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
	t.Run("of a few pods are written at once", func(t *testing.T) {
		f := newFixture(t)
		for i := range crowdAfter {
			f.vanished(fmt.Sprint("p", i))
		}
		f.writeDueEvents(context.Background())
		assert.Len(t, f.events.take(), 2*crowdAfter, "on each pod, and on the node about each pod")
		assert.Empty(t, f.queue.pending)
	})
	t.Run("of one pod stay its own", func(t *testing.T) {
		f := newFixture(t)
		for i := range crowdAfter {
			f.vanished(fmt.Sprint("p", i))
		}
		require.True(t, f.Refuse(protectedPod("p0"), CgroupCleanup, ""))
		f.writeDueEvents(context.Background())
		assert.Len(t, f.events.take(), 2*crowdAfter+2)
	})
	t.Run("of a crowd are one on the node, and slow on the pods", func(t *testing.T) {
		f := newFixture(t)
		const pods = 110
		for i := range pods {
			f.vanished(fmt.Sprintf("p%03d", i))
		}
		f.write(crowdDelay)
		onNode := func() (messages []string) {
			for _, event := range f.events.created {
				if event.InvolvedObject.Kind == "Node" {
					messages = append(messages, event.Message)
				}
			}
			slices.Sort(messages)
			return messages
		}
		require.Len(t, onNode(), crowdAfter+1)
		assert.Equal(t, "105 more pods within a minute are held: the kubelet did not stop them, and they keep running until their deletion is requested."+
			" GET /guard/pods on the kubelet and kubectl guard holds have all of them."+
			" default/p005 (UID p005-uid), default/p006 (UID p006-uid), default/p007 (UID p007-uid), default/p008 (UID p008-uid), default/p009 (UID p009-uid) and 100 others."+
			" The first: The kubelet did not stop this pod (PodVanished): its object is gone from the API without a deletion that this kubelet could see. It keeps running until its deletion is requested.", onNode()[0])
		written := len(f.events.created)
		assert.LessOrEqual(t, written, 2*crowdAfter+2)
		f.write(10 * time.Minute)
		assert.LessOrEqual(t, len(f.events.created)-written, int(10*time.Minute/slowEvent), "one every ten seconds at most")
		assert.GreaterOrEqual(t, len(f.events.created)-written, int(10*time.Minute/(slowEvent+slowEvent/5))-1, "and steadily")
		f.write(11 * time.Minute)
		assert.Len(t, f.events.created, pods+crowdAfter+1, "all of them in the end")
		assert.Empty(t, f.queue.pending)

		f.vanished("late")
		f.writeDueEvents(context.Background())
		assert.ElementsMatch(t, []string{"Warning KillRefused Pod/late", "Warning KillRefused Node/node-1"}, f.events.take()[len(f.events.created)-2:], "one pod later is none of a crowd")
	})
	t.Run("of a crowd that is released before it was reported are forgotten", func(t *testing.T) {
		f := newFixture(t)
		var pods []*v1.Pod
		for i := range 20 {
			pods = append(pods, f.vanished(fmt.Sprintf("p%02d", i)))
		}
		f.write(crowdDelay)
		f.ObserveSource(apiSource, pods)
		f.write(time.Hour)
		reasons := map[string]int{}
		for _, event := range f.events.created {
			reasons[event.Reason+" on the "+event.InvolvedObject.Kind]++
		}
		// The first of the crowd had its own event by then.
		assert.Equal(t, map[string]int{"KillRefused on the Pod": crowdAfter + 1, "KillRefused on the Node": crowdAfter + 1, "HoldReleased on the Pod": crowdAfter + 1, "HoldReleased on the Node": 1}, reasons)
		assert.Empty(t, f.queue.pending)
	})
	t.Run("that are refused again and again are tried one every ten seconds", func(t *testing.T) {
		f := newFixture(t)
		f.events.setRefuse(noNamespace)
		for i := range 50 {
			f.vanished(fmt.Sprint("p", i))
		}
		f.write(10 * time.Minute)
		attempts := func() (n int) {
			for _, a := range f.events.attempts {
				n += a
			}
			return n
		}
		before := attempts()
		f.write(time.Hour)
		assert.LessOrEqual(t, attempts()-before, int(time.Hour/slowEvent))
		assert.GreaterOrEqual(t, attempts()-before, int(time.Hour/(slowEvent+slowEvent/5))-1)
		assert.Len(t, f.events.attempts, 50+crowdAfter+1, "each has its turn")
	})
	t.Run("none to drop is no error", func(t *testing.T) {
		assert.NotPanics(t, newFixture(t).dropOneEvent)
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
	require.True(t, g.Refuse(protectedPod("p"), Evicted, ""), "with a runtime that cannot be queried the pod counts as running")
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

		// A server that never responds must not keep Run from its end.
		hanging := make(chan struct{})
		events.setRefuse(func(*v1.Event) error { close(hanging); <-ctx.Done(); return ctx.Err() })
		f.vanished("at the end")
		<-hanging
		cancel()
	})
}
