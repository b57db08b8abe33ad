package guard

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestFalseClaimOfTheAPIIsEmptied(t *testing.T) {
	for _, phase := range []v1.PodPhase{v1.PodFailed, v1.PodSucceeded} {
		t.Run(string(phase), func(t *testing.T) {
			f := newFixture(t)
			claimed, other := inPhase(protectedPod("p"), phase), inPhase(plainPod("q"), phase)
			claimed.Status.PodIP = "10.0.0.7"
			original := claimed.DeepCopy()
			f.runtime.run(claimed, runtimeapi.ContainerState_CONTAINER_RUNNING)
			f.runtime.run(other, runtimeapi.ContainerState_CONTAINER_RUNNING)
			message := []*v1.Pod{other, claimed}

			got := f.ObserveSource(apiSource, message)
			want := claimed.DeepCopy()
			want.Status = v1.PodStatus{PodIP: "10.0.0.7"}
			assert.Equal(t, []*v1.Pod{other, want}, got)
			assert.Equal(t, original, claimed, "the object of the informer is not changed")
			assert.Equal(t, []*v1.Pod{other, claimed}, message, "nor is its list")
			assert.Equal(t, []Cause{TerminalPhaseReported}, f.held(claimed))
			assert.True(t, f.RefuseTermination(claimed, false, false, false))

			f.ObserveSource(apiSource, []*v1.Pod{other, protectedPod("p")})
			assert.Empty(t, f.held(claimed), "the truth was written back")
		})
	}
}

func TestTrueClaimOfTheAPIIsHandedOn(t *testing.T) {
	for name, arrange := range map[string]func(*fixture, *v1.Pod) *v1.Pod{
		"nothing runs": func(_ *fixture, p *v1.Pod) *v1.Pod { return p },
		"the containers have exited and the sandbox is stopped": func(f *fixture, p *v1.Pod) *v1.Pod {
			f.runtime.run(p, runtimeapi.ContainerState_CONTAINER_EXITED)
			f.runtime.setSandbox(p, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
			return p
		},
		"the kubelet saw the end": func(f *fixture, p *v1.Pod) *v1.Pod {
			f.running(protectedPod("p"))
			f.AllowCompletion(p.UID)
			return p
		},
		"the pod is being deleted": func(f *fixture, p *v1.Pod) *v1.Pod {
			f.running(protectedPod("p"))
			return deleted(p)
		},
		"the pod is unprotected": func(f *fixture, _ *v1.Pod) *v1.Pod {
			p := inPhase(plainPod("p"), v1.PodFailed)
			f.runtime.run(p, runtimeapi.ContainerState_CONTAINER_RUNNING)
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			message := []*v1.Pod{arrange(f, inPhase(protectedPod("p"), v1.PodFailed))}
			assert.Equal(t, message, f.ObserveSource(apiSource, message))
			assert.Empty(t, f.held(message[0]))
		})
	}
}

func TestCompletedPodsAreQueriedOnce(t *testing.T) {
	f := newFixture(t)
	message := []*v1.Pod{inPhase(protectedPod("job"), v1.PodSucceeded)}
	f.ObserveSource(apiSource, message)
	queries := f.runtime.queries()
	for range 10 {
		assert.Equal(t, message, f.ObserveSource(apiSource, message))
	}
	assert.Equal(t, queries, f.runtime.queries())
}

func TestOtherSourcesAreNotChecked(t *testing.T) {
	f := newFixture(t)
	static := inPhase(protectedPod("static"), v1.PodFailed)
	f.runtime.run(static, runtimeapi.ContainerState_CONTAINER_RUNNING)
	for _, source := range []string{"file", "http"} {
		assert.Equal(t, []*v1.Pod{static}, f.ObserveSource(source, []*v1.Pod{static}))
		assert.False(t, f.HoldVanished(source, static))
	}
	assert.Empty(t, f.records)
	assert.Zero(t, f.runtime.queries())
}

