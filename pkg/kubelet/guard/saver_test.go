package guard

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/ptr"
)

// fakeDisk stands in front of every fsync: it counts them, fails, or hangs.
type fakeDisk struct {
	mu     sync.Mutex
	names  []string
	err    error
	frozen chan struct{}
	// waiting has an element for every fsync that hangs.
	waiting chan string
}

// countSyncs puts a fakeDisk under the fixture. Nothing may be under way.
func (f *fixture) countSyncs() *fakeDisk {
	f.saved()
	d := &fakeDisk{waiting: make(chan string, 1000)}
	f.store.sync = d.sync
	return d
}

func (d *fakeDisk) sync(file *os.File) error {
	d.mu.Lock()
	d.names = append(d.names, filepath.Base(file.Name()))
	frozen, err := d.frozen, d.err
	d.mu.Unlock()
	if frozen != nil {
		d.waiting <- filepath.Base(file.Name())
		<-frozen
	}
	return err
}

func (d *fakeDisk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.names)
}

func (d *fakeDisk) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := d.names
	d.names = nil
	return names
}

func (d *fakeDisk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// freeze makes every fsync from now on hang until thaw.
func (d *fakeDisk) freeze() (thaw func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	frozen := make(chan struct{})
	d.frozen = frozen
	return sync.OnceFunc(func() {
		d.mu.Lock()
		d.frozen = nil
		d.mu.Unlock()
		close(frozen)
	})
}

// frozenNode is a node whose disk hangs in the write of the pod "stuck".
func frozenNode(t *testing.T, pods ...*v1.Pod) (*fixture, *fakeDisk, func()) {
	t.Helper()
	f, _ := node(t)
	f.running(pods...)
	disk := f.countSyncs()
	thaw := disk.freeze()
	t.Cleanup(thaw)
	stuck := protectedPod("stuck")
	f.ObserveSource(apiSource, append([]*v1.Pod{stuck}, pods...))
	assert.Equal(t, "stuck-uid.pod.new", <-disk.waiting)
	return f, disk, thaw
}

// soonDone fails when do takes longer than nothing should.
func soonDone(t *testing.T, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		require.FailNow(t, "waits for the disk", what)
	}
}

func (f *fixture) content(pod *v1.Pod) savedPod {
	f.t.Helper()
	content, err := f.store.readSaved(f.store.path(pod.UID), true)
	require.NoError(f.t, err)
	return content
}

func sandboxOf(pod *v1.Pod) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID)}}
}

func TestHungDiskDelaysNoEventOfTheWatch(t *testing.T) {
	a, other := protectedPod("a"), plainPod("other")
	f, disk, thaw := frozenNode(t, a, other)
	server := &fakeWatch{watch.NewFakeWithChanSize(10, false)}
	w, err := cache.ToListerWatcherWithContext(f.WatchSource(server)).WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
	require.NoError(t, err)
	defer w.Stop()
	server.Modify(deleted(a))
	server.Modify(deleted(other))
	for range 2 {
		select {
		case <-w.ResultChan():
		case <-time.After(10 * time.Second):
			require.FailNow(t, "an event waits for the disk")
		}
	}
	assert.False(t, f.Refuse(a, Evicted, ""), "the evidence counts at once")
	assert.Equal(t, Terminating, f.state(a))
	assert.Nil(t, f.content(a).Evidence)
	thaw()
	f.saved()
	assert.Equal(t, DeletionTimestampSeen, f.content(a).Evidence.Kind, "and is written when the disk responds")
	assert.Equal(t, "a-uid.pod.new", disk.take()[2], "before anything else")
}

type fakeWatch struct{ *watch.FakeWatcher }

func (f *fakeWatch) List(metav1.ListOptions) (apiruntime.Object, error) { return &v1.PodList{}, nil }
func (f *fakeWatch) Watch(metav1.ListOptions) (watch.Interface, error) {
	return f.FakeWatcher, nil
}

