package admission

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Validator refuses objects of a kind of the guard's own that the schema of their definition lets
// through. It implements webhook.Validator, and is safe for concurrent use when its function is.
type Validator[T client.Object] struct {
	Kind string
	// Validate returns what is wrong with the object, and what the user should know. The error is
	// about the check itself.
	Validate func(ctx context.Context, object T) (field.ErrorList, webhook.Warnings, error)
}

// ValidateCreate implements webhook.Validator.
func (v Validator[T]) ValidateCreate(ctx context.Context, object T) (webhook.Warnings, error) {
	errs, warnings, err := v.Validate(ctx, object)
	if err == nil && len(errs) > 0 {
		err = apierrors.NewInvalid(guardv1alpha1.GroupVersion.WithKind(v.Kind).GroupKind(), object.GetName(), errs)
	}
	return warnings, err
}

// ValidateUpdate implements webhook.Validator.
func (v Validator[T]) ValidateUpdate(ctx context.Context, _, object T) (webhook.Warnings, error) {
	if object.GetDeletionTimestamp() != nil {
		return nil, nil
	}
	return v.ValidateCreate(ctx, object)
}

// ValidateDelete implements webhook.Validator.
func (Validator[T]) ValidateDelete(context.Context, T) (webhook.Warnings, error) { return nil, nil }
