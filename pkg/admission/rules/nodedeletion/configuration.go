package nodedeletion

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Configuration judges NodeDeletionPolicies when they are written. It refuses what
// the schema of their definition cannot see. It is safe for concurrent use.
type Configuration struct {
	// Policies are read from a cache.
	Policies client.Reader
}

var _ ctrlwebhook.Validator[*guardv1alpha1.NodeDeletionPolicy] = Configuration{}

// ValidateCreate implements the validator of controller-runtime.
func (c Configuration) ValidateCreate(ctx context.Context, policy *guardv1alpha1.NodeDeletionPolicy) (ctrlwebhook.Warnings, error) {
	others, err := listPolicies(ctx, c.Policies)
	if err != nil {
		return nil, fmt.Errorf("list the NodeDeletionPolicies: %w", err)
	}
	if errs := ValidateNodeDeletionPolicy(policy, others); len(errs) > 0 {
		kind := schema.GroupKind{Group: guardv1alpha1.GroupName, Kind: guardv1alpha1.NodeDeletionPolicyKind}
		return nil, apierrors.NewInvalid(kind, policy.Name, errs)
	}
	return nil, nil
}

// ValidateUpdate implements the validator of controller-runtime.
func (c Configuration) ValidateUpdate(ctx context.Context, _, policy *guardv1alpha1.NodeDeletionPolicy) (ctrlwebhook.Warnings, error) {
	if policy.DeletionTimestamp != nil {
		return nil, nil
	}
	return c.ValidateCreate(ctx, policy)
}

// ValidateDelete implements the validator of controller-runtime.
func (Configuration) ValidateDelete(context.Context, *guardv1alpha1.NodeDeletionPolicy) (ctrlwebhook.Warnings, error) {
	return nil, nil
}
