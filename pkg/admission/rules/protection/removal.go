package protection

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Rule judges updates of pods and namespaces, and deletions of namespaces.
type Rule struct {
	// Metadata reads from the API server.
	Metadata metadata.Interface
	// Cached reads the metadata of namespaces.
	Cached client.Reader
}

// Review judges the request.
func (r Rule) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Operation == admissionv1.Delete {
		return r.reviewNamespaceDeletion(ctx, request)
	}
	if request.Operation != admissionv1.Update {
		return admission.Allow()
	}
	switch request.SubResource {
	case "", "status", "finalize": // all of these can change labels
	default:
		return admission.Allow()
	}
	switch (schema.GroupResource{Group: request.Resource.Group, Resource: request.Resource.Resource}) {
	case schema.GroupResource{Resource: "pods"}:
		return r.reviewPod(ctx, request)
	case schema.GroupResource{Resource: "namespaces"}:
		return r.reviewNamespace(ctx, request)
	}
	return admission.Allow()
}

func (r Rule) reviewPod(ctx context.Context, request *admission.Request) admission.Decision {
	var pod, old corev1.Pod
	if err := request.DecodeObjects(&old, &pod); err != nil {
		return admission.Fail("%w", err)
	}
	if !admission.IsProtected(&old) || admission.IsProtected(&pod) || admission.IsMirror(&old) || old.DeletionTimestamp != nil ||
		admission.IsFinished(&old) && !admission.AnyRunning(&old) {
		return admission.Allow()
	}
	if old.Spec.NodeName != "" {
		return keep(request, "without it, its node may stop it for any reason of its own")
	}
	// Before a pod has a node its label is a wish, which may be withdrawn, unless the
	// namespace gives it to its pods.
	namespace, err := admission.Metadata(ctx, r.Cached, corev1.SchemeGroupVersion.WithKind("Namespace"), client.ObjectKey{Name: request.Namespace})
	switch {
	case err != nil:
		return admission.Fail("find out whether the namespace protects its pods by default: %w", err)
	case namespace.Labels[guardv1alpha1.ProtectPodsLabel] != guardv1alpha1.ProtectPodsDefault:
		return admission.Allow()
	}
	return keep(request, fmt.Sprintf("namespace %s gives it to all of its pods, and without it a node may stop it for any reason of its own", request.Namespace))
}

// protectedPods finds the protected pods of a namespace that have not finished. Those that wait for
// a node count too: what a node runs next follows from the grant.
func (r Rule) protectedPods(ctx context.Context, namespace string) (admission.Found, error) {
	list, err := admission.ListUnfinishedPods(ctx, r.Metadata, namespace, admission.ProtectedPods.String())
	if err != nil {
		return admission.Found{}, err
	}
	return admission.FoundIn(list), nil
}

// keep refuses to take the label off the pod.
func keep(request *admission.Request, why string) admission.Decision {
	return admission.Refuse(admission.ReasonProtectionRemoved,
		fmt.Sprintf("%s keeps the label %s: %s", request.Target(), guardv1alpha1.ExplicitDeletionLabel, why),
		fmt.Sprintf("Delete the pod if it is to end. To take the label off all the same: kubectl guard unprotect pod/%s%s --override '<reason>'", request.Key().Name, request.NamespaceFlag()))
}
