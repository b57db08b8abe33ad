package pods

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/dataprotection/objects"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const replicaSetUID = "replicaset-uid"

// heldPod is one of the ReplicaSet web-79fffdbf8f on node-1 whose object is gone.
func heldPod(name string, options ...func(*guard.PodState)) guard.PodState {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID(name + "-uid"), ResourceVersion: "90000", Generation: 1,
			Labels:      map[string]string{"app": "web", "pod-template-hash": "79fffdbf8f", guardv1alpha1.ExplicitDeletionLabel: guardv1alpha1.ExplicitDeletionRequired},
			Annotations: map[string]string{"kubernetes.io/config.source": "api", "kubernetes.io/config.seen": "now", "own": "kept"},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: kindReplicaSet, Name: "web-79fffdbf8f", UID: replicaSetUID, Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true),
			}},
		},
		Spec:   corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "server", Image: "web:1"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Reason: "r", Message: "m", PodIP: "10.0.0.7", QOSClass: corev1.PodQOSBestEffort},
	}
	state := guard.PodState{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, State: guard.Held, NodeName: "node-1",
		Holds: []guard.HoldState{{Cause: guard.PodVanished}}, Saved: &guard.SavedObjects{Pod: pod},
	}
	for _, option := range options {
		option(&state)
	}
	return state
}

// emptied is a cluster that has lost all but what is needed for pods of the namespace shop.
func emptied() *cluster {
	return &cluster{
		nodes:      map[string]*corev1.Node{"node-1": {ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}},
		namespaces: map[string]bool{"shop": true}, records: map[types.UID]bool{},
		claims: map[types.NamespacedName]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{},
		ownerPresent: func(context.Context, string, metav1.OwnerReference) (bool, error) { return false, nil },
	}
}

func decide(t *testing.T, c *cluster, states ...guard.PodState) []*decision {
	t.Helper()
	decisions, err := c.decide(t.Context(), []Response{{Node: "node-1", gone: states}})
	require.NoError(t, err)
	return decisions
}

// M5: with an owner that is gone, the garbage collector deletes the pod within seconds, and its
// guarded node obeys. Measured: 33 of 33 pods in four seconds.
func TestAPodIsNeverWrittenWithAnOwnerThatIsGone(t *testing.T) {
	t.Parallel()
	present := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "there", UID: "there-uid"}
	gone := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Widget", Name: "w", UID: "w-uid"}
	c := emptied()
	c.ownerPresent = func(_ context.Context, _ string, o metav1.OwnerReference) (bool, error) {
		return o.UID == present.UID, nil
	}

	d := decide(t, c, heldPod("web-1"), heldPod("web-2", func(s *guard.PodState) {
		s.Saved.Pod.OwnerReferences = append(s.Saved.Pod.OwnerReferences, present, gone)
	}))

	require.Empty(t, d[0].leaveOut)
	require.Empty(t, d[0].pod.OwnerReferences)
	require.Equal(t, "ReplicaSet/web-79fffdbf8f", d[0].pod.Annotations[guardv1alpha1.LostOwnerAnnotation])
	require.Equal(t, []metav1.OwnerReference{present}, d[1].pod.OwnerReferences)
	require.Equal(t, "ReplicaSet/web-79fffdbf8f,Widget/w", d[1].pod.Annotations[guardv1alpha1.LostOwnerAnnotation])
	require.Equal(t, []Workload{{Kind: kindDeployment, Namespace: "shop", Name: "web", Pods: 2}}, workloads(d))

	// What is written, read as the API server reads it.
	decoder, err := objects.NewDecoder(t.Context(), "/registry/", "")
	require.NoError(t, err)
	given, err := c.given(t.Context(), d, decoder, "/registry/")
	require.NoError(t, err)
	require.Len(t, given, 2)
	written, err := decoder.Decode(t.Context(), given[0].Object.Key, given[0].Value)
	require.NoError(t, err)
	require.NoError(t, written.KeyError())
	require.Empty(t, written.Owners)
	require.Equal(t, "/registry/pods/shop/web-1", given[0].Object.Key)
}

func TestAnOwnerThatIsThereIsKept(t *testing.T) {
	t.Parallel()
	c := emptied()
	c.ownerPresent = func(context.Context, string, metav1.OwnerReference) (bool, error) { return true, nil }
	d := decide(t, c, heldPod("web-1"))
	require.Len(t, d[0].pod.OwnerReferences, 1)
	require.NotContains(t, d[0].pod.Annotations, guardv1alpha1.LostOwnerAnnotation)
	require.Empty(t, workloads(d))
}

