package poddeletion

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

var (
	noon     = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ordinary = authenticationv1.UserInfo{Username: "ordinary"}
	ownNode  = authenticationv1.UserInfo{Username: "system:node:node-1", Groups: []string{"system:nodes", "system:authenticated"}}
)

const podUID = "3f0d4c1e-8d0e-4f0b-9a57-0c1f6a3b2d10"

// newPod returns a protected pod that runs and is ready, with changes.
func newPod(changes ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-1", UID: podUID,
			Labels: map[string]string{"app": "web", guardv1alpha1.ExplicitDeletionLabel: guardv1alpha1.ExplicitDeletionRequired},
		},
		Spec: corev1.PodSpec{
			NodeName:                      "node-1",
			TerminationGracePeriodSeconds: ptr.To[int64](30),
			Containers:                    []corev1.Container{{Name: "c"}},
		},
		Status: corev1.PodStatus{
			Phase:             corev1.PodRunning,
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "c", ContainerID: "id", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
		},
	}
	for _, change := range changes {
		change(pod)
	}
	return pod
}

func named(name string) func(*corev1.Pod) { return func(pod *corev1.Pod) { pod.Name = name } }

func unready(pod *corev1.Pod) { pod.Status.Conditions[0].Status = corev1.ConditionFalse }

func inPhase(phase corev1.PodPhase) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Status.Phase = phase }
}

func deletedAt(at time.Time) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = ptr.To(metav1.NewTime(at)), ptr.To[int64](30)
	}
}

func ownedBy(apiVersion, kind string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: apiVersion, Kind: kind, Name: "web", Controller: ptr.To(true)}}
	}
}

func asMirror(pod *corev1.Pod) {
	pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"}
}

func containersEnded(pod *corev1.Pod) {
	pod.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}
}

func initContainerRuns(pod *corev1.Pod) {
	containersEnded(pod)
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "i", ContainerID: "id", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
}

func withoutStatuses(pod *corev1.Pod) { pod.Status.ContainerStatuses = nil }

func disrupted(pod *corev1.Pod) {
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
}

// deletion is the review of the pod's deletion.
func deletion(t testing.TB, pod *corev1.Pod, user authenticationv1.UserInfo, options metav1.DeleteOptions) *admission.Request {
	t.Helper()
	review := admissiontest.Review(t, admissionv1.Delete, corev1.SchemeGroupVersion.WithKind("Pod"), "pods", pod, nil)
	given, err := json.Marshal(options)
	require.NoError(t, err)
	review.UserInfo, review.DryRun, review.Options.Raw = user, ptr.To(len(options.DryRun) > 0), given
	return admission.NewRequest(review)
}

// user is a controller of the controller manager.
func user(controller string) authenticationv1.UserInfo {
	return authenticationv1.UserInfo{Username: controllerPrefix + controller}
}

