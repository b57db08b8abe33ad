package guard

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestHoldIsCountedAndReportedOnce(t *testing.T) {
	for _, cause := range causes {
		t.Run(string(cause), func(t *testing.T) {
			f := newFixture(t)
			pod := protectedPod("p")
			f.running(pod)
			for range 20 {
				require.True(t, f.attempt(pod, cause))
				f.pass(time.Minute)
			}
			counted := f.series()
			assert.Equal(t, 1140.0+60, counted["oldest_hold_seconds{}"])
			delete(counted, "oldest_hold_seconds{}")
			assert.Equal(t, map[string]float64{
				"refused_kills_total{cause=" + string(cause) + "}": 1,
				"held_pods{cause=" + string(cause) + "}":           1,
				"protected_pods{}":                                 1,
			}, counted)
			assert.Equal(t, []string{"Warning KillRefused Pod/p"}, f.events.take())

			f.observe(deleted(pod))
			assert.Equal(t, []string{"Normal HoldReleased Pod/p"}, f.events.take())
			f.observe(deleted(pod))
			assert.Empty(t, f.events.take())
			assert.NotContains(t, f.series(), "oldest_hold_seconds{}")
		})
	}
}

func TestHoldEnds(t *testing.T) {
	for _, cause := range causes {
		t.Run(string(cause), func(t *testing.T) {
			for name, test := range map[string]struct {
				happens func(*fixture, *v1.Pod)
				held    bool
			}{
				"not while the attempts may come again": {happens: func(f *fixture, _ *v1.Pod) { f.pass(holdLinger) }, held: true},
				"with the attempts, unless the reason lasts": {
					happens: func(f *fixture, _ *v1.Pod) { f.pass(holdLinger + tidyInterval) },
					held:    cause.lasting(),
				},
				"with evidence":       {happens: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }},
				"with the label":      {happens: func(f *fixture, _ *v1.Pod) { f.ObserveSource(apiSource, []*v1.Pod{plainPod("p")}) }},
				"with the pod":        {happens: func(f *fixture, p *v1.Pod) { f.AllowCompletion(p.UID) }},
				"not with the object": {happens: func(f *fixture, _ *v1.Pod) { f.ObserveSource(apiSource, nil) }, held: true},
				"with the object's return, or its phase": {
					happens: func(f *fixture, p *v1.Pod) { f.ObserveSource(apiSource, []*v1.Pod{p}) },
					held:    cause != PodVanished && cause != OrphanedRuntimePod && cause != TerminalPhaseReported && cause != ObjectRolledBack,
				},
				"not when another source sends anything": {happens: func(f *fixture, p *v1.Pod) { f.ObserveSource("file", nil) }, held: true},
			} {
				t.Run(name, func(t *testing.T) {
					f := newFixture(t)
					pod := protectedPod("p")
					f.running(pod)
					require.True(t, f.attempt(pod, cause))
					f.events.take()
					test.happens(f, pod)
					want := []Cause{cause}
					if !test.held {
						want = nil
						assert.Len(t, f.events.take(), 1)
					}
					assert.Equal(t, want, append([]Cause(nil), f.held(pod)...))
				})
			}
		})
	}
}

func TestNewHoldCountsAgain(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	require.True(t, f.Refuse(pod, Evicted, ""))
	f.pass(holdLinger + time.Minute)
	require.True(t, f.Refuse(pod, Evicted, ""))
	assert.Equal(t, 2.0, f.series()["refused_kills_total{cause=Evicted}"])
	assert.Equal(t, []string{"Warning KillRefused Pod/p", "Normal HoldReleased Pod/p", "Warning KillRefused Pod/p"}, f.events.take())
}

func TestEventsGoToTheNodeWhenTheObjectIsGone(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	f.ObserveSource(apiSource, nil)
	require.True(t, f.HoldVanished(apiSource, pod))
	assert.Equal(t, []string{
		"Warning KillRefused Pod/p: The kubelet did not stop this pod (PodVanished): its object is gone from the API without a deletion that this kubelet could see. It keeps running until its deletion is requested.",
		"Warning KillRefused Node/node-1: Pod default/p (UID p-uid): The kubelet did not stop this pod (PodVanished): its object is gone from the API without a deletion that this kubelet could see. It keeps running until its deletion is requested.",
	}, f.events.all())
	f.events.take()
	f.clock.Step(90 * time.Second)
	f.ObserveSource(apiSource, []*v1.Pod{pod})
	assert.Equal(t, []string{
		"Normal HoldReleased Pod/p: No longer held (PodVanished) after 1m30s: its object is in the API again.",
	}, f.events.all())
}

