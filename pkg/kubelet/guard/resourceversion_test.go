package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeServer lists and watches pods as the API server does: a watch from a version
// in the future is silent until that has passed, one from a forgotten version is
// refused inside the stream.
type fakeServer struct {
	mu       sync.Mutex
	version  int
	oldest   int
	pods     map[string]*v1.Pod
	watchers map[*watch.FakeWatcher]int
	listErr  error
	lists    int
	// forgetful: no version is known to a watch.
	forgetful bool
}

func newFakeServer(version int, pods ...*v1.Pod) *fakeServer {
	s := &fakeServer{watchers: map[*watch.FakeWatcher]int{}}
	s.replace(version, pods...)
	return s
}

// replace is what a restore of etcd does: other content, other version, all
// connections lost.
func (s *fakeServer) replace(version int, pods ...*v1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version, s.oldest, s.pods = version, version, map[string]*v1.Pod{}
	for _, pod := range pods {
		pod = pod.DeepCopy()
		pod.ResourceVersion = strconv.Itoa(version)
		s.pods[pod.Name] = pod
	}
	for w := range s.watchers {
		w.Stop()
	}
	clear(s.watchers)
}

func (s *fakeServer) write(kind watch.EventType, pod *v1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	pod = pod.DeepCopy()
	pod.ResourceVersion = strconv.Itoa(s.version)
	if kind == watch.Deleted {
		delete(s.pods, pod.Name)
	} else {
		s.pods[pod.Name] = pod
	}
	for w, from := range s.watchers {
		if s.version > from {
			w.Action(kind, pod)
		}
	}
}

// awaitWatch waits until there is a watch. A watch that ends within a second and
// without an event makes the reflector list again; a write gives it one.
func (s *fakeServer) awaitWatch(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.watchers) == 1
	}, 10*time.Second, 5*time.Millisecond, "a watch is open")
}

func (s *fakeServer) List(metav1.ListOptions) (runtime.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	if s.listErr != nil {
		return nil, s.listErr
	}
	list := &v1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)}}
	for _, pod := range s.pods {
		list.Items = append(list.Items, *pod.DeepCopy())
	}
	slices.SortFunc(list.Items, func(a, b v1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func (s *fakeServer) Watch(options metav1.ListOptions) (watch.Interface, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, err := strconv.Atoi(options.ResourceVersion)
	if err != nil {
		return nil, err
	}
	w := watch.NewFakeWithChanSize(100, false)
	if from < s.oldest || s.forgetful {
		w.Error(&apierrors.NewResourceExpired("too old resource version").ErrStatus)
		w.Stop()
		return w, nil
	}
	s.watchers[w] = from
	return w, nil
}

// IsWatchListSemanticsUnSupported: as a client of an old server.
func (s *fakeServer) IsWatchListSemanticsUnSupported() bool { return true }

// kubeletSource runs a reflector over the guard's view of the server, with the
// merge of the config source behind it, and returns which pods the kubelet has.
type kubeletSource struct {
	f  *fixture
	mu sync.Mutex
	// pods by UID.
	pods map[string]*v1.Pod
}

func startSource(t *testing.T, f *fixture, server *fakeServer) *kubeletSource {
	t.Helper()
	s := &kubeletSource{f: f, pods: map[string]*v1.Pod{}}
	store := cache.NewUndeltaStore(func(objects []any) {
		var message []*v1.Pod
		for _, o := range objects {
			message = append(message, o.(*v1.Pod))
		}
		s.merge(message)
	}, cache.MetaNamespaceKeyFunc)
	reflector := cache.NewReflectorWithOptions(f.WatchSource(server), &v1.Pod{}, store, cache.ReflectorOptions{MinWatchTimeout: time.Minute})
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { reflector.RunWithContext(ctx) })
	t.Cleanup(func() { cancel(); wait.Wait() })
	return s
}

func (s *kubeletSource) merge(message []*v1.Pod) {
	message = s.f.ObserveSource(apiSource, message)
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[string]*v1.Pod{}
	for _, pod := range message {
		next[string(pod.UID)] = pod
	}
	for uid, pod := range s.pods {
		if next[uid] == nil && s.f.HoldVanished(apiSource, pod) {
			next[uid] = pod
		}
	}
	s.pods = next
}

func (s *kubeletSource) expect(t *testing.T, why string, want ...string) {
	t.Helper()
	var got []string
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		got = nil
		for _, pod := range s.pods {
			got = append(got, pod.Name)
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	}, 10*time.Second, 5*time.Millisecond, "%s: the kubelet has %v, want %v", why, &lazy{&got}, want)
}

// lazy is printed when the wait has failed, and not when it starts.
type lazy struct{ names *[]string }

func (l *lazy) String() string { return fmt.Sprint(*l.names) }

func TestRestoredStorageIsFollowed(t *testing.T) {
	f := newFixture(t)
	kept, plain, young, fresh := protectedPod("kept"), plainPod("plain"), plainPod("young"), protectedPod("fresh")
	for _, pod := range []*v1.Pod{kept, plain, young} {
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
	}
	server := newFakeServer(1000, kept, plain)
	source := startSource(t, f, server)
	source.expect(t, "first list", "kept", "plain")
	server.write(watch.Added, young)
	source.expect(t, "an ordinary watch", "kept", "plain", "young")
	assert.Equal(t, Protected, f.state(kept))

	server.replace(5)
	require.Eventually(t, func() bool { return slices.Equal(f.held(kept), []Cause{PodVanished}) }, 10*time.Second, 5*time.Millisecond, "an empty storage: the protected pod is held")
	source.expect(t, "what the stock kubelet keeps stays", "kept", "plain", "young")
	server.write(watch.Added, fresh)
	source.expect(t, "a new pod is followed", "fresh", "kept", "plain", "young")
	server.write(watch.Deleted, fresh)
	source.expect(t, "and so is its deletion", "kept", "plain", "young")
	server.write(watch.Added, fresh)
	source.expect(t, "and its return", "fresh", "kept", "plain", "young")

	server.replace(1000, kept, plain)
	require.Eventually(t, func() bool { return f.state(kept) == Protected }, 10*time.Second, 5*time.Millisecond, "restored from a backup: adopted")
	source.expect(t, "what came after the backup stays, what the empty storage had goes", "kept", "plain", "young")
	server.write(watch.Deleted, deleted(kept))
	source.expect(t, "an explicit deletion", "plain", "young")
	assert.Contains(t, f.events.take(), "Warning StorageRolledBack Node/node-1")
}

