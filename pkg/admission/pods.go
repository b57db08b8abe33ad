package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/metadata"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/paging"
)

// UnfinishedPods is the field selector of pods that may still run containers.
const UnfinishedPods = "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)

// ProtectedPods is the label of protected pods, also as a selector.
var ProtectedPods = labels.Set{guardv1alpha1.ExplicitDeletionLabel: guardv1alpha1.ExplicitDeletionRequired}

// ListUnfinishedPods returns the metadata of the pods of a namespace that match the label selector
// and have not finished, at most paging.Size.
func ListUnfinishedPods(ctx context.Context, client metadata.Interface, namespace, selector string) (*metav1.PartialObjectMetadataList, error) {
	return client.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(namespace).
		List(ctx, metav1.ListOptions{LabelSelector: selector, FieldSelector: UnfinishedPods, Limit: paging.Size})
}

// IsProtected reports whether the pod has the label.
func IsProtected(pod *corev1.Pod) bool {
	return pod.Labels[guardv1alpha1.ExplicitDeletionLabel] == guardv1alpha1.ExplicitDeletionRequired
}

// IsMirror reports whether the pod is that of a static pod.
func IsMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// IsFinished reports whether the phase is one of the end. That alone is no proof that nothing of
// the pod runs: the pod garbage collector and others write it, too.
func IsFinished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// AnyRunning reports whether the node last reported that a container runs.
func AnyRunning(pod *corev1.Pod) bool {
	running := func(status corev1.ContainerStatus) bool { return status.State.Running != nil }
	return slices.ContainsFunc(pod.Status.InitContainerStatuses, running) || slices.ContainsFunc(pod.Status.ContainerStatuses, running)
}
