package controlplane

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/utils/ptr"
)

// The expression by which a NodeDeletionPolicy selects is there three times, since CEL has no
// functions. The specs try one of them.
func TestNodePoliciesSelectByTheSameExpression(t *testing.T) {
	b := build(t, overlays+overlayEnforce)
	expression := func(policy, variable string) string {
		t.Helper()
		i := slices.IndexFunc(b.policies, func(p admissionregistrationv1.ValidatingAdmissionPolicy) bool { return p.Name == policy })
		require.GreaterOrEqual(t, i, 0, policy)
		variables := b.policies[i].Spec.Variables
		i = slices.IndexFunc(variables, func(v admissionregistrationv1.Variable) bool { return v.Name == variable })
		require.GreaterOrEqual(t, i, 0, variable)
		return variables[i].Expression
	}
	const limit, pool = "limit.node-deletion.kubelet-guard.io", "pool.node-deletion.kubelet-guard.io"
	selects := expression(limit, "selects")
	require.Contains(t, selects, "variables.labels")
	require.Equal(t, selects, strings.ReplaceAll(expression(pool, "selected"), "variables.before", "variables.labels"))
	require.Equal(t, selects, strings.ReplaceAll(expression(pool, "selects"), "variables.after", "variables.labels"))
	for _, variable := range []string{"matchLabels", "matchExpressions"} {
		require.Equal(t, expression(limit, variable), expression(pool, variable))
	}
}

func TestNodePoliciesLetPassWhatTheyCannotDecide(t *testing.T) {
	b := build(t, overlays+overlayEnforce)
	for _, policy := range b.policies {
		if strings.HasSuffix(policy.Name, ".node-deletion.kubelet-guard.io") {
			require.Equal(t, ptr.To(admissionregistrationv1.Ignore), policy.Spec.FailurePolicy, "most nodes are in no pool")
		}
	}
	for _, binding := range b.bindings {
		if strings.HasSuffix(binding.Name, ".node-deletion.kubelet-guard.io") {
			require.Equal(t, ptr.To(admissionregistrationv1.AllowAction), binding.Spec.ParamRef.ParameterNotFoundAction)
			require.NotNil(t, binding.Spec.ParamRef.Selector)
		}
	}
}
