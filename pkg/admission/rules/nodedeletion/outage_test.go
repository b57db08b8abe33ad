package nodedeletion

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

func TestHeldPools(t *testing.T) {
	held, free := policyOf("a", 1, time.Hour, ""), policyFor("b")
	free.Spec.WhenUnavailable = guardv1alpha1.WhenUnavailableAllow
	broken := policyFor("c")
	broken.Spec.NodeSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "pool", Operator: "Like"}}
	all := policyFor("d")
	all.Spec.NodeSelector = metav1.LabelSelector{}
	const unlessOverridden = " && !('kubelet-guard.io/override' in oldObject.metadata.?annotations.orValue({}) && authorizer.group('').resource('nodes').name(oldObject.metadata.name).check('override').allowed())"
	require.Equal(t,
		`(oldObject.metadata.?labels["pool"].orValue('') in ["a"] && oldObject.metadata.?labels["pool"].hasValue())`+unlessOverridden,
		heldPools([]guardv1alpha1.NodeDeletionPolicy{*free, *held, *broken}))
	require.Equal(t, heldPools([]guardv1alpha1.NodeDeletionPolicy{*all, *held}), heldPools([]guardv1alpha1.NodeDeletionPolicy{*held, *all}), "in any order")
	require.Equal(t, "(true)"+unlessOverridden, heldPools([]guardv1alpha1.NodeDeletionPolicy{*all}))
	require.Empty(t, heldPools([]guardv1alpha1.NodeDeletionPolicy{*free, *broken}))
}

// That the API server finds these true of the same nodes as the selector is a spec's.
func TestSelects(t *testing.T) {
	for text, want := range map[string]string{
		"pool=":              `oldObject.metadata.?labels["pool"].orValue('') in [""] && oldObject.metadata.?labels["pool"].hasValue()`,
		"pool in (a,b)":      `oldObject.metadata.?labels["pool"].orValue('') in ["a", "b"] && oldObject.metadata.?labels["pool"].hasValue()`,
		"pool notin (a),gpu": `oldObject.metadata.?labels["gpu"].hasValue() && !(oldObject.metadata.?labels["pool"].orValue('') in ["a"] && oldObject.metadata.?labels["pool"].hasValue())`,
		"!gpu":               `!oldObject.metadata.?labels["gpu"].hasValue()`,
	} {
		selector, err := metav1.ParseToLabelSelector(text)
		require.NoError(t, err)
		require.Equal(t, want, selects(selector), text)
	}
}

func configuration(failurePolicy admissionregistrationv1.FailurePolicyType) *admissionregistrationv1.ValidatingWebhookConfiguration {
	entry := func(name, path string, operator metav1.LabelSelectorOperator, failurePolicy admissionregistrationv1.FailurePolicyType) admissionregistrationv1.ValidatingWebhook {
		return admissionregistrationv1.ValidatingWebhook{
			Name:          name,
			ClientConfig:  admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Path: ptr.To(path)}, CABundle: []byte("ca")},
			FailurePolicy: &failurePolicy,
			ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "kubelet-guard.io/deletion-protection", Operator: operator},
			}},
			MatchConditions: []admissionregistrationv1.MatchCondition{{Name: "not-terminating", Expression: "!has(oldObject.metadata.deletionTimestamp)"}},
		}
	}
	return &admissionregistrationv1.ValidatingWebhookConfiguration{Webhooks: []admissionregistrationv1.ValidatingWebhook{
		entry(labelledEntry, "/validate/node-deletion/labelled", metav1.LabelSelectorOpExists, failurePolicy),
		entry(otherEntry, "/validate/node-deletion", metav1.LabelSelectorOpDoesNotExist, admissionregistrationv1.Ignore),
	}}
}

func TestWithPoolEntry(t *testing.T) {
	policies := []guardv1alpha1.NodeDeletionPolicy{*policyOf("a", 1, time.Hour, "")}
	c := configuration(admissionregistrationv1.Fail)
	require.True(t, WithPoolEntry(c, policies, admission.Enforce))
	require.False(t, WithPoolEntry(c, policies, admission.Enforce), "a second time")
	require.Len(t, c.Webhooks, 3)
	pool := c.Webhooks[2]
	require.Equal(t, PoolEntry, pool.Name)
	require.Equal(t, admissionregistrationv1.Fail, *pool.FailurePolicy)
	require.Equal(t, c.Webhooks[0].ClientConfig, pool.ClientConfig)
	require.Equal(t, c.Webhooks[1].ObjectSelector, pool.ObjectSelector)
	require.Len(t, pool.MatchConditions, 2)
	require.Equal(t, fmt.Sprintf("!(%s)", pool.MatchConditions[1].Expression), c.Webhooks[1].MatchConditions[1].Expression, "a node is in one entry")

	more := append(policies, *policyFor("b"))
	require.True(t, WithPoolEntry(c, more, admission.Enforce))
	require.Len(t, c.Webhooks, 3)
	require.Contains(t, c.Webhooks[2].MatchConditions[1].Expression, `"b"`)

	require.True(t, WithPoolEntry(c, nil, admission.Enforce))
	require.Equal(t, configuration(admissionregistrationv1.Fail), c, "no policy, no entry")
	require.False(t, WithPoolEntry(c, policies, admission.Audit))
	ignore := configuration(admissionregistrationv1.Ignore)
	require.False(t, WithPoolEntry(ignore, policies, admission.Enforce), "the overlay audit")
	require.False(t, WithPoolEntry(&admissionregistrationv1.ValidatingWebhookConfiguration{}, policies, admission.Enforce), "other entries")
}