func TestAPodIsWrittenWithoutItsPhaseAndBoundToItsNode(t *testing.T) {
	t.Parallel()
	state := heldPod("web-1")
	pod := decide(t, emptied(), state)[0].pod
	require.Equal(t, corev1.PodStatus{PodIP: "10.0.0.7", QOSClass: corev1.PodQOSBestEffort}, pod.Status)
	require.Equal(t, "node-1", pod.Spec.NodeName)
	require.Equal(t, state.UID, pod.UID)
	require.Empty(t, pod.ResourceVersion)
	require.Equal(t, map[string]string{"own": "kept", guardv1alpha1.LostOwnerAnnotation: "ReplicaSet/web-79fffdbf8f"}, pod.Annotations)
	require.Equal(t, corev1.PodRunning, state.Saved.Pod.Status.Phase, "what the node sent is not changed")
}

func TestWhatIsLeftOut(t *testing.T) {
	t.Parallel()
	noSchedule := corev1.Taint{Key: "node.kubernetes.io/not-ready", Effect: corev1.TaintEffectNoSchedule}
	noExecute := corev1.Taint{Key: "node.kubernetes.io/not-ready", Effect: corev1.TaintEffectNoExecute}
	tolerate := func(seconds *int64) func(*guard.PodState) {
		return func(s *guard.PodState) {
			s.Saved.Pod.Spec.Tolerations = []corev1.Toleration{{Key: noExecute.Key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}}
		}
	}
	for name, test := range map[string]struct {
		pod     func(*guard.PodState)
		cluster func(*cluster)
		want    string
	}{
		"a held pod comes back": {},
		"evidence":              {pod: func(s *guard.PodState) { s.Evidence = &guard.Evidence{Kind: guard.DeletionTimestampSeen} }, want: "its deletion was requested"},
		"a pod that ends":       {pod: func(s *guard.PodState) { s.State = guard.Terminating }, want: "it ends"},
		"a record":              {cluster: func(c *cluster) { c.records["web-1-uid"] = true }, want: "PodDeletion record"},
		"a saved object that terminates": {
			pod:  func(s *guard.PodState) { s.Saved.Pod.DeletionTimestamp = &metav1.Time{} },
			want: "terminating",
		},
		"held for another cause":       {pod: func(s *guard.PodState) { s.Holds[0].Cause = guard.AdmissionRejected }, want: "has not compared"},
		"not held yet":                 {pod: func(s *guard.PodState) { s.State, s.Holds = guard.Protected, nil }, want: "has not compared"},
		"nothing saved":                {pod: func(s *guard.PodState) { s.Saved = nil }, want: "no saved object"},
		"a saved object of another":    {pod: func(s *guard.PodState) { s.Saved.Pod.Name = "other" }, want: "of another pod"},
		"another node's pod":           {pod: func(s *guard.PodState) { s.Saved.Pod.Spec.NodeName = "node-2" }, want: `bound to the node "node-2"`},
		"no namespace":                 {cluster: func(c *cluster) { c.namespaces = map[string]bool{} }, want: "create shop first"},
		"a terminating namespace":      {cluster: func(c *cluster) { c.namespaces["shop"] = false }, want: "terminating"},
		"no Node":                      {cluster: func(c *cluster) { c.nodes = nil }, want: "restart the kubelet of node-1"},
		"a taint without effect on it": {cluster: func(c *cluster) { c.nodes["node-1"].Spec.Taints = []corev1.Taint{noSchedule} }},
		"a taint that evicts":          {cluster: func(c *cluster) { c.nodes["node-1"].Spec.Taints = []corev1.Taint{noExecute} }, want: "evicts it (node.kubernetes.io/not-ready:NoExecute)"},
		"a taint that evicts later": {
			pod: tolerate(ptr.To[int64](300)), cluster: func(c *cluster) { c.nodes["node-1"].Spec.Taints = []corev1.Taint{noExecute} }, want: "evicts it",
		},
		"a tolerated taint": {pod: tolerate(nil), cluster: func(c *cluster) { c.nodes["node-1"].Spec.Taints = []corev1.Taint{noExecute} }},
		"its name is taken": {
			cluster: func(c *cluster) {
				c.pods = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1", UID: "other-uid"}}}
			},
			want: "another pod has its name, with UID other-uid",
		},
		"its name is taken elsewhere": {cluster: func(c *cluster) {
			c.pods = []corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "web-1", UID: "other-uid"}}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, state := emptied(), heldPod("web-1")
			if test.cluster != nil {
				test.cluster(c)
			}
			if test.pod != nil {
				test.pod(&state)
			}
			d := decide(t, c, state)[0]
			if test.want == "" {
				require.Empty(t, d.leaveOut)
				return
			}
			require.Contains(t, d.leaveOut, test.want)
			require.Empty(t, workloads([]*decision{d}))
		})
	}
}