func TestHungDiskDelaysNothing(t *testing.T) {
	a, b, plain := protectedPod("a"), protectedPod("b"), plainPod("plain")
	f, disk, thaw := frozenNode(t, a, b, plain)
	claim, volume := boundClaim("claim")
	unlabelled := b.DeepCopy()
	unlabelled.Labels = nil

	soonDone(t, "evidence in a hook", func() { assert.False(t, f.Refuse(deleted(a), Evicted, "")) })
	soonDone(t, "a claim", func() { f.SaveVolume(b, claim, volume) })
	soonDone(t, "a pod that lost its label", func() { f.ObserveSource(apiSource, []*v1.Pod{deleted(a), unlabelled, plain}) })
	soonDone(t, "a pod that is gone", func() { f.ObserveSource(apiSource, []*v1.Pod{unlabelled}) })
	f.runtime.remove(a)
	soonDone(t, "housekeeping", func() { f.pass(goneLinger + 2*tidyInterval) })
	soonDone(t, "the list of pods", func() { f.Pods() })
	assert.Empty(t, f.held(a))

	ctx, cancel := context.WithCancel(context.Background())
	released := make(chan types.UID)
	ended := make(chan struct{})
	deletions := &fakeDeletions{}
	f.deletions = deletions
	c := protectedPod("c")
	f.running(c)
	f.ObserveSource(apiSource, nil)
	require.True(t, f.HoldVanished(apiSource, c))
	deletions.record(c, "")
	go func() {
		defer close(ended)
		f.Run(ctx, func(uid types.UID, evidence bool) {
			if evidence {
				released <- uid
			}
		})
	}()
	soonDone(t, "Run", func() {
		for {
			f.clock.Step(tidyInterval)
			select {
			case uid := <-released:
				assert.Equal(t, c.UID, uid)
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	cancel()
	soonDone(t, "the end of Run", func() { <-ended })

	thaw()
	f.saved()
	assert.NoFileExists(t, f.store.path(a.UID))
	assert.NoFileExists(t, f.store.path(b.UID))
	assert.Empty(t, disk.waiting)
}

func TestHungDiskTakesOneGoroutine(t *testing.T) {
	pod := protectedPod("a")
	f, _, thaw := frozenNode(t, pod)
	before := goruntime.NumGoroutine()
	for i := range 1000 {
		pod = pod.DeepCopy()
		pod.ResourceVersion = fmt.Sprint(i + 1)
		pod.Annotations["status"], pod.Labels["status"] = fmt.Sprint(i), fmt.Sprint(i)
		f.ObserveSource(apiSource, []*v1.Pod{pod})
		f.readReleasesSoon()
	}
	assert.LessOrEqual(t, goruntime.NumGoroutine(), before)
	thaw()
	f.saved()
	assert.Equal(t, "999", f.content(pod).Pod.Labels["status"])
}

func TestHungDiskDelaysStartsOnceAndNotForLong(t *testing.T) {
	f, _, thaw := frozenNode(t)
	service := f.RuntimeService(f.runtime)
	start := func(pod *v1.Pod) chan struct{} {
		started := make(chan struct{})
		go func() {
			defer close(started)
			_, err := service.RunPodSandbox(context.Background(), sandboxOf(pod), "")
			assert.NoError(t, err)
		}()
		return started
	}
	first, second, plain := protectedPod("first"), protectedPod("second"), plainPod("plain")
	f.ObserveSource(apiSource, []*v1.Pod{first, second, plain})
	soonDone(t, "the start of a pod without the label", func() { <-start(plain) })

	waiting := start(first)
	require.Eventually(t, f.clock.HasWaiters, time.Minute, time.Millisecond)
	select {
	case <-waiting:
		require.FailNow(t, "the first start waits")
	default:
	}
	f.clock.Step(saveTimeout)
	soonDone(t, "the first start", func() { <-waiting })
	soonDone(t, "the second start: the disk is known to hang", func() { <-start(second) })

	t.Run("and it is reported, once, and counted while it lasts", func(t *testing.T) {
		f.events.take()
		f.pass(hangReport + 4*tidyInterval)
		assert.GreaterOrEqual(t, f.series()["errors_total{operation=StateDirectory}"], 3.0)
		assert.Equal(t, 1, f.unusable())
	})
	thaw()
	f.saved()
	assert.FileExists(t, f.store.path(first.UID))
	assert.FileExists(t, f.store.path(second.UID))
}

// unusable counts the events about the state directory since the last call.
func (f *fixture) unusable() int {
	n := 0
	for _, event := range f.events.take() {
		n += strings.Count(event, EventSavedPodUnusable)
	}
	return n
}

func TestStartWaitsForTheFirstFileOnly(t *testing.T) {
	pod := protectedPod("a")
	f, _, _ := frozenNode(t, pod)
	changed := pod.DeepCopy()
	changed.Labels["app"] = "other"
	f.ObserveSource(apiSource, []*v1.Pod{changed})
	soonDone(t, "a new sandbox of a pod that is saved", func() {
		_, err := f.RuntimeService(f.runtime).RunPodSandbox(context.Background(), sandboxOf(pod), "")
		assert.NoError(t, err)
	})
}

func TestFirstFilesAreWrittenBeforeOtherChanges(t *testing.T) {
	var pods []*v1.Pod
	for i := range 5 {
		pods = append(pods, protectedPod(fmt.Sprint("p", i)))
	}
	f, disk, thaw := frozenNode(t, pods...)
	disk.take()
	for i := range pods {
		pods[i] = pods[i].DeepCopy()
		pods[i].Labels["app"] = "other"
	}
	f.ObserveSource(apiSource, pods)
	f.ObserveSource(apiSource, append(pods, protectedPod("new")))
	thaw()
	f.saved()
	assert.Equal(t, []string{"pods", "new-uid.pod.new", "pods"}, disk.take()[:3])
}

// started returns a copy of the pod as its kubelet reports it when it runs.
func started(pod *v1.Pod, version, containerID string) *v1.Pod {
	pod = pod.DeepCopy()
	pod.ResourceVersion = version
	at := metav1.NewTime(epoch.Local())
	pod.Status = v1.PodStatus{
		Phase: v1.PodRunning, QOSClass: v1.PodQOSBurstable, StartTime: &at, PodIP: "10.0.0.1", PodIPs: []v1.PodIP{{IP: "10.0.0.1"}},
		Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}},
		InitContainerStatuses: []v1.ContainerStatus{{
			Name: "sidecar", ContainerID: "containerd://s", Started: ptr.To(true), Ready: true,
			State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: at}},
		}},
		ContainerStatuses: []v1.ContainerStatus{{
			Name: "app", ContainerID: containerID, Started: ptr.To(true), Ready: true, RestartCount: 2,
			State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: at}},
		}},
	}
	return pod
}