func TestPodCondition(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	pod.Generation = 7
	f.running(pod)
	complete := func() []v1.PodCondition {
		status := &v1.PodStatus{Conditions: []v1.PodCondition{{Type: v1.PodReady}}}
		f.CompletePodStatus(pod, &v1.PodStatus{}, status)
		require.Equal(t, v1.PodReady, status.Conditions[0].Type)
		return status.Conditions[1:]
	}
	assert.Empty(t, complete(), "not held")

	require.True(t, f.Refuse(pod, Evicted, "memory: 1 GiB"))
	want := []v1.PodCondition{{
		Type: PodKillRefused, Status: v1.ConditionTrue, Reason: "Evicted", ObservedGeneration: 7,
		Message: "Evicted since 2026-01-02T03:04:05Z (memory: 1 GiB)", LastTransitionTime: metav1.NewTime(epoch),
	}}
	assert.Equal(t, want, complete())

	f.clock.Step(time.Minute)
	require.True(t, f.Refuse(pod, Evicted, "memory: 2 GiB"))
	assert.Equal(t, want, complete(), "newer figures are no request to the API server")
	assert.Equal(t, "memory: 2 GiB", f.Pods().Items[0].Holds[0].Message, "they are in the list of pods")

	require.True(t, f.Refuse(pod, AdmissionRejected, "NodeAffinity"))
	require.True(t, f.Refuse(pod, AdmissionRejected, "OutOfcpu: 2"))
	want[0].Reason = "AdmissionRejected"
	want[0].Message = "AdmissionRejected since 2026-01-02T03:05:05Z (NodeAffinity; OutOfcpu: 2); Evicted since 2026-01-02T03:04:05Z (memory: 1 GiB)"
	assert.Equal(t, want, complete(), "two causes")

	f.pass(holdLinger + tidyInterval)
	want[0].Message = "AdmissionRejected since 2026-01-02T03:05:05Z (NodeAffinity; OutOfcpu: 2)"
	assert.Equal(t, want, complete(), "held ever since, though the first cause is over")

	f.observe(deleted(pod))
	assert.Empty(t, complete(), "released")

	again := protectedPod("again")
	f.running(again)
	for range 2 {
		require.True(t, f.Refuse(again, Evicted, "memory"))
		status := &v1.PodStatus{}
		f.CompletePodStatus(again, &v1.PodStatus{}, status)
		assert.Equal(t, metav1.NewTime(f.clock.Now()), status.Conditions[0].LastTransitionTime)
		f.pass(holdLinger + time.Minute)
	}

	status := &v1.PodStatus{}
	f.CompletePodStatus(plainPod("p"), &v1.PodStatus{}, status)
	assert.Equal(t, &v1.PodStatus{}, status, "unprotected")
}

func TestPodKeepsItsAddressesWhenItsSandboxIsLost(t *testing.T) {
	old := &v1.PodStatus{PodIP: "10.0.0.7", PodIPs: []v1.PodIP{{IP: "10.0.0.7"}, {IP: "fd00::7"}}}
	for name, test := range map[string]struct {
		cause Cause
		now   v1.PodStatus
		want  []v1.PodIP
	}{
		"lost sandbox":                  {cause: SandboxChanged, want: old.PodIPs},
		"lost sandbox, another address": {cause: SandboxChanged, now: v1.PodStatus{PodIP: "10.0.0.9", PodIPs: []v1.PodIP{{IP: "10.0.0.9"}}}, want: []v1.PodIP{{IP: "10.0.0.9"}}},
		"another hold":                  {cause: Evicted},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := protectedPod("p")
			f.running(pod)
			require.True(t, f.attempt(pod, test.cause))
			f.CompletePodStatus(pod, old, &test.now)
			assert.Equal(t, test.want, test.now.PodIPs)
		})
	}
}