func TestPodsThatShareANameOrAUIDAreLeftOut(t *testing.T) {
	t.Parallel()
	same := heldPod("web-2")
	same.UID, same.Saved.Pod.UID = "web-1-uid", "web-1-uid"
	again := heldPod("web-3")
	again.UID, again.Saved.Pod.UID = "another-uid", "another-uid"
	for _, d := range decide(t, emptied(), heldPod("web-1"), same, heldPod("web-3"), again) {
		require.Contains(t, d.leaveOut, "have its name or its UID", d.state.UID)
	}
}

// A controller deletes the pods that it has too many of, past every budget but the webhook's.
func TestPodsThatAControllerWouldDeleteAreLeftOut(t *testing.T) {
	t.Parallel()
	selector := labels.SelectorFromSet(labels.Set{"app": "web"})
	other := func(name, node string, owner types.UID) corev1.Pod {
		pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{NodeName: node}}
		if owner != "" {
			pod.OwnerReferences = []metav1.OwnerReference{{UID: owner, Controller: ptr.To(true)}}
		}
		return pod
	}
	for name, test := range map[string]struct {
		controller controller
		pods       []corev1.Pod
		// held are the pods web-1 and web-2 by default; left is how many are left out.
		held []guard.PodState
		left int
		want string
	}{
		"room for both":                  {controller: controller{kind: kindReplicaSet, replicas: 2}},
		"room for one":                   {controller: controller{kind: kindReplicaSet, replicas: 1}, left: 2, want: "scale its workload to 2 first"},
		"a replacement runs":             {controller: controller{kind: kindReplicaSet, replicas: 2}, pods: []corev1.Pod{other("new", "node-1", "set")}, left: 2, want: "scale its workload to 3 first"},
		"an orphan runs":                 {controller: controller{kind: kindReplicationController, replicas: 2}, pods: []corev1.Pod{other("orphan", "node-1", "")}, left: 2, want: "scale its workload to 3 first"},
		"a pod of another controller":    {controller: controller{kind: kindReplicaSet, replicas: 2}, pods: []corev1.Pod{other("new", "node-1", "other")}},
		"a roll-out has replaced it":     {controller: controller{kind: kindReplicaSet, replicas: 0}, left: 2, want: "has 0 of 0 replicas"},
		"ordinals below replicas":        {controller: controller{kind: kindStatefulSet, replicas: 3}},
		"one ordinal is too high":        {controller: controller{kind: kindStatefulSet, replicas: 2}, left: 1, want: "scale it up first"},
		"one ordinal is too low":         {controller: controller{kind: kindStatefulSet, start: 2, replicas: 2}, left: 1, want: "scale it up first"},
		"two of a daemon":                {controller: controller{kind: kindDaemonSet}, left: 2, want: "more than one pod on the node"},
		"a daemon with a replacement":    {controller: controller{kind: kindDaemonSet}, held: []guard.PodState{heldPod("web-1")}, pods: []corev1.Pod{other("new", "node-1", "set")}, left: 1, want: "more than one pod on the node"},
		"a daemon's pod on another node": {controller: controller{kind: kindDaemonSet}, held: []guard.PodState{heldPod("web-1")}, pods: []corev1.Pod{other("new", "node-2", "set")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := emptied()
			test.controller.namespace, test.controller.name, test.controller.uid, test.controller.selector = "shop", "web", "set", selector
			c.controllers, c.pods = []*controller{&test.controller}, test.pods
			if test.held == nil {
				test.held = []guard.PodState{heldPod("web-1"), heldPod("web-2")}
			}
			left := 0
			for _, d := range decide(t, c, test.held...) {
				if d.leaveOut != "" {
					left++
					require.Contains(t, d.leaveOut, test.want)
				}
			}
			require.Equal(t, test.left, left)
		})
	}
}

