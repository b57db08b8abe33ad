package guard

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// at returns the pod as it was at a resource version, with an image.
func at(version, image string) *v1.Pod {
	pod := protectedPod("p")
	pod.ResourceVersion = version
	pod.Spec.Containers[0].Image = image
	return pod
}

func withoutLabel(pod *v1.Pod) *v1.Pod {
	delete(pod.Labels, ExplicitDeletionLabel)
	return pod
}

func imageOf(pods []*v1.Pod) string { return pods[0].Spec.Containers[0].Image }

func TestOlderObjectIsNoDeclaration(t *testing.T) {
	start := func(t *testing.T, options ...func(*Configuration)) *fixture {
		dir := t.TempDir()
		f := newFixture(t, append(options, func(c *Configuration) { c.StateDir = dir })...)
		t.Cleanup(f.saved)
		f.running(at("1000", "app:2"))
		return f
	}
	message := func(f *fixture, pod *v1.Pod) string { return imageOf(f.ObserveSource(apiSource, []*v1.Pod{pod})) }

	t.Run("its image is not taken, and the pod is held", func(t *testing.T) {
		f := start(t)
		older := at("500", "app:1")
		assert.Equal(t, "app:2", message(f, older))
		assert.Equal(t, []Cause{ObjectRolledBack}, f.held(older))
		assert.Equal(t, "app:1", older.Spec.Containers[0].Image, "the message is not changed")
		f.clock.Step(time.Hour)
		assert.Equal(t, "app:2", message(f, at("510", "app:1")), "a newer status is no declaration")
		assert.Equal(t, "app:2", message(f, at("1500", "app:1")), "nor is the version that the storage comes to")
		assert.Equal(t, 1.0, f.series()["refused_kills_total{cause=ObjectRolledBack}"])
	})
	t.Run("until someone changes it", func(t *testing.T) {
		f := start(t)
		message(f, at("500", "app:1"))
		assert.Equal(t, "app:3", message(f, at("520", "app:3")))
		assert.Empty(t, f.held(at("520", "")))
		assert.Equal(t, "app:4", message(f, at("530", "app:4")), "a declared change as usual")
	})
	t.Run("a pod that has lost its label in it stays protected", func(t *testing.T) {
		f := start(t)
		got := f.ObserveSource(apiSource, []*v1.Pod{withoutLabel(at("500", "app:2"))})
		assert.True(t, f.Protects(got[0]))
		assert.Empty(t, f.held(got[0]), "nothing would have been stopped")
		assert.True(t, f.Refuse(got[0], Evicted, ""))
		changed := withoutLabel(at("520", "app:2"))
		changed.Labels["app"] = "other"
		assert.False(t, f.Protects(f.ObserveSource(apiSource, []*v1.Pod{changed})[0]), "until someone changes the object")
	})
	t.Run("a label that is removed is a change like any other", func(t *testing.T) {
		f := start(t)
		assert.False(t, f.Protects(f.ObserveSource(apiSource, []*v1.Pod{withoutLabel(at("1001", "app:2"))})[0]))
	})
	t.Run("its deletion counts", func(t *testing.T) {
		f := start(t)
		message(f, at("500", "app:1"))
		f.ObserveSource(apiSource, []*v1.Pod{deleted(at("540", "app:1"))})
		assert.False(t, f.Refuse(deleted(at("540", "app:1")), PodVanished, ""))
		assert.Equal(t, Terminating, f.state(at("540", "")))
	})
	t.Run("a pod of which nothing runs is started by its API object", func(t *testing.T) {
		f := start(t)
		f.runtime.remove(at("1000", "app:2"))
		assert.Equal(t, "app:1", message(f, at("500", "app:1")))
	})
	t.Run("an exempt cause, and mode Audit, take it", func(t *testing.T) {
		assert.Equal(t, "app:1", message(start(t, allowing(ObjectRolledBack)), at("500", "app:1")))
		assert.Equal(t, "app:1", message(start(t, inMode(Audit)), at("500", "app:1")))
	})
	t.Run("versions that cannot be compared mean nothing", func(t *testing.T) {
		assert.Equal(t, "app:1", message(start(t), at("x", "app:1")))
	})
	t.Run("over a restart of the kubelet", func(t *testing.T) {
		f := start(t)
		f.saved()
		next := newFixture(t, func(c *Configuration) { c.StateDir = f.stateDir })
		t.Cleanup(next.saved)
		next.runtime = f.runtime
		next.Guard.runtime = f.runtime
		assert.Equal(t, "app:2", message(next, at("500", "app:1")))
		assert.Equal(t, []Cause{ObjectRolledBack}, next.held(at("500", "")))
	})
}

func TestClaimThatAllContainersRestart(t *testing.T) {
	claiming := func() *v1.Pod {
		pod := protectedPod("p")
		pod.Status.Conditions = []v1.PodCondition{{Type: v1.PodReady}, {Type: v1.AllContainersRestarting, Status: v1.ConditionTrue}}
		return pod
	}
	for name, test := range map[string]struct {
		happens  func(*fixture, *v1.Pod)
		believed bool
	}{
		"all containers run":           {},
		"one has exited":               {happens: func(f *fixture, p *v1.Pod) { f.runtime.setContainer(p, runtimeapi.ContainerState_CONTAINER_EXITED) }, believed: true},
		"one was removed":              {happens: func(f *fixture, p *v1.Pod) { delete(f.runtime.containers, "p-uid-c") }, believed: true},
		"the runtime does not respond": {happens: func(f *fixture, _ *v1.Pod) { f.runtime.failing["ListContainers"] = errors.New("unavailable") }},
		"its deletion is explicit":     {happens: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }, believed: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := claiming()
			f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
			if test.happens != nil {
				test.happens(f, pod)
			}
			got := f.ObserveSource(apiSource, []*v1.Pod{pod})[0]
			assert.Len(t, pod.Status.Conditions, 2, "the message is not changed")
			if test.believed {
				assert.Len(t, got.Status.Conditions, 2)
				return
			}
			assert.Equal(t, []v1.PodCondition{{Type: v1.PodReady}}, got.Status.Conditions)
			assert.Equal(t, []Cause{RestartReported}, f.held(pod))
		})
	}
}