func TestQuietPodCostsTwoWrites(t *testing.T) {
	f, _ := node(t)
	disk := f.countSyncs()
	pod := protectedPod("p")
	pod.ResourceVersion, pod.Status = "1", v1.PodStatus{Phase: v1.PodPending}
	f.ObserveSource(apiSource, []*v1.Pod{pod})
	f.saved()
	assert.Equal(t, []string{"p-uid.pod.new", "pods"}, disk.take(), "when it is new")
	running := started(pod, "2", "containerd://c")
	f.running(running)
	f.pass(time.Second)
	f.observe(deleted(running))
	ended := deleted(running)
	ended.ResourceVersion, ended.Status.ContainerStatuses[0].Started = "3", ptr.To(false)
	f.ObserveSource(apiSource, []*v1.Pod{ended})
	f.saved()
	f.runtime.remove(pod)
	f.ObserveSource(apiSource, nil)
	f.pass(goneLinger + 2*time.Minute)
	f.saved()
	assert.Equal(t, []string{"p-uid.pod.new", "pods"}, disk.take(), "and its deletion")
	assert.NoFileExists(t, f.store.path(pod.UID))
}

func TestStatusIsWrittenWhenTheContainersAreOthers(t *testing.T) {
	f, restart := node(t)
	disk := f.countSyncs()
	pod := protectedPod("p")
	pod.ResourceVersion, pod.Status = "1", v1.PodStatus{Phase: v1.PodPending}
	f.running(pod)
	f.saved()
	disk.take()
	running := started(pod, "2", "containerd://c")
	f.ObserveSource(apiSource, []*v1.Pod{running})
	f.saved()
	assert.Empty(t, disk.take(), "not at once")
	f.pass(2*lazyDelay + tidyInterval)
	f.saved()
	assert.Len(t, disk.take(), 2)
	assert.Equal(t, running.Status, f.content(pod).Pod.Status)
	assert.Equal(t, "2", f.content(pod).Pod.ResourceVersion)

	unready := started(pod, "3", "containerd://c")
	unready.Status.ContainerStatuses[0].Ready = false
	unready.Status.Conditions[0].Status = v1.ConditionFalse
	f.ObserveSource(apiSource, []*v1.Pod{unready})
	f.pass(5 * time.Minute)
	f.saved()
	assert.Empty(t, disk.take(), "readiness alone is not written")

	ended := inPhase(unready, v1.PodFailed)
	ended.ResourceVersion, ended.Labels["app"] = "4", "other"
	f.ObserveSource(apiSource, []*v1.Pod{ended})
	f.saved()
	assert.Equal(t, unready.Status, f.content(pod).Pod.Status, "the claim that it has ended is not written")

	f = restart()
	restored := f.ObserveSource(apiSource, nil)
	require.Len(t, restored, 1)
	assert.Equal(t, unready.Status, restored[0].Status, "a vanished pod comes back with it")
}