func TestClaimsComeBackWithTheirBinding(t *testing.T) {
	t.Parallel()
	key := types.NamespacedName{Namespace: "shop", Name: "data"}
	bound := func() guard.ClaimedVolume {
		return guard.ClaimedVolume{
			Claim: &corev1.PersistentVolumeClaim{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", UID: "claim-uid", Finalizers: []string{"kubernetes.io/pvc-protection"}},
				Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-1"}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
			},
			Volume: &corev1.PersistentVolume{
				ObjectMeta: metav1.ObjectMeta{Name: "pv-1", UID: "volume-uid"},
				Spec: corev1.PersistentVolumeSpec{
					ClaimRef:                      &corev1.ObjectReference{Namespace: "shop", Name: "data", UID: "claim-uid", ResourceVersion: "80000"},
					PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
					PersistentVolumeSource:        corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: "h"}},
				},
			},
		}
	}
	there := func(change func(*corev1.PersistentVolume)) func(*cluster, *guard.PodState) {
		return func(c *cluster, _ *guard.PodState) {
			volume := bound().Volume
			volume.Status.Phase = corev1.VolumeBound
			change(volume)
			c.volumes[volume.Name] = volume
		}
	}
	for name, test := range map[string]struct {
		change func(*cluster, *guard.PodState)
		// written are the kinds that come back besides the pod.
		written []string
		want    string
	}{
		"both are gone": {written: []string{"PersistentVolumeClaim", "PersistentVolume"}},
		"both are there": {change: func(c *cluster, _ *guard.PodState) {
			c.claims[key], c.volumes["pv-1"] = bound().Claim, bound().Volume
		}},
		"the volume is gone": {change: func(c *cluster, _ *guard.PodState) { c.claims[key] = bound().Claim }, written: []string{"PersistentVolume"}},
		"the snapshot has the claim from before its binding": {
			change: func(c *cluster, _ *guard.PodState) {
				c.claims[key] = bound().Claim
				c.claims[key].Spec.VolumeName = ""
			},
			written: []string{"PersistentVolume"},
		},
		"the claim was bound to another volume meanwhile": {
			change: func(c *cluster, _ *guard.PodState) {
				c.claims[key] = bound().Claim
				c.claims[key].Spec.VolumeName = "pv-2"
			},
			want: "is bound to the volume pv-2, and the pod runs on pv-1",
		},
		"the claim is gone": {change: there(func(*corev1.PersistentVolume) {}), written: []string{"PersistentVolumeClaim"}},
		"the claim is gone and nothing is saved": {
			change: func(_ *cluster, s *guard.PodState) { s.Saved.Volumes = nil }, want: "its node has not saved it",
		},
		"the claim is there and nothing is saved": {change: func(c *cluster, s *guard.PodState) { c.claims[key], s.Saved.Volumes = bound().Claim, nil }},
		"the claim was created again": {
			change: func(c *cluster, _ *guard.PodState) {
				c.claims[key] = bound().Claim
				c.claims[key].UID = "new"
			},
			want: "the pod runs on the volume pv-1 of the earlier one",
		},
		"the volume was released":      {change: there(func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased }), want: "released"},
		"the volume is deleted":        {change: there(func(v *corev1.PersistentVolume) { v.DeletionTimestamp = &metav1.Time{} }), want: "being deleted"},
		"the volume was created again": {change: there(func(v *corev1.PersistentVolume) { v.UID = "new" }), want: "created again"},
		"the volume has another claim": {change: there(func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "new" }), want: "not bound to it any more"},
		"the storage has another name": {change: there(func(v *corev1.PersistentVolume) { v.Name = "imported" }), want: "the volume imported has the storage of pv-1"},
		"not bound when it was saved":  {change: func(_ *cluster, s *guard.PodState) { s.Saved.Volumes[0].Volume.Spec.ClaimRef = nil }, want: "not bound"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := emptied()
			states := []guard.PodState{heldPod("db-0"), heldPod("db-1")}
			for i := range states {
				states[i].Saved.Pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
				states[i].Saved.Volumes = []guard.ClaimedVolume{bound()}
				if test.change != nil {
					test.change(c, &states[i])
				}
			}
			decisions := decide(t, c, states...)
			for _, d := range decisions {
				if test.want == "" {
					require.Empty(t, d.leaveOut)
				} else {
					require.Contains(t, d.leaveOut, test.want)
				}
			}
			decoder, err := objects.NewDecoder(t.Context(), "/registry/", "")
			require.NoError(t, err)
			given, err := c.given(t.Context(), decisions, decoder, "/registry/")
			require.NoError(t, err)
			var written []string
			for _, g := range given {
				if g.Object.Kind == "Pod" {
					continue
				}
				written = append(written, g.Object.Kind)
				o, err := decoder.Decode(t.Context(), g.Object.Key, g.Value)
				require.NoError(t, err)
				switch o := o.Typed.(type) {
				case *corev1.PersistentVolumeClaim:
					require.Equal(t, types.UID("claim-uid"), o.UID)
					require.Equal(t, corev1.ClaimBound, o.Status.Phase)
				case *corev1.PersistentVolume:
					require.Equal(t, types.UID("claim-uid"), o.Spec.ClaimRef.UID)
					require.Empty(t, o.Spec.ClaimRef.ResourceVersion)
					require.Equal(t, corev1.VolumeBound, o.Status.Phase)
				}
			}
			require.Equal(t, test.written, written, "each once, for both pods")
		})
	}
}
