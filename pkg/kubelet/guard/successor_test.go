package guard

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// withHostPath mounts a folder of the node.
func withHostPath(pod *v1.Pod, path string, readOnly bool) *v1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path}}})
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, v1.VolumeMount{Name: "host", ReadOnly: readOnly})
	return pod
}

func withClaim(pod *v1.Pod, claim string) *v1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: "data", VolumeSource: v1.VolumeSource{
		PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
	return pod
}

func withHostPort(pod *v1.Pod, number int32, protocol v1.Protocol, ip string) *v1.Pod {
	pod.Spec.Containers[0].Ports = append(pod.Spec.Containers[0].Ports, v1.ContainerPort{HostPort: number, Protocol: protocol, HostIP: ip})
	return pod
}

// successorOf returns a pod of the same name.
func successorOf(pod *v1.Pod) *v1.Pod {
	next := plainPod(pod.Name)
	next.UID = pod.UID + "-next"
	return next
}

// vanish makes the pod run and lose its object, with the successor in its place.
func (f *fixture) vanish(pod, successor *v1.Pod) {
	f.t.Helper()
	f.running(pod)
	f.ObserveSource(apiSource, []*v1.Pod{successor})
	require.True(f.t, f.HoldVanished(apiSource, pod))
}

func TestSuccessorWaitsForWhatCannotBeShared(t *testing.T) {
	bound := func(modes []v1.PersistentVolumeAccessMode, source v1.PersistentVolumeSource) func(*fixture, *v1.Pod) {
		return func(f *fixture, held *v1.Pod) {
			claim := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "default", UID: "claim"}, Spec: v1.PersistentVolumeClaimSpec{AccessModes: modes}}
			f.SaveVolume(held, claim, &v1.PersistentVolume{Spec: v1.PersistentVolumeSpec{PersistentVolumeSource: source}})
		}
	}
	claimed := func(p *v1.Pod) *v1.Pod { return withClaim(p, "data") }
	csi := v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{Driver: "csi.example"}}
	local := v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: "/data"}}
	for name, test := range map[string]struct {
		held, next func(*v1.Pod) *v1.Pod
		saved      func(*fixture, *v1.Pod)
		want       []string
	}{
		"nothing in common":                       {},
		"a host path that both write":             {held: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", false) }, next: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data/", false) }, want: []string{"host path /data/"}},
		"a folder in the other's":                 {held: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", false) }, next: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data/wal", false) }, want: []string{"host path /data/wal"}},
		"a folder with the same prefix":           {held: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", false) }, next: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/database", false) }},
		"a host path that the successor reads":    {held: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", false) }, next: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", true) }},
		"a host path that the held pod reads":     {held: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", true) }, next: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", false) }},
		"a claim of one node":                     {held: claimed, next: claimed, saved: bound([]v1.PersistentVolumeAccessMode{v1.ReadWriteOnce}, csi), want: []string{"claim data"}},
		"a claim of one pod":                      {held: claimed, next: claimed, saved: bound([]v1.PersistentVolumeAccessMode{v1.ReadWriteOncePod}, csi), want: []string{"claim data"}},
		"a claim of many nodes":                   {held: claimed, next: claimed, saved: bound([]v1.PersistentVolumeAccessMode{v1.ReadWriteMany}, csi)},
		"a claim that may be either":              {held: claimed, next: claimed, saved: bound([]v1.PersistentVolumeAccessMode{v1.ReadWriteMany, v1.ReadWriteOnce}, csi), want: []string{"claim data"}},
		"a claim of many nodes on a local volume": {held: claimed, next: claimed, saved: bound([]v1.PersistentVolumeAccessMode{v1.ReadWriteMany}, local), want: []string{"claim data"}},
		"a local volume that is read":             {held: claimed, next: claimed, saved: bound([]v1.PersistentVolumeAccessMode{v1.ReadOnlyMany}, local)},
		"a claim that nobody saved":               {held: claimed, next: claimed, want: []string{"claim data"}},
		"another claim":                           {held: claimed, next: func(p *v1.Pod) *v1.Pod { return withClaim(p, "other") }},
		"a host port":                             {held: func(p *v1.Pod) *v1.Pod { return withHostPort(p, 5432, "", "") }, next: func(p *v1.Pod) *v1.Pod { return withHostPort(p, 5432, v1.ProtocolTCP, "10.0.0.1") }, want: []string{"host port 5432/TCP"}},
		"the same number of another protocol":     {held: func(p *v1.Pod) *v1.Pod { return withHostPort(p, 53, v1.ProtocolTCP, "") }, next: func(p *v1.Pod) *v1.Pod { return withHostPort(p, 53, v1.ProtocolUDP, "") }},
		"the same port of another address":        {held: func(p *v1.Pod) *v1.Pod { return withHostPort(p, 53, "", "10.0.0.1") }, next: func(p *v1.Pod) *v1.Pod { return withHostPort(p, 53, "", "10.0.0.2") }},
		"a host path that only an init container writes": {held: func(p *v1.Pod) *v1.Pod { return withHostPath(p, "/data", false) }, next: func(p *v1.Pod) *v1.Pod {
			p = withHostPath(p, "/data", true)
			p.Spec.InitContainers = []v1.Container{{Name: "init", VolumeMounts: []v1.VolumeMount{{Name: "host"}}}}
			return p
		}, want: []string{"host path /data"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			held := protectedPod("db-0")
			next := successorOf(held)
			if test.held != nil {
				held = test.held(held)
			}
			if test.next != nil {
				next = test.next(next)
			}
			f.ObserveSource(apiSource, []*v1.Pod{held})
			if test.saved != nil {
				test.saved(f, held)
			}
			f.vanish(held, next)
			f.events.take()
			err := f.CheckStart(next, false)
			if test.want == nil {
				require.NoError(t, err)
				assert.Empty(t, f.Pods().Waiting)
				return
			}
			require.ErrorIs(t, err, ErrMustWait)
			assert.Equal(t, []WaitingState{{Namespace: "default", Name: "db-0", UID: next.UID, HeldUID: held.UID, Shares: test.want, Since: epoch}}, f.Pods().Waiting)
			assert.Equal(t, 1.0, f.series()["waiting_pods{}"])
			assert.Equal(t, []string{"Warning WaitingForHeldPod Pod/db-0"}, f.events.take())
			require.ErrorIs(t, f.CheckStart(next, false), ErrMustWait)
			assert.Empty(t, f.events.take(), "reported once")
			status := &v1.PodStatus{}
			f.CompletePodStatus(next, &v1.PodStatus{}, status)
			require.Len(t, status.Conditions, 1)
			assert.Equal(t, PodWaitingForHeldPod, status.Conditions[0].Type)
		})
	}
}