func TestClaimOfAnEndIsNeverSaved(t *testing.T) {
	f, _ := node(t)
	pod := inPhase(protectedPod("p"), v1.PodFailed)
	f.running(pod)
	f.saved()
	assert.Empty(t, f.content(pod).Pod.Status.Phase)
}

func TestChangesThatCanWaitAreWrittenOnceAMinute(t *testing.T) {
	f, _ := node(t)
	disk := f.countSyncs()
	var pods []*v1.Pod
	for i := range 20 {
		pods = append(pods, protectedPod(fmt.Sprint("p", i)))
	}
	f.running(pods...)
	f.saved()
	disk.take()
	const minutes = 30
	passes := map[int]int{}
	for i := range minutes * 60 / int(tidyInterval/time.Second) {
		for p := range pods {
			pods[p] = pods[p].DeepCopy()
			pods[p].ResourceVersion, pods[p].Annotations["position"] = fmt.Sprint(i+1), fmt.Sprint(i)
		}
		f.ObserveSource(apiSource, pods)
		f.pass(tidyInterval)
		f.saved()
		passes[len(disk.take())/2]++
	}
	writes := 0
	for n, times := range passes {
		writes += n * times
		assert.Less(t, n, len(pods), "spread")
	}
	assert.LessOrEqual(t, writes, len(pods)*minutes)
	assert.Greater(t, writes, len(pods)*minutes/2)
}

func TestFailedWriteIsRepeatedEverMoreRarely(t *testing.T) {
	f, _ := node(t)
	disk := f.countSyncs()
	disk.fail(errors.New("no space left on device"))
	pod := protectedPod("p")
	f.running(pod)
	soonDone(t, "the start", func() { f.awaitSaved(context.Background(), f.records[pod.UID]) })
	for range 120 {
		f.pass(tidyInterval)
		f.saved()
	}
	attempts := f.series()["errors_total{operation=StateDirectory}"]
	assert.Greater(t, attempts, 8.0)
	assert.Less(t, attempts, 16.0)
	assert.Equal(t, 1, f.unusable())
	disk.fail(nil)
	for range maxWriteRetry / tidyInterval {
		f.pass(tidyInterval)
		f.saved()
	}
	assert.Equal(t, pod.UID, f.content(pod).Pod.UID)
}

