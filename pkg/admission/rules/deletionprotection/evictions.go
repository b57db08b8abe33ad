package deletionprotection

import (
	"context"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Evictions keeps pods labelled "always" from eviction, which deletes a pod without a review
// of that deletion.
type Evictions struct{ Metadata metadata.Interface }

// Review judges the request. An eviction does not carry the labels of its pod, so it
// reads the pod.
func (e Evictions) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Operation != admissionv1.Create || request.Resource.Resource != "pods" || request.SubResource != "eviction" {
		return admission.Allow()
	}
	key := request.Key()
	pod, err := e.Metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return admission.Allow()
	case err != nil:
		return admission.Fail("read pod %s: %w", key, err)
	}
	// The override is on the pod.
	request.SetParent(pod)
	if label(pod) != guardv1alpha1.DeletionProtectionAlways {
		return admission.Allow()
	}
	return decideAlways(request)
}