func TestSuccessorStarts(t *testing.T) {
	sharing := func() (held, next *v1.Pod) {
		held = withClaim(protectedPod("db-0"), "data")
		return held, withClaim(successorOf(held), "data")
	}
	for name, test := range map[string]struct {
		options []func(*Configuration)
		started bool
		happens func(*fixture, *v1.Pod, *v1.Pod)
	}{
		"when it was started before":                  {started: true},
		"when the held pod is released and has ended": {happens: func(f *fixture, held, _ *v1.Pod) { f.release(held.UID, PodDeletionRecord); f.runtime.remove(held) }},
		"when the held pod has ended by itself":       {happens: func(f *fixture, held, _ *v1.Pod) { f.AllowCompletion(held.UID); f.runtime.remove(held) }},
		"when the held pod's object is back":          {happens: func(f *fixture, held, _ *v1.Pod) { f.ObserveSource(apiSource, []*v1.Pod{held}) }},
		"in mode Audit":                               {options: []func(*Configuration){inMode(Audit)}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, test.options...)
			held, next := sharing()
			f.running(held)
			f.ObserveSource(apiSource, []*v1.Pod{next})
			f.HoldVanished(apiSource, held)
			if !test.started && f.Mode() == Enforce {
				require.ErrorIs(t, f.CheckStart(next, false), ErrMustWait)
			}
			if test.happens != nil {
				test.happens(f, held, next)
			}
			f.clock.Step(confirmInterval)
			require.NoError(t, f.CheckStart(next, test.started))
			assert.Empty(t, f.Pods().Waiting)
		})
	}
	t.Run("not while a released pod still ends", func(t *testing.T) {
		f := newFixture(t)
		held, next := sharing()
		f.vanish(held, next)
		require.ErrorIs(t, f.CheckStart(next, false), ErrMustWait)
		f.release(held.UID, PodDeletionRecord)
		require.ErrorIs(t, f.CheckStart(next, false), ErrMustWait)
		f.runtime.setContainer(held, runtimeapi.ContainerState_CONTAINER_EXITED)
		f.runtime.setSandbox(held, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
		for len(f.syncs) > 0 {
			<-f.syncs
		}
		f.pass(tidyInterval)
		assert.Equal(t, next.UID, <-f.syncs, "a sync is requested as soon as nothing runs")
		require.NoError(t, f.CheckStart(next, false))
	})
	t.Run("a pod that does not try any more is not waiting", func(t *testing.T) {
		f := newFixture(t)
		held, next := sharing()
		f.vanish(held, next)
		require.ErrorIs(t, f.CheckStart(next, false), ErrMustWait)
		f.pass(waitingLinger + tidyInterval)
		assert.Empty(t, f.Pods().Waiting)
	})
	t.Run("costs others nothing", func(t *testing.T) {
		f := newFixture(t)
		held, next := sharing()
		f.vanish(held, next)
		other := withClaim(plainPod("other"), "data")
		before := f.runtime.queries()
		require.NoError(t, f.CheckStart(other, false))
		assert.Equal(t, before, f.runtime.queries())
	})
}