// After a restart of both, the kubelet hears from the API before the runtime
// responds. A pod that is reported as ended must not be believed to be meanwhile.
func TestSourceWaitsForTheRuntime(t *testing.T) {
	f := newFixture(t)
	claimed := inPhase(protectedPod("p"), v1.PodFailed)
	f.runtime.run(claimed, runtimeapi.ContainerState_CONTAINER_RUNNING)
	f.runtime.failing["Version"] = errors.New("connection refused")
	f.runtime.during = func() {
		require.Empty(t, f.held(claimed))
		f.runtime.mu.Lock()
		defer f.runtime.mu.Unlock()
		f.runtime.during = func() {
			f.runtime.mu.Lock()
			defer f.runtime.mu.Unlock()
			delete(f.runtime.failing, "Version")
		}
	}
	// The clock of the fixture steps when it is slept on.
	got := f.ObserveSource(apiSource, []*v1.Pod{claimed})
	assert.Empty(t, got[0].Status.Phase)
	assert.Equal(t, 3, f.runtime.calls["Version"])
	assert.Equal(t, epoch.Add(2*time.Second), f.clock.Now())

	t.Run("only for pods that are reported as ended", func(t *testing.T) {
		f := newFixture(t)
		f.runtime.fail(errors.New("connection refused"))
		f.ObserveSource(apiSource, []*v1.Pod{protectedPod("p"), inPhase(plainPod("q"), v1.PodFailed)})
		assert.Zero(t, f.runtime.queries())
	})
	t.Run("and does not query without one", func(t *testing.T) {
		g, err := New(Dependencies{Configuration: DefaultConfiguration()})
		require.NoError(t, err)
		assert.Empty(t, g.ObserveSource(apiSource, []*v1.Pod{claimed})[0].Status.Phase)
	})
}

func TestHoldVanished(t *testing.T) {
	for name, test := range map[string]struct {
		before func(*fixture, *v1.Pod)
		want   bool
	}{
		"key lost":                 {before: func(*fixture, *v1.Pod) {}, want: true},
		"timestamp in an event":    {before: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }},
		"nothing runs":             {before: func(f *fixture, p *v1.Pod) { f.runtime.remove(p) }},
		"completed":                {before: func(f *fixture, p *v1.Pod) { f.AllowCompletion(p.UID) }},
		"containers between tries": {before: func(f *fixture, p *v1.Pod) { f.runtime.setContainer(p, runtimeapi.ContainerState_CONTAINER_EXITED) }, want: true},
		"label gone before":        {before: func(f *fixture, _ *v1.Pod) { f.ObserveSource(apiSource, []*v1.Pod{plainPod("p")}) }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := protectedPod("p")
			f.running(pod)
			test.before(f, pod)
			f.ObserveSource(apiSource, nil)
			for range 3 {
				assert.Equal(t, test.want, f.HoldVanished(apiSource, pod))
			}
			if test.want {
				assert.Equal(t, []PodState{{
					Namespace: "default", Name: "p", UID: pod.UID, State: Held, ObjectPresent: false,
					Holds: []HoldState{{Cause: PodVanished, Since: epoch, LastAttempt: epoch,
						Message: "its object is gone from the API without a deletion that this kubelet could see"}},
					Audited: []HoldState{},
				}}, f.Pods().Items)
			}
		})
	}
	t.Run("a successor of the same name is another pod", func(t *testing.T) {
		f := newFixture(t)
		pod, successor := protectedPod("p"), protectedPod("p")
		successor.UID = "successor"
		f.running(pod)
		f.ObserveSource(apiSource, []*v1.Pod{successor})
		require.True(t, f.HoldVanished(apiSource, pod))
		f.observe(deleted(successor))
		assert.True(t, f.HoldVanished(apiSource, pod))
		assert.Equal(t, Terminating, f.state(successor))
	})
	t.Run("a pod that is there again goes on as before", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		f.running(pod)
		f.ObserveSource(apiSource, nil)
		require.True(t, f.HoldVanished(apiSource, pod))
		f.pass(time.Hour)
		f.ObserveSource(apiSource, []*v1.Pod{pod})
		assert.Equal(t, Protected, f.state(pod))
		assert.True(t, f.Pods().Items[0].ObjectPresent)
		f.ObserveSource(apiSource, nil)
		require.True(t, f.HoldVanished(apiSource, pod))
		assert.Equal(t, 2.0, f.series()["refused_kills_total{cause=PodVanished}"])
	})
}

// listerWatcher responds with one list and one watch.
type listerWatcher struct {
	list  runtime.Object
	watch watch.Interface
	err   error
}

func (l *listerWatcher) List(metav1.ListOptions) (runtime.Object, error)   { return l.list, l.err }
func (l *listerWatcher) Watch(metav1.ListOptions) (watch.Interface, error) { return l.watch, l.err }

// listOnly is what a client that cannot stream its initial list looks like.
type listOnly struct{ listerWatcher }

func (*listOnly) IsWatchListSemanticsUnSupported() bool { return true }