func TestPodThatIsProtectedAgainIsSavedAgain(t *testing.T) {
	pod := protectedPod("p")
	f, _, thaw := frozenNode(t, pod)
	require.NoError(t, os.WriteFile(filepath.Join(f.store.releases, string(pod.UID)), nil, 0o600))
	plain := pod.DeepCopy()
	plain.Labels = nil
	f.ObserveSource(apiSource, []*v1.Pod{plain})
	f.ObserveSource(apiSource, []*v1.Pod{pod})
	assert.Empty(t, f.readReleases(), "the release file was for its life before")
	thaw()
	f.saved()
	assert.FileExists(t, f.store.path(pod.UID))
	assert.NoFileExists(t, filepath.Join(f.store.releases, string(pod.UID)))
	assert.Equal(t, Protected, f.state(pod))
}

func TestPodThatLostItsLabelWhileNoKubeletRanIsNotRestored(t *testing.T) {
	pod := protectedPod("p")
	f, restart := node(t)
	f.running(pod)
	f.saved()
	plain := pod.DeepCopy()
	plain.Labels = nil
	f = restart()
	assert.Equal(t, []string{"p"}, names(f.ObserveSource(apiSource, []*v1.Pod{plain})))
	f.saved()
	assert.NoFileExists(t, f.store.path(pod.UID))
	assert.False(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
}

func TestReleaseFileReachesRun(t *testing.T) {
	f, _ := node(t)
	pod := protectedPod("p")
	f.running(pod)
	f.ObserveSource(apiSource, nil)
	require.True(t, f.HoldVanished(apiSource, pod))
	require.NoError(t, os.WriteFile(filepath.Join(f.store.releases, string(pod.UID)), nil, 0o600))
	ctx, cancel := context.WithCancel(context.Background())
	released := make(chan types.UID, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f.Run(ctx, func(uid types.UID, evidence bool) {
			if evidence {
				released <- uid
			}
		})
	}()
	require.Eventually(t, f.clock.HasWaiters, time.Minute, time.Millisecond)
	f.clock.Step(tidyInterval)
	soonDone(t, "the release", func() { assert.Equal(t, pod.UID, <-released) })
	cancel()
	<-ended
}

// Everything at once on a real disk, for the race detector.
func TestConcurrentUseOfTheStateDirectory(t *testing.T) {
	f, _ := node(t)
	var pods []*v1.Pod
	for i := range 8 {
		pods = append(pods, protectedPod(fmt.Sprint("p", i)))
	}
	f.running(pods...)
	claim, volume := boundClaim("claim")
	var workers sync.WaitGroup
	work := func(do func(i int, pod *v1.Pod)) {
		workers.Go(func() {
			for i := range 100 {
				do(i, pods[i%len(pods)])
			}
		})
	}
	work(func(i int, _ *v1.Pod) {
		set := append([]*v1.Pod(nil), pods...)
		changed := started(pods[i%8], fmt.Sprint(i), fmt.Sprint("containerd://", i))
		changed.Labels["app"], changed.Annotations["n"] = fmt.Sprint(i), fmt.Sprint(i)
		if i%10 == 5 {
			changed.Labels = nil
		}
		set[i%8] = changed
		f.ObserveSource(apiSource, set)
	})
	work(func(i int, pod *v1.Pod) {
		if i > 90 {
			f.observe(deleted(pod))
		}
	})
	work(func(i int, pod *v1.Pod) {
		c := claim.DeepCopy()
		c.Labels = map[string]string{"n": fmt.Sprint(i)}
		f.SaveVolume(pod, c, volume)
	})
	work(func(_ int, pod *v1.Pod) {
		_, _ = f.RuntimeService(f.runtime).RunPodSandbox(context.Background(), sandboxOf(pod), "")
	})
	work(func(int, *v1.Pod) { f.pass(tidyInterval) })
	work(func(int, *v1.Pod) { f.readReleasesSoon(); f.takeReleased() })
	workers.Wait()
	f.saved()
	saved, bad := f.store.load()
	assert.Empty(t, bad)
	assert.NotEmpty(t, saved)
}