func TestEvidenceEndsWithTheLifeThatItWasGivenFor(t *testing.T) {
	start := func(f *fixture, pod *v1.Pod) {
		_, err := f.RuntimeService(f.runtime).CreateContainer(t.Context(), "", nil, &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID)}})
		require.NoError(t, err)
	}
	pod := protectedPod("p")
	t.Run("after a restart of the kubelet, from an object without a timestamp", func(t *testing.T) {
		state := func(c *Configuration) { c.StateDir = t.TempDir() }
		dir := ""
		f := newFixture(t, state, func(c *Configuration) { dir = c.StateDir })
		f.running(pod)
		f.observe(deleted(pod))
		f.saved()
		again := newFixture(t, func(c *Configuration) { c.StateDir = dir })
		t.Cleanup(again.saved)
		again.running(pod)
		assert.Equal(t, Terminating, again.state(pod), "what is left of the old life may end")
		start(again, pod)
		assert.Equal(t, Protected, again.state(pod))
		assert.True(t, again.Refuse(pod, Evicted, ""))
		again.saved()
		third := newFixture(t, func(c *Configuration) { c.StateDir = dir })
		t.Cleanup(third.saved)
		third.running(pod)
		assert.Equal(t, Protected, third.state(pod), "by its file, too")
	})
	t.Run("not for a pod that is deleted while it starts", func(t *testing.T) {
		f := newFixture(t)
		f.running(pod)
		f.observe(deleted(pod))
		start(f, pod)
		assert.Equal(t, Terminating, f.state(pod))
		assert.False(t, f.HoldVanished(apiSource, pod))
	})
	t.Run("not for a pod whose object is being deleted", func(t *testing.T) {
		f := newFixture(t)
		gone := deleted(pod)
		f.runtime.run(gone, runtimeapi.ContainerState_CONTAINER_RUNNING)
		f.observe(gone)
		f.ObserveSource(apiSource, []*v1.Pod{gone})
		f.relist()
		require.NoError(t, f.RuntimeService(f.runtime).StopPodSandbox(t.Context(), "p-uid-s"))
		start(f, pod)
		assert.Equal(t, Terminating, f.state(pod))
	})
	t.Run("an exemption ends with it", func(t *testing.T) {
		f := newFixture(t)
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_EXITED)
		f.runtime.setSandbox(pod, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
		f.ObserveSource(apiSource, []*v1.Pod{pod})
		require.False(t, f.Refuse(pod, AdmissionRejected, ""), "nothing runs")
		start(f, pod)
		f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
		assert.True(t, f.Refuse(pod, Evicted, ""))
	})
}

func TestWhatIsProtected(t *testing.T) {
	notBatch := func(c *Configuration) {
		c.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"batch"}}}}
	}
	t.Run("a pod without labels is judged by the selector, with its object and without", func(t *testing.T) {
		f := newFixture(t, notBatch)
		pod := plainPod("p")
		pod.Labels = nil
		f.running(pod)
		assert.True(t, f.Refuse(pod, Evicted, ""))
		orphan := plainPod("orphan")
		orphan.Labels = nil
		f.runtime.run(orphan, runtimeapi.ContainerState_CONTAINER_RUNNING)
		assert.True(t, f.RefuseUID(orphan.UID, OrphanedRuntimePod, ""))
	})
	t.Run("the kubelet's own labels on a sandbox are not the pod's", func(t *testing.T) {
		f := newFixture(t, func(c *Configuration) {
			c.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: podNameLabel, Operator: metav1.LabelSelectorOpExists}}}
		})
		orphan := plainPod("orphan")
		f.runtime.run(orphan, runtimeapi.ContainerState_CONTAINER_RUNNING)
		assert.False(t, f.RefuseUID(orphan.UID, OrphanedRuntimePod, ""))
	})
	t.Run("what an author wrote into the annotation of the source means nothing", func(t *testing.T) {
		f := newFixture(t)
		pod := protectedPod("p")
		pod.Annotations[sourceAnnotation] = "file"
		f.running(pod)
		pod.Annotations[sourceAnnotation] = apiSource // as the merge does
		assert.True(t, f.Refuse(pod, Evicted, ""))
		stamped := deleted(pod)
		stamped.Annotations[sourceAnnotation] = "file"
		f.observe(stamped)
		assert.False(t, f.Refuse(pod, Evicted, ""))
	})
	t.Run("a kubelet without an API server knows its saved pods", func(t *testing.T) {
		dir := t.TempDir()
		state := func(c *Configuration) { c.StateDir = dir }
		before := newFixture(t, state)
		before.running(protectedPod("p"))
		before.saved()
		f := newFixture(t, state)
		f.runtime.run(plainPod("p"), runtimeapi.ContainerState_CONTAINER_RUNNING) // the label came later than the sandbox
		assert.True(t, f.RefuseUID("p-uid", OrphanedRuntimePod, ""))
		assert.True(t, f.RefuseUID("p-uid", ResourcesReclaimed, ""))
	})
}