func TestWatchSource(t *testing.T) {
	pod := protectedPod("p")
	pod.Annotations = nil // as the API sends it
	for name, test := range map[string]struct {
		list   []v1.Pod
		events []watch.Event
		want   State
	}{
		"list without a timestamp": {list: []v1.Pod{*pod}, want: Protected},
		"list with a timestamp":    {list: []v1.Pod{*plainPod("q"), *deleted(pod)}, want: Terminating},
		"event without a timestamp": {events: []watch.Event{
			{Type: watch.Added, Object: pod}, {Type: watch.Modified, Object: pod}}, want: Protected},
		"graceful deletion":        {events: []watch.Event{{Type: watch.Modified, Object: deleted(pod)}}, want: Terminating},
		"streamed initial list":    {events: []watch.Event{{Type: watch.Added, Object: deleted(pod)}}, want: Terminating},
		"forced deletion":          {events: []watch.Event{{Type: watch.Deleted, Object: deleted(pod)}}, want: Terminating},
		"key removed from storage": {events: []watch.Event{{Type: watch.Deleted, Object: pod}}, want: Protected},
		"bookmark":                 {events: []watch.Event{{Type: watch.Bookmark, Object: &v1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "7"}}}}, want: Protected},
		"error":                    {events: []watch.Event{{Type: watch.Error, Object: &metav1.Status{Reason: metav1.StatusReasonExpired}}}, want: Protected},
		"another pod":              {events: []watch.Event{{Type: watch.Deleted, Object: deleted(protectedPod("q"))}}, want: Protected},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.running(pod)
			events := watch.NewFake()
			list := &v1.PodList{Items: test.list}
			source := cache.ToListerWatcherWithContext(f.WatchSource(&listerWatcher{list: list, watch: events}))

			listed, err := source.ListWithContext(context.Background(), metav1.ListOptions{})
			require.NoError(t, err)
			assert.Same(t, list, listed)
			watching, err := source.WatchWithContext(context.Background(), metav1.ListOptions{})
			require.NoError(t, err)
			for _, e := range test.events {
				go events.Action(e.Type, e.Object)
				assert.Equal(t, e, <-watching.ResultChan())
			}
			watching.Stop()
			assert.True(t, events.IsStopped())
			assert.Equal(t, test.want, f.state(pod))
		})
	}

	t.Run("errors are handed on", func(t *testing.T) {
		f := newFixture(t)
		source := cache.ToListerWatcherWithContext(f.WatchSource(&listerWatcher{err: errors.New("unauthorized")}))
		_, err := source.ListWithContext(context.Background(), metav1.ListOptions{})
		require.EqualError(t, err, "unauthorized")
		_, err = source.WatchWithContext(context.Background(), metav1.ListOptions{})
		assert.EqualError(t, err, "unauthorized")
	})
	t.Run("other lists are handed on", func(t *testing.T) {
		list := &v1.NodeList{}
		got, err := cache.ToListerWatcherWithContext(newFixture(t).WatchSource(&listerWatcher{list: list})).ListWithContext(context.Background(), metav1.ListOptions{})
		require.NoError(t, err)
		assert.Same(t, list, got)
	})
	t.Run("callers without a context have a response", func(t *testing.T) {
		type withoutContext interface {
			List(metav1.ListOptions) (runtime.Object, error)
			Watch(metav1.ListOptions) (watch.Interface, error)
		}
		f := newFixture(t)
		events := watch.NewFake()
		source := f.WatchSource(&listerWatcher{list: &v1.PodList{Items: []v1.Pod{*deleted(pod)}}, watch: events}).(withoutContext)
		_, err := source.List(metav1.ListOptions{})
		require.NoError(t, err)
		assert.Equal(t, Terminating, f.state(pod))
		other := protectedPod("other")
		watching, err := source.Watch(metav1.ListOptions{})
		require.NoError(t, err)
		go events.Delete(deleted(other))
		<-watching.ResultChan()
		watching.Stop()
		assert.Equal(t, Terminating, f.state(other))
	})
	t.Run("reports whether the initial list can be streamed", func(t *testing.T) {
		type checker interface{ IsWatchListSemanticsUnSupported() bool }
		f := newFixture(t)
		assert.True(t, f.WatchSource(&listOnly{}).(checker).IsWatchListSemanticsUnSupported())
		assert.False(t, f.WatchSource(&listerWatcher{}).(checker).IsWatchListSemanticsUnSupported())
	})
	t.Run("is not wrapped in mode Off", func(t *testing.T) {
		lw := &listerWatcher{}
		assert.Same(t, lw, newFixture(t, inMode(Off)).WatchSource(lw))
	})
	t.Run("a real reflector shows the last object of a deletion", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t)
			f.running(pod)
			events := watch.NewFake()
			ctx, cancel := context.WithCancel(context.Background())
			store := cache.NewStore(cache.MetaNamespaceKeyFunc)
			reflector := cache.NewReflector(f.WatchSource(&listOnly{listerWatcher{list: &v1.PodList{Items: []v1.Pod{*pod}}, watch: events}}), &v1.Pod{}, store, 0)
			go reflector.RunWithContext(ctx)
			synctest.Wait()
			assert.Len(t, store.List(), 1)
			events.Delete(deleted(pod))
			synctest.Wait()
			assert.Empty(t, store.List())
			assert.Equal(t, Terminating, f.state(pod))
			cancel()
			synctest.Wait()
		})
	})
}
