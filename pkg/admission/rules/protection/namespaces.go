package protection

import (
	"context"
	"fmt"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// reviewNamespace judges an update of a namespace, which may remove its grant.
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
	protected, err := r.protectedPods(ctx, old.Name)
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
	protected, err := r.protectedPods(ctx, old.Name)
	if err != nil {
		return admission.Fail("find the protected pods of the namespace: %w", err)
	}
	if protected.Count == 0 {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonDependentsExist,
		fmt.Sprintf("%s was not deleted: its protected pods would be deleted with it, past their budgets: %s", request.Target(), protected),
		lookAtThem(old.Name))
}

func lookAtThem(namespace string) string {
	return fmt.Sprintf("List them (kubectl get pods -n %s -l %s=%s), and stop them first", namespace, guardv1alpha1.ExplicitDeletionLabel, guardv1alpha1.ExplicitDeletionRequired)
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
func decideNamespace(request *admission.Request, grant string, protected admission.Found) admission.Decision {
	if protected.Count == 0 {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonProtectionRemoved,
		fmt.Sprintf("%s keeps the grant %s=%s: pods that replace its protected ones would be refused. Protected pods: %s", request.Target(), guardv1alpha1.ProtectPodsLabel, grant, protected),
		lookAtThem(request.Key().Name))
}
