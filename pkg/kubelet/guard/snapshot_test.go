package guard

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	testingclock "k8s.io/utils/clock/testing"
)

// node is a fixture whose state directory outlives the Guard.
func node(t *testing.T, options ...func(*Configuration)) (first *fixture, restart func() *fixture) {
	t.Helper()
	stateDir := filepath.Join(t.TempDir(), "guard")
	runtime := newFakeRuntime()
	start := func() *fixture {
		config := DefaultConfiguration()
		config.StateDir = stateDir
		for _, option := range options {
			option(config)
		}
		f := &fixture{t: t, runtime: runtime, events: &fakeEvents{}, clock: testingclock.NewFakeClock(epoch)}
		g, err := New(Dependencies{Configuration: config, NodeName: "node-1", Recorder: f.events, Events: f.events, Runtime: runtime, Clock: f.clock})
		require.NoError(t, err)
		f.Guard, f.events.guard = g, g
		t.Cleanup(f.saved)
		return f
	}
	return start(), start
}

// saved waits until what is due in the state directory is done.
func (f *fixture) saved() {
	f.mu.Lock()
	idle := f.saver.idle
	f.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

func names(pods []*v1.Pod) []string {
	var names []string
	for _, pod := range pods {
		names = append(names, pod.Name)
	}
	return names
}

func TestRestore(t *testing.T) {
	pod := protectedPod("p")
	for name, test := range map[string]struct {
		// change happens after the pod was saved; the kubelet restarts then.
		change func(f *fixture)
		// listed is the first message of the API source.
		listed []*v1.Pod
		want   []string
		held   []Cause
	}{
		"brings back a pod that the API no longer has": {
			want: []string{"p"}, held: []Cause{PodVanished},
		},
		"leaves a pod alone that the API has": {
			listed: []*v1.Pod{pod}, want: []string{"p"}, held: []Cause{},
		},
		"keeps a pod next to its successor of the same name": {
			listed: []*v1.Pod{func() *v1.Pod { p := protectedPod("p"); p.UID = "new"; return p }()},
			want:   []string{"p", "p"}, held: []Cause{PodVanished},
		},
		"forgets a pod of which nothing is left": {
			change: func(f *fixture) { f.runtime.remove(pod) },
		},
		"does not restore a pod whose deletion was requested": {
			change: func(f *fixture) { f.noteDeletion(deleted(pod)) },
			held:   []Cause{},
		},
		"does not bring back a pod that lost its label": {
			change: func(f *fixture) {
				plain := pod.DeepCopy()
				plain.Labels = nil
				f.ObserveSource(apiSource, []*v1.Pod{plain})
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, restart := node(t)
			f.running(pod)
			f.saved()
			if test.change != nil {
				test.change(f)
			}
			f.saved()
			f = restart()
			got := f.ObserveSource(apiSource, test.listed)
			assert.Equal(t, test.want, names(got))
			assert.Equal(t, test.held, f.held(pod))
			assert.Equal(t, test.want, names(got), "only the first message is added to")
			assert.Empty(t, f.ObserveSource(apiSource, nil))
		})
	}
}

func TestSavedPodsAreShownBeforeTheAPIReportsThem(t *testing.T) {
	f, restart := node(t)
	kept, ended := protectedPod("kept"), protectedPod("ended")
	f.running(kept, ended)
	f.observe(deleted(ended))
	f.saved()
	f = restart()
	require.Len(t, f.Pods().Items, 2)
	for i, want := range []State{Terminating, Protected} {
		item := f.Pods().Items[i]
		assert.Equal(t, want, item.State, item.Name)
		assert.False(t, item.ObjectPresent, item.Name)
	}
	assert.Equal(t, map[string]float64{"protected_pods{}": 1, "unconfirmed_pods{}": 1}, f.series())
	f.reportUnconfirmed()
	assert.Equal(t, f.clock.Now().Add(unconfirmedPatience), f.unconfirmedReport, "no word before a minute")
	f.clock.Step(unconfirmedPatience)
	f.reportUnconfirmed()
	assert.Equal(t, f.clock.Now().Add(unconfirmedReports), f.unconfirmedReport, "after the report")
	f.ObserveSource(apiSource, []*v1.Pod{kept})
	assert.Equal(t, map[string]float64{"protected_pods{}": 1}, f.series())
}

// A kubelet without an API server never gets a first message.
func TestSavedPodsAreForgottenWithTheirEndThoughTheAPIReportsNothing(t *testing.T) {
	f, restart := node(t)
	pod := protectedPod("p")
	f.running(pod)
	f.saved()
	f = restart()
	require.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
	assert.Equal(t, 1.0, f.series()["unconfirmed_pods{}"])
	f.runtime.remove(pod)
	f.pass(2 * holdLinger)
	assert.Empty(t, f.Pods().Items)
	assert.Empty(t, f.series()["unconfirmed_pods{}"])
}

func TestRestoredPodIsHeldUntilItsObjectIsBack(t *testing.T) {
	pod := protectedPod("p")
	f, restart := node(t)
	f.running(pod)
	f.saved()
	for range 3 {
		f = restart()
		require.Equal(t, []string{"p"}, names(f.ObserveSource(apiSource, nil)))
		require.True(t, f.HoldVanished(apiSource, pod))
		require.True(t, f.Vanished(pod.UID))
	}
	f.ObserveSource(apiSource, []*v1.Pod{pod})
	assert.Empty(t, f.held(pod))
	assert.False(t, f.Vanished(pod.UID))
	assert.Equal(t, Protected, f.state(pod))
}

func TestEvidenceSurvivesARestart(t *testing.T) {
	pod := protectedPod("p")
	f, restart := node(t)
	f.running(pod)
	f.saved()
	f.noteDeletion(deleted(pod))
	f.saved()
	f = restart()
	f.ObserveSource(apiSource, nil)
	assert.False(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""), "what is left of it may be stopped")
}

