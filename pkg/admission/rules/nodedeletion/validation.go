package nodedeletion

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// maxDeletions is the most that fits into a ledger.
const maxDeletions = 500

// NewValidator returns the validator of policies. The others are read from a cache.
func NewValidator(cache client.Reader) admission.Validator[*guardv1alpha1.NodeDeletionPolicy] {
	return admission.Validator[*guardv1alpha1.NodeDeletionPolicy]{
		Kind: guardv1alpha1.NodeDeletionPolicyKind,
		Validate: func(ctx context.Context, policy *guardv1alpha1.NodeDeletionPolicy) (field.ErrorList, webhook.Warnings, error) {
			others, err := listPolicies(ctx, cache)
			if err != nil {
				return nil, nil, fmt.Errorf("list the NodeDeletionPolicies: %w", err)
			}
			return ValidateNodeDeletionPolicy(policy, others), nil, nil
		},
	}
}

// ValidateNodeDeletionPolicy returns what is wrong with the policy, all of it: also
// what the schema of the definition refuses. others are the policies that exist; the
// policy itself may be among them.
func ValidateNodeDeletionPolicy(policy *guardv1alpha1.NodeDeletionPolicy, others []guardv1alpha1.NodeDeletionPolicy) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	selector := spec.Child("nodeSelector")
	selectorErrs := metav1validation.ValidateLabelSelector(&policy.Spec.NodeSelector, metav1validation.LabelSelectorValidationOptions{}, selector)
	errs = append(errs, selectorErrs...)
	if len(selectorErrs) == 0 {
		pool := canonical(&policy.Spec.NodeSelector)
		for i := range others {
			if other := &others[i]; other.Name != policy.Name && canonical(&other.Spec.NodeSelector) == pool {
				errs = append(errs, field.Invalid(selector, metav1.FormatLabelSelector(&policy.Spec.NodeSelector),
					fmt.Sprintf("NodeDeletionPolicy %s has the same selector; change that one", other.Name)))
			}
		}
	}
	if n := policy.Spec.MaxDeletions; n != nil && (*n < 0 || *n > maxDeletions) {
		errs = append(errs, field.Invalid(spec.Child("maxDeletions"), *n, fmt.Sprintf("must be from 0 to %d", maxDeletions)))
	}
	if d := periodOf(&policy.Spec); d < time.Minute || d > 30*24*time.Hour {
		errs = append(errs, field.Invalid(spec.Child("period"), d.String(), "must be from 1m to 720h"))
	}
	if m := policy.Spec.MinReady; m != nil {
		if _, err := floorOf(*m, 0); err != nil {
			errs = append(errs, field.Invalid(spec.Child("minReady"), m.String(), err.Error()))
		}
	}
	if policy.Spec.MaxDeletions == nil && policy.Spec.MinReady == nil {
		errs = append(errs, field.Required(spec, "give maxDeletions, minReady or both; without them the policy limits nothing"))
	}
	return errs
}

// canonical returns a text that is the same for selectors that mean the same, however
// their parts are ordered, and whether a value is matched by label or expression.
func canonical(selector *metav1.LabelSelector) string {
	var parts []string
	for key, value := range selector.MatchLabels {
		parts = append(parts, fmt.Sprintf("%s In %q", key, []string{value}))
	}
	for _, expression := range selector.MatchExpressions {
		values := slices.Compact(slices.Sorted(slices.Values(expression.Values)))
		if len(values) == 0 {
			values = nil
		}
		parts = append(parts, fmt.Sprintf("%s %s %q", expression.Key, expression.Operator, values))
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ", ")
}