func TestPodThatTheRuntimeHasForgottenIsNotStartedTwice(t *testing.T) {
	for name, test := range map[string]struct {
		happens func(*fixture, *v1.Pod)
		waits   bool
	}{
		"its processes run":          {waits: true},
		"they have ended":            {happens: func(f *fixture, p *v1.Pod) { delete(f.kernel.pods, p.UID) }},
		"the kernel does not report": {happens: func(f *fixture, _ *v1.Pod) { f.kernel.err = errors.New("unreadable") }, waits: true},
		"its deletion is explicit":   {happens: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }},
		"the runtime knows it again": {happens: func(f *fixture, p *v1.Pod) { f.runtime.run(p, runtimeapi.ContainerState_CONTAINER_EXITED); f.relist() }},
		"it has never run":           {happens: func(f *fixture, p *v1.Pod) { f.records[p.UID].earlier = false }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := protectedPod("p")
			f.kernel.pods[pod.UID] = true
			f.ObserveSource(apiSource, []*v1.Pod{pod})
			f.relist()
			if test.happens != nil {
				test.happens(f, pod)
			}
			err := f.CheckStart(pod, false)
			if !test.waits {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrMustWait)
			assert.Equal(t, []Cause{ContainerStateUnknown}, f.held(pod))
		})
	}
	t.Run("nor one that was started by this kubelet", func(t *testing.T) {
		f := newFixture(t)
		f.ObserveSource(apiSource, nil)
		pod := alreadyRunning(protectedPod("p"))
		f.kernel.pods[pod.UID] = true
		f.ObserveSource(apiSource, []*v1.Pod{pod})
		f.relist()
		require.ErrorIs(t, f.CheckStart(pod, false), ErrMustWait)
	})
	t.Run("an unprotected pod takes the stock path", func(t *testing.T) {
		f := newFixture(t)
		pod := plainPod("p")
		f.kernel.pods[pod.UID] = true
		f.ObserveSource(apiSource, []*v1.Pod{pod})
		require.NoError(t, f.CheckStart(pod, false))
		assert.Zero(t, f.kernel.queries)
	})
}

// A runtime that was exchanged costs no pod and no file.
func TestForgetfulRuntime(t *testing.T) {
	dir := t.TempDir()
	state := func(c *Configuration) { c.StateDir = dir }
	before := newFixture(t, state)
	pod := protectedPod("p")
	before.running(pod)
	before.saved()

	f := newFixture(t, state)
	f.kernel.pods[pod.UID] = true
	assert.Equal(t, []types.UID{pod.UID}, uids(f.ObserveSource(apiSource, nil)), "restored by the kernel's word")
	assert.Equal(t, []Cause{PodVanished}, f.held(pod))
	assert.True(t, f.RefuseCgroupRemoval([]string{"kubepods", "podp-uid"}))
	assert.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
	f.pass(10 * time.Minute)
	f.saved()
	assert.Len(t, newFixture(t, state).loaded, 1, "its file stays")
	delete(f.kernel.pods, pod.UID)
	f.clock.Step(confirmInterval)
	f.AllowCompletion(pod.UID)
	f.pass(2 * goneLinger)
	f.saved()
	assert.Empty(t, newFixture(t, state).loaded, "and goes with the pod")
}

func uids(pods []*v1.Pod) (found []types.UID) {
	for _, pod := range pods {
		found = append(found, pod.UID)
	}
	return found
}