func TestStorageRolledBackTwiceCostsNoUnprotectedPod(t *testing.T) {
	f := newFixture(t)
	kept, plain := protectedPod("kept"), plainPod("plain")
	for _, pod := range []*v1.Pod{kept, plain} {
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
	}
	server := newFakeServer(1000, kept, plain)
	source := startSource(t, f, server)
	source.expect(t, "first list", "kept", "plain")
	server.awaitWatch(t)
	server.write(watch.Modified, plain)
	server.replace(500, kept, plain)
	server.awaitWatch(t)
	server.replace(5)
	require.Eventually(t, func() bool { return slices.Equal(f.held(kept), []Cause{PodVanished}) }, 10*time.Second, 5*time.Millisecond, "the protected pod is held")
	source.expect(t, "both stay", "kept", "plain")
}

func TestServerThatKnowsNoVersionIsQueriedSlowly(t *testing.T) {
	f := newFixture(t)
	kept := protectedPod("kept")
	f.runtime.run(kept, runtimeapi.ContainerState_CONTAINER_RUNNING)
	server := newFakeServer(1000, kept)
	source := startSource(t, f, server)
	source.expect(t, "first list", "kept")
	server.awaitWatch(t)
	server.write(watch.Modified, kept)
	server.mu.Lock()
	server.forgetful = true
	server.mu.Unlock()
	server.replace(5, kept)
	requests := func() int {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.lists
	}
	// The clock of the fixture is stopped: the lists end where the wait starts.
	last := -1
	require.Eventually(t, func() bool {
		before := last
		last = requests()
		return last == before && f.clock.HasWaiters()
	}, 10*time.Second, 50*time.Millisecond, "it waits before it lists again")
	assert.Less(t, last, 10)
	source.expect(t, "and the pod stays", "kept")
}

func TestQueryForTheVersionEndsWithItsWatch(t *testing.T) {
	f := newFixture(t)
	server := newFakeServer(1000)
	server.listErr = errors.New("the server is not ready")
	source := f.WatchSource(server).(cache.ListerWatcherWithContext)
	for range 5 {
		w, err := source.WatchWithContext(context.Background(), metav1.ListOptions{ResourceVersion: "1000"})
		require.NoError(t, err)
		require.Eventually(t, f.clock.HasWaiters, 10*time.Second, time.Millisecond, "a query is pending")
		w.Stop()
		for range w.ResultChan() {
		}
	}
	requests := func() int {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.lists
	}
	before := requests()
	f.clock.Step(time.Hour)
	assert.Never(t, func() bool { return requests() > before }, 200*time.Millisecond, 20*time.Millisecond, "nobody requests a watch that has ended")
}

func TestAPIThatForgotTheVersionIsListedAsOnStock(t *testing.T) {
	f := newFixture(t)
	kept, plain := protectedPod("kept"), plainPod("plain")
	f.runtime.run(kept, runtimeapi.ContainerState_CONTAINER_RUNNING)
	server := newFakeServer(10, kept, plain)
	source := startSource(t, f, server)
	source.expect(t, "first list", "kept", "plain")
	server.replace(20)
	source.expect(t, "a relist without them", "kept")
	assert.Equal(t, []Cause{PodVanished}, f.held(kept))
}

func TestOnlyEnforceChecksForARestoredStorage(t *testing.T) {
	f := newFixture(t, inMode(Audit))
	kept := protectedPod("kept")
	f.runtime.run(kept, runtimeapi.ContainerState_CONTAINER_RUNNING)
	server := newFakeServer(1000, kept)
	source := startSource(t, f, server)
	source.expect(t, "first list", "kept")
	server.awaitWatch(t)
	server.write(watch.Modified, kept)
	server.replace(5)
	server.awaitWatch(t)
	source.expect(t, "silence, as on stock", "kept")
	assert.Equal(t, 1, server.lists)
	assert.Empty(t, f.series()["audited_kills_total{cause=PodVanished}"])
}

func TestFailedQueryForTheVersionIsRepeated(t *testing.T) {
	f := newFixture(t)
	kept, fresh := protectedPod("kept"), plainPod("fresh")
	f.runtime.run(kept, runtimeapi.ContainerState_CONTAINER_RUNNING)
	server := newFakeServer(1000, kept)
	source := startSource(t, f, server)
	source.expect(t, "first list", "kept")
	server.awaitWatch(t)
	server.write(watch.Modified, kept)
	server.mu.Lock()
	server.listErr = errors.New("the server is not ready")
	server.mu.Unlock()
	server.replace(5, fresh)
	server.awaitWatch(t)
	server.mu.Lock()
	server.listErr = nil
	server.mu.Unlock()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				f.clock.Step(time.Second)
			}
		}
	}()
	source.expect(t, "the response came", "fresh", "kept")
	require.Eventually(t, func() bool { return slices.Equal(f.held(kept), []Cause{PodVanished}) }, 10*time.Second, 5*time.Millisecond)
}