func TestPodsThatPassWithoutACheckOfBudgets(t *testing.T) {
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		user authenticationv1.UserInfo
		want exemption
	}{
		"running, by a user":                    {newPod(), ordinary, ""},
		"not protected":                         {newPod(func(pod *corev1.Pod) { delete(pod.Labels, guardv1alpha1.ExplicitDeletionLabel) }), ordinary, notProtected},
		"another value of the label":            {newPod(func(pod *corev1.Pod) { pod.Labels[guardv1alpha1.ExplicitDeletionLabel] = "wanted" }), ordinary, notProtected},
		"terminating":                           {newPod(deletedAt(noon)), ordinary, terminating},
		"succeeded":                             {newPod(inPhase(corev1.PodSucceeded), containersEnded), ordinary, finished},
		"failed":                                {newPod(inPhase(corev1.PodFailed), containersEnded), ordinary, finished},
		"rejected by its node":                  {newPod(inPhase(corev1.PodFailed), withoutStatuses), ordinary, finished},
		"said to have failed, a container runs": {newPod(inPhase(corev1.PodFailed)), user("pod-garbage-collector"), ""},
		"said to have succeeded, an init container runs": {newPod(inPhase(corev1.PodSucceeded), initContainerRuns), ordinary, ""},
		"phase unknown":                                                  {newPod(inPhase(corev1.PodUnknown)), ordinary, ""},
		"never scheduled":                                                {newPod(inPhase(corev1.PodPending), func(pod *corev1.Pod) { pod.Spec.NodeName = "" }), ordinary, neverScheduled},
		"scheduled, not started":                                         {newPod(inPhase(corev1.PodPending)), ordinary, notStarted},
		"not ready":                                                      {newPod(unready), ordinary, ""},
		"by its node, though nobody deleted it":                          {newPod(), ownNode, ""},
		"by its node, which ends its termination":                        {newPod(deletedAt(noon)), ownNode, terminating},
		"by another node":                                                {newPod(), authenticationv1.UserInfo{Username: "system:node:node-2", Groups: []string{"system:nodes"}}, ""},
		"by someone who calls himself its node":                          {newPod(), authenticationv1.UserInfo{Username: "system:node:node-1"}, ""},
		"mirror of a static pod":                                         {newPod(asMirror), ordinary, mirror},
		"by the controller of its replica set":                           {newPod(ownedBy("apps/v1", "ReplicaSet")), user("replicaset-controller"), byItsOwner},
		"by the controller of its stateful set":                          {newPod(ownedBy("apps/v1", "StatefulSet")), user("statefulset-controller"), byItsOwner},
		"by the controller of another kind of workload":                  {newPod(ownedBy("apps/v1", "StatefulSet")), user("replicaset-controller"), ""},
		"by the controller of daemon sets, for the spec or for its node": {newPod(ownedBy("apps/v1", "DaemonSet")), user("daemon-set-controller"), ""},
		"by the controller of its stateful set, said to have failed":     {newPod(ownedBy("apps/v1", "StatefulSet"), inPhase(corev1.PodFailed)), user("statefulset-controller"), ""},
		"by the controller of its stateful set, it has failed":           {newPod(ownedBy("apps/v1", "StatefulSet"), inPhase(corev1.PodFailed), containersEnded), user("statefulset-controller"), finished},
		"owned by a kind of the same name in another group":              {newPod(ownedBy("apps.kruise.io/v1beta1", "StatefulSet")), user("statefulset-controller"), ""},
		"by the controller of jobs":                                      {newPod(ownedBy("batch/v1", "Job")), user("job-controller"), byItsOwner},
		"owner of a kind nobody knows, user of no name":                  {newPod(ownedBy("example.com/v1", "Gadget")), authenticationv1.UserInfo{}, ""},
		"by a workload controller, owned by none":                        {newPod(), user("replicaset-controller"), ""},
		"by the garbage collector":                                       {newPod(ownedBy("apps/v1", "ReplicaSet")), user("generic-garbage-collector"), ""},
		"by the pod garbage collector":                                   {newPod(ownedBy("apps/v1", "ReplicaSet")), user("pod-garbage-collector"), ""},
		"by the taint eviction controller":                               {newPod(ownedBy("apps/v1", "ReplicaSet")), user("taint-eviction-controller"), ""},
		"by the namespace controller":                                    {newPod(ownedBy("apps/v1", "ReplicaSet")), user("namespace-controller"), withNamespace},
		"by the scheduler, which preempts":                               {newPod(), authenticationv1.UserInfo{Username: "system:kube-scheduler"}, ""},
		"by an administrator":                                            {newPod(), authenticationv1.UserInfo{Username: "admin", Groups: []string{"system:masters"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, passes(test.pod, deletion(t, test.pod, test.user, metav1.DeleteOptions{})))
		})
	}
}

func TestEvictionsGoByThePhase(t *testing.T) {
	for name, pod := range map[string]*corev1.Pod{
		"all containers ended": newPod(inPhase(corev1.PodFailed), containersEnded),
		"a container runs":     newPod(inPhase(corev1.PodFailed)),
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, finished, passes(pod, eviction(t, pod, nil)))
		})
	}
}