func TestNodeCondition(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod, protectedPod("q"))
	node := &v1.Node{Status: v1.NodeStatus{Conditions: []v1.NodeCondition{{Type: v1.NodeReady}}}}
	at := func(d time.Duration) metav1.Time { return metav1.NewTime(epoch.Add(d)) }
	expect := func(status v1.ConditionStatus, reason, message string, heartbeat, transition time.Duration) {
		t.Helper()
		f.SetNodeCondition(node)
		assert.Equal(t, []v1.NodeCondition{{Type: v1.NodeReady}, {
			Type: NodeHoldingPods, Status: status, Reason: reason, Message: message,
			LastHeartbeatTime: at(heartbeat), LastTransitionTime: at(transition),
		}}, node.Status.Conditions)
	}
	expect(v1.ConditionFalse, "NoPodsHeld", "kubelet guard holds no pods", 0, 0)
	f.clock.Step(time.Minute)
	expect(v1.ConditionFalse, "NoPodsHeld", "kubelet guard holds no pods", time.Minute, 0)
	require.True(t, f.Refuse(pod, Evicted, ""))
	require.True(t, f.Refuse(pod, AdmissionRejected, ""))
	const held = "kubelet guard holds pods that the kubelet would have stopped: 1, see GET /guard/pods on the kubelet"
	expect(v1.ConditionTrue, "PodsHeld", held, time.Minute, time.Minute)
	f.clock.Step(time.Minute)
	expect(v1.ConditionTrue, "PodsHeld", held, 2*time.Minute, time.Minute)
	f.observe(deleted(pod))
	expect(v1.ConditionFalse, "NoPodsHeld", "kubelet guard holds no pods", 2*time.Minute, 2*time.Minute)

	newFixture(t, inMode(Off)).SetNodeCondition(node)
	assert.Equal(t, []v1.NodeCondition{{Type: v1.NodeReady}}, node.Status.Conditions, "nobody would bring it up to date in mode Off")
}

