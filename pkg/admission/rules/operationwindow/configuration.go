package operationwindow

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Configuration judges OperationWindows when they are written. It refuses what the
// schema of their definition cannot see, and warns about windows without effect. It
// is safe for concurrent use.
type Configuration struct {
	// Namespaces reads the metadata of namespaces, from a cache.
	Namespaces client.Reader
}

var _ ctrlwebhook.Validator[*guardv1alpha1.OperationWindow] = Configuration{}

// ValidateCreate implements the validator of controller-runtime.
func (c Configuration) ValidateCreate(ctx context.Context, window *guardv1alpha1.OperationWindow) (ctrlwebhook.Warnings, error) {
	if errs := ValidateOperationWindow(window); len(errs) > 0 {
		kind := schema.GroupKind{Group: guardv1alpha1.GroupName, Kind: guardv1alpha1.OperationWindowKind}
		return nil, apierrors.NewInvalid(kind, window.Name, errs)
	}
	// A namespace that cannot be read is no reason to refuse or to warn.
	namespace, err := namespaceMeta(ctx, c.Namespaces, window.Namespace)
	if err == nil && namespace.Labels[guardv1alpha1.OperationWindowsLabel] != guardv1alpha1.OperationWindowsEnforced {
		return ctrlwebhook.Warnings{notEnforced(window.Namespace)}, nil
	}
	return nil, nil
}

// ValidateUpdate implements the validator of controller-runtime.
func (c Configuration) ValidateUpdate(ctx context.Context, _, window *guardv1alpha1.OperationWindow) (ctrlwebhook.Warnings, error) {
	if window.DeletionTimestamp != nil {
		return nil, nil
	}
	return c.ValidateCreate(ctx, window)
}

// ValidateDelete implements the validator of controller-runtime.
func (Configuration) ValidateDelete(context.Context, *guardv1alpha1.OperationWindow) (ctrlwebhook.Warnings, error) {
	return nil, nil
}
