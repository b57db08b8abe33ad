/*
Package grant holds the rule about what disarms the node guard: taking the label
kubelet-guard.io/explicit-deletion off a running pod, and taking the grant
kubelet-guard.io/protect-pods from a namespace that has protected pods, or deleting
the namespace with them. All of these are never allowed by themselves; the override is
the confirmation.

A policy refuses to take the label off a pod that has no override. That a namespace
still has protected pods needs a look at them, so it is decided here alone.
*/
package grant

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Protected says how many protected pods a namespace has that have not finished.
type Protected struct {
	Count int
	// More says that there are more than Count; they were not counted.
	More bool
	// Example is the name of one.
	Example string
}

// Lister finds the protected pods of a namespace that have not finished.
type Lister interface {
	ProtectedPods(ctx context.Context, namespace string) (Protected, error)
}

// Rule judges updates of pods and namespaces, and deletions of namespaces.
type Rule struct{ Pods Lister }

// Name implements admission.Rule.
func (Rule) Name() admission.RuleName { return admission.Protection }

// Review implements admission.Rule.
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
		return reviewPod(request)
	case schema.GroupResource{Resource: "namespaces"}:
		return r.reviewNamespace(ctx, request)
	}
	return admission.Allow()
}

func reviewPod(request *admission.Request) admission.Decision {
	var pod, old corev1.Pod
	if err := request.DecodeObject(&pod); err != nil {
		return admission.Fail("%w", err)
	}
	if err := request.DecodeOldObject(&old); err != nil {
		return admission.Fail("%w", err)
	}
	return decidePod(request, &old, &pod)
}

// decidePod judges the update of a pod.
func decidePod(request *admission.Request, old, pod *corev1.Pod) admission.Decision {
	protected := func(pod *corev1.Pod) bool {
		return pod.Labels[guardv1alpha1.ExplicitDeletionLabel] == guardv1alpha1.ExplicitDeletionRequired
	}
	_, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]
	running := old.Spec.NodeName != "" && old.DeletionTimestamp == nil &&
		old.Status.Phase != corev1.PodSucceeded && old.Status.Phase != corev1.PodFailed
	if !protected(old) || protected(pod) || !running || mirror {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonProtectionRemoved,
		fmt.Sprintf("%s keeps the label %s: without it, its node may stop it for any reason of its own", request.Target(), guardv1alpha1.ExplicitDeletionLabel),
		fmt.Sprintf("Delete the pod if it is to end. To take the label off while it runs: kubectl guard unprotect pod/%s%s --override '<reason>'", pod.Name, request.NamespaceFlag()))
}

func (r Rule) reviewNamespace(ctx context.Context, request *admission.Request) admission.Decision {
	meta, err := request.Meta()
	if err != nil {
		return admission.Fail("%w", err)
	}
	old, err := request.OldMeta()
	if err != nil {
		return admission.Fail("%w", err)
	}
	if meta == nil || old == nil || !grants(old.Labels) || grants(meta.Labels) {
		return admission.Allow()
	}
	protected, err := r.Pods.ProtectedPods(ctx, old.Name)
	if err != nil {
		return admission.Fail("find the protected pods of the namespace: %w", err)
	}
	return decideNamespace(request, old.Labels[guardv1alpha1.ProtectPodsLabel], protected)
}

// reviewNamespaceDeletion judges the deletion of a namespace, of which the namespace
// controller takes everything else afterwards, past all budgets.
func (r Rule) reviewNamespaceDeletion(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Resource.Group != "" || request.Resource.Resource != "namespaces" || request.SubResource != "" {
		return admission.Allow()
	}
	old, err := request.OldMeta()
	if err != nil {
		return admission.Fail("%w", err)
	}
	if old == nil || old.DeletionTimestamp != nil || !grants(old.Labels) {
		return admission.Allow()
	}
	protected, err := r.Pods.ProtectedPods(ctx, old.Name)
	if err != nil {
		return admission.Fail("find the protected pods of the namespace: %w", err)
	}
	if protected.Count == 0 {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonDependentsExist,
		fmt.Sprintf("%s was not deleted: %s, and would end with it, past their budgets", request.Target(), protected),
		lookAtThem(old.Name))
}

// String says where the pods are.
func (p Protected) String() string {
	pods := fmt.Sprintf("%d protected pods are in it (such as %s)", p.Count, p.Example)
	switch {
	case p.More:
		return "at least " + pods
	case p.Count == 1:
		return fmt.Sprintf("1 protected pod is in it (%s)", p.Example)
	}
	return pods
}

func lookAtThem(namespace string) string {
	return fmt.Sprintf("Look at them (kubectl get pods -n %s -l %s=%s), and stop them first", namespace, guardv1alpha1.ExplicitDeletionLabel, guardv1alpha1.ExplicitDeletionRequired)
}

// grants reports whether the labels of a namespace let its pods be protected.
func grants(labels map[string]string) bool {
	switch labels[guardv1alpha1.ProtectPodsLabel] {
	case guardv1alpha1.ProtectPodsAllowed, guardv1alpha1.ProtectPodsDefault:
		return true
	}
	return false
}

// decideNamespace judges that the grant is taken from a namespace with these pods.
func decideNamespace(request *admission.Request, grant string, protected Protected) admission.Decision {
	if protected.Count == 0 {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonProtectionRemoved,
		fmt.Sprintf("%s keeps the grant %s=%s: %s, and pods that replace them would be refused", request.Target(), guardv1alpha1.ProtectPodsLabel, grant, protected),
		lookAtThem(request.Key().Name))
}