func TestEvidenceOfTheFirstListIsKeptAndSaved(t *testing.T) {
	pod := protectedPod("p")
	f, restart := node(t)
	f.running(pod)
	f.saved()

	f = restart()
	f.observe(deleted(pod)) // the reflector lists before the first message is merged
	f.running(pod)
	assert.Equal(t, Terminating, f.state(pod))
	f.tidy()
	f.saved()

	f = restart()
	f.running(pod)
	assert.Equal(t, Terminating, f.state(pod))
}

func TestOnlyChangesOfSpecOrMetadataAreSaved(t *testing.T) {
	f, _ := node(t)
	pod := protectedPod("p")
	pod.ResourceVersion = "1"
	f.running(pod)
	f.saved()
	path := f.store.path(pod.UID)
	first, err := os.Stat(path)
	require.NoError(t, err)

	status := pod.DeepCopy()
	status.ResourceVersion, status.Status.PodIP = "2", "10.0.0.1"
	f.ObserveSource(apiSource, []*v1.Pod{status})
	f.saved()
	same, err := os.Stat(path)
	require.NoError(t, err)
	assert.True(t, os.SameFile(first, same), "a new status is not written")

	label := status.DeepCopy()
	label.ResourceVersion, label.Labels["app"] = "3", "other"
	f.ObserveSource(apiSource, []*v1.Pod{label})
	f.saved()
	pods, bad := f.store.load()
	assert.Empty(t, bad)
	require.Len(t, pods, 1)
	assert.Equal(t, "other", pods[0].Pod.Labels["app"])
}

func TestPodIsSavedBeforeItsSandboxRuns(t *testing.T) {
	f, _ := node(t)
	pod := protectedPod("p")
	f.ObserveSource(apiSource, []*v1.Pod{pod})
	_, err := f.RuntimeService(f.runtime).RunPodSandbox(context.Background(), &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID)}}, "")
	require.NoError(t, err)
	assert.FileExists(t, f.store.path(pod.UID))
}

func TestFileGoesWhenNothingOfThePodIsLeft(t *testing.T) {
	f, _ := node(t)
	pod := protectedPod("p")
	f.running(pod)
	f.saved()
	f.noteDeletion(deleted(pod))
	f.ObserveSource(apiSource, nil)
	f.pass(goneLinger + 2*tidyInterval)
	assert.FileExists(t, f.store.path(pod.UID), "it still runs")
	f.runtime.remove(pod)
	f.pass(goneLinger + 2*tidyInterval)
	f.saved()
	assert.NoFileExists(t, f.store.path(pod.UID))
	assert.Empty(t, f.Pods().Items)
}

func TestStateDirectoryThatCannotBeWritten(t *testing.T) {
	f, _ := node(t)
	require.NoError(t, os.RemoveAll(f.store.dir))
	require.NoError(t, os.WriteFile(f.store.dir, nil, 0o600), "a file in place of the folder")
	pod := protectedPod("p")
	f.running(pod)
	f.saved()
	for range 4 {
		f.pass(tidyInterval)
		f.saved()
	}
	assert.True(t, f.Refuse(pod, Evicted, ""), "the pod is protected all the same")
	assert.GreaterOrEqual(t, f.series()["errors_total{operation=StateDirectory}"], 2.0, "and it is tried again")
	events := 0
	for _, event := range f.events.take() {
		if strings.Contains(event, EventSavedPodUnusable) {
			events++
		}
	}
	assert.Equal(t, 1, events, "one event while it lasts")

	require.NoError(t, os.Remove(f.store.dir))
	require.NoError(t, os.Mkdir(f.store.dir, 0o700))
	f.pass(maxWriteRetry)
	f.saved()
	assert.FileExists(t, f.store.path(pod.UID))
}

func TestReleaseFile(t *testing.T) {
	f, restart := node(t)
	pod := protectedPod("p")
	f.running(pod)
	f.saved()
	f = restart()
	f.ObserveSource(apiSource, nil)
	require.Equal(t, []Cause{PodVanished}, f.held(pod))
	assert.Empty(t, f.readReleases())

	require.NoError(t, os.WriteFile(filepath.Join(releaseDir(f.stateDir), string(pod.UID)), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(releaseDir(f.stateDir), "another-user"), nil, 0o600))
	assert.Equal(t, []types.UID{pod.UID}, f.readReleases())
	assert.Empty(t, f.readReleases(), "once")
	assert.False(t, f.HoldVanished(apiSource, pod))
	assert.Equal(t, ReleaseFile, f.Pods().Items[0].Evidence.Kind)

	f.runtime.remove(pod)
	f.pass(goneLinger + 2*tidyInterval)
	f.saved()
	assert.NoFileExists(t, filepath.Join(releaseDir(f.stateDir), string(pod.UID)))
}