func TestServeHTTP(t *testing.T) {
	f := newFixture(t)
	held, kept, going, done := protectedPod("held"), protectedPod("kept"), protectedPod("going"), protectedPod("done")
	other := protectedPod("held")
	other.Namespace, other.UID = "another", "other-uid"
	orphan := protectedPod("orphan")
	f.running(kept, held, going, done, other, plainPod("plain"))
	f.runtime.run(orphan, runtimeapi.ContainerState_CONTAINER_RUNNING)
	require.True(t, f.Refuse(held, Evicted, "The node was low on resource: memory."))
	f.clock.Step(time.Minute)
	require.True(t, f.Refuse(held, Evicted, "The node was low on resource: memory."))
	require.True(t, f.Refuse(held, AdmissionRejected, "NodeAffinity: node(s) didn't match"))
	require.True(t, f.RefuseUID(orphan.UID, OrphanedRuntimePod, "the kubelet has no object of this running pod"))
	f.observe(deleted(going))
	f.AllowCompletion(done.UID)
	f.ObserveSource(apiSource, []*v1.Pod{kept, held, done, other, plainPod("plain")})

	response := httptest.NewRecorder()
	f.ServeHTTP(response, httptest.NewRequest(http.MethodGet, PodsPath, nil))
	assert.Equal(t, http.StatusOK, response.Code)
	assert.Equal(t, http.Header{"Content-Type": {"application/json"}}, response.Header())
	var list PodList
	require.NoError(t, json.Unmarshal(response.Body.Bytes(), &list))
	assert.Equal(t, Version(), list.Version)
	list.Version = "v1.36.3+guard.0.1.0"
	got, err := json.MarshalIndent(list, "", "  ")
	require.NoError(t, err)
	const golden = "testdata/pods.json"
	if *rewrite {
		require.NoError(t, os.WriteFile(golden, append(got, '\n'), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got)+"\n")

	t.Run("responds to GET only", func(t *testing.T) {
		for _, method := range []string{http.MethodPost, http.MethodDelete, http.MethodPut, http.MethodPatch} {
			response := httptest.NewRecorder()
			f.ServeHTTP(response, httptest.NewRequest(method, PodsPath, nil))
			assert.Equal(t, http.StatusMethodNotAllowed, response.Code)
			assert.Equal(t, http.MethodGet, response.Header().Get("Allow"))
		}
	})
	t.Run("shows what Audit let through", func(t *testing.T) {
		f := newFixture(t, inMode(Audit))
		f.running(held)
		f.RefuseUID(held.UID, VolumeUnmount, "detail")
		assert.Equal(t, PodList{Version: Version(), Mode: Audit, Items: []PodState{{
			Namespace: "default", Name: "held", UID: held.UID, State: Protected, ObjectPresent: true, Holds: []HoldState{},
			Audited: []HoldState{{Cause: VolumeUnmount, Since: epoch, LastAttempt: epoch, Message: "detail"}},
		}}}, f.Pods())
	})
	t.Run("is an empty list, not null, on a node without protected pods", func(t *testing.T) {
		response := httptest.NewRecorder()
		newFixture(t).ServeHTTP(response, httptest.NewRequest(http.MethodGet, PodsPath, nil))
		assert.JSONEq(t, `{"version": "`+Version()+`", "mode": "Enforce", "items": []}`, response.Body.String())
	})
}

func TestSavedObjectsAreServedOnRequest(t *testing.T) {
	f, restart := node(t)
	pod, orphan := protectedPod("p"), protectedPod("orphan")
	pod.Spec.Containers[0].Env = []v1.EnvVar{{Name: "PASSWORD", Value: "secret"}}
	claim, volume := boundClaim("claim")
	claim.CreationTimestamp = metav1.NewTime(epoch)
	f.running(pod)
	f.runtime.run(orphan, runtimeapi.ContainerState_CONTAINER_RUNNING)
	require.True(t, f.RefuseUID(orphan.UID, OrphanedRuntimePod, "the kubelet has no object of this running pod"))
	f.SaveVolume(pod, claim, volume)
	f.saved()
	get := func(query string) (int, string) {
		t.Helper()
		response := httptest.NewRecorder()
		f.ServeHTTP(response, httptest.NewRequest(http.MethodGet, PodsPath+query, nil))
		return response.Code, response.Body.String()
	}
	_, plain := get("")
	require.NotContains(t, plain, "secret")

	for query, want := range map[string]struct {
		code    int
		body    string
		objects bool
	}{
		"?objects=true":               {code: http.StatusOK, objects: true},
		"?objects=false":              {code: http.StatusOK, body: plain},
		"?":                           {code: http.StatusOK, body: plain},
		"?other=true":                 {code: http.StatusOK, body: plain},
		"?Objects=true":               {code: http.StatusOK, body: plain},
		"?objects":                    {code: http.StatusBadRequest, body: "query parameter objects: \"\" is neither true nor false\n"},
		"?objects=":                   {code: http.StatusBadRequest, body: "query parameter objects: \"\" is neither true nor false\n"},
		"?objects=1":                  {code: http.StatusBadRequest, body: "query parameter objects: \"1\" is neither true nor false\n"},
		"?objects=TRUE":               {code: http.StatusBadRequest, body: "query parameter objects: \"TRUE\" is neither true nor false\n"},
		"?objects=true&objects=false": {code: http.StatusBadRequest, body: "query parameter objects: given 2 times, expected once\n"},
		"?objects=%zz":                {code: http.StatusBadRequest, body: "query: invalid URL escape \"%zz\"\n"},
	} {
		t.Run(query, func(t *testing.T) {
			code, body := get(query)
			assert.Equal(t, want.code, code)
			if !want.objects {
				assert.Equal(t, want.body, body)
				return
			}
			var list PodList
			require.NoError(t, json.Unmarshal([]byte(body), &list))
			require.Len(t, list.Items, 2)
			assert.Nil(t, list.Items[0].Saved, "of an orphan that is known from the runtime alone nothing is saved")
			saved := list.Items[1].Saved
			require.NotNil(t, saved)
			assert.Equal(t, pod.Spec, saved.Pod.Spec)
			assert.Equal(t, pod.UID, saved.Pod.UID)
			require.Len(t, saved.Volumes, 1)
			assert.Equal(t, claim.UID, saved.Volumes[0].Claim.UID)
			assert.True(t, claim.CreationTimestamp.Equal(&saved.Volumes[0].Claim.CreationTimestamp))
			assert.Equal(t, volume.Spec, saved.Volumes[0].Volume.Spec)
		})
	}

	// A kubelet that has no pods from the API yet serves what an earlier one saved.
	f = restart()
	_, body := get("?objects=true")
	assert.Contains(t, body, `"PASSWORD"`)
	assert.Contains(t, body, `"claim-uid"`)
}

func TestEvidenceIsShownAsItWasFirstSeen(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.running(pod)
	f.observe(deleted(pod))
	f.clock.Step(time.Minute)
	f.observe(deleted(pod))
	f.Pods().Items[0].Evidence.Kind = "changed"
	assert.Equal(t, &Evidence{Kind: DeletionTimestampSeen, Time: epoch}, f.Pods().Items[0].Evidence)
}

func TestCorrectPhase(t *testing.T) {
	terminated := func(reason string) v1.ContainerState {
		return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: reason, ExitCode: 137}}
	}
	lost, failed := terminated(statusUnknown), terminated("Error")
	waiting, running := v1.ContainerState{Waiting: &v1.ContainerStateWaiting{}}, v1.ContainerState{Running: &v1.ContainerStateRunning{}}
	for name, test := range map[string]struct {
		pod        *v1.Pod
		phase      v1.PodPhase
		containers []v1.ContainerStatus
		init       []v1.ContainerStatus
		before     func(*fixture, *v1.Pod)
		want       v1.PodPhase
	}{
		"a lost container that may run":        {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "other", State: failed}, {Name: "app", State: lost}}, want: v1.PodRunning},
		"a lost container that waits":          {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "app", State: waiting, LastTerminationState: lost}}, want: v1.PodRunning},
		"a container that runs again":          {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "app", State: running, LastTerminationState: lost}}, want: v1.PodFailed},
		"containers that have exited":          {phase: v1.PodFailed, containers: []v1.ContainerStatus{{State: failed}}, want: v1.PodFailed},
		"success":                              {phase: v1.PodSucceeded, containers: []v1.ContainerStatus{{State: terminated("Completed")}}, want: v1.PodSucceeded},
		"a lost container of a pod in Running": {phase: v1.PodRunning, containers: []v1.ContainerStatus{{Name: "app", State: lost}}, want: v1.PodRunning},
		"a lost container that does not run": {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "app", State: lost}},
			before: func(f *fixture, p *v1.Pod) { f.runtime.remove(p) }, want: v1.PodFailed},
		"a lost container of an unprotected pod": {pod: plainPod("p"), phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "app", State: lost}}, want: v1.PodFailed},
		"a lost container of a pod that is deleted": {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "app", State: lost}},
			before: func(f *fixture, p *v1.Pod) { f.observe(deleted(p)) }, want: v1.PodFailed},
		"a lost container whose process is dead": {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "app", State: lost}},
			before: func(f *fixture, p *v1.Pod) { f.kernel.dead["p-uid-c"] = true }, want: v1.PodFailed},
		"a lost container next to another that runs": {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "main", State: waiting, LastTerminationState: lost}}, want: v1.PodFailed},
		"a lost init container":                      {phase: v1.PodFailed, init: []v1.ContainerStatus{{Name: "app", State: lost}}, containers: []v1.ContainerStatus{{Name: "main", State: waiting}}, want: v1.PodPending},
		"a lost sidecar":                             {phase: v1.PodFailed, init: []v1.ContainerStatus{{Name: "app", State: lost}}, containers: []v1.ContainerStatus{{Name: "main", State: running}}, want: v1.PodRunning},
		"a pod that the runtime has forgotten": {phase: v1.PodFailed, containers: []v1.ContainerStatus{{Name: "app", State: lost}},
			before: func(f *fixture, p *v1.Pod) { f.runtime.remove(p); f.kernel.pods[p.UID] = true }, want: v1.PodRunning},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := test.pod
			if pod == nil {
				pod = protectedPod("p")
			}
			f.running(pod)
			f.runtime.setContainer(pod, runtimeapi.ContainerState_CONTAINER_UNKNOWN)
			if test.before != nil {
				test.before(f, pod)
			}
			status := &v1.PodStatus{Phase: test.phase, ContainerStatuses: test.containers, InitContainerStatuses: test.init}
			f.CorrectPhase(pod, status)
			assert.Equal(t, test.want, status.Phase)
			var held []Cause
			if test.want != test.phase {
				held = []Cause{ContainerStateUnknown}
			}
			assert.Equal(t, held, append([]Cause(nil), f.held(pod)...))
		})
	}
}
