package policies

import (
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"
)

// Each /scale has one who decides: a policy, which goes through all labelled workloads of
// the namespace, or the webhook.
func TestWhoDecidesAScale(t *testing.T) {
	entries := loadWebhooks(t)
	bindings := map[string]admissionregistrationv1.ValidatingAdmissionPolicyBinding{}
	documents(t, "policies/bindings.yaml", func(kind string, text []byte) {
		if kind != "ValidatingAdmissionPolicyBinding" {
			return
		}
		var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
		require.NoError(t, yaml.UnmarshalStrict(text, &binding))
		bindings[binding.Name] = binding
	})
	scale := func(replicas string) string {
		return "{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: web, namespace: shop}, spec: {" + replicas + "}}"
	}
	const policy, down, up = "policy", "scale-down.kubelet-guard.io", "scale-up.kubelet-guard.io"
	for resource, policyName := range map[string]string{
		"deployments.apps/scale":       "deployments.scale.kubelet-guard.io",
		"statefulsets.apps/scale":      "statefulsets.scale.kubelet-guard.io",
		"replicationcontrollers/scale": "replicationcontrollers.scale.kubelet-guard.io",
	} {
		for name, test := range map[string]struct {
			from, to, label string
			want            []string
		}{
			"without the label, down":  {"replicas: 3", "replicas: 1", "", []string{policy}},
			"without the label, up":    {"replicas: 1", "replicas: 3", "", []string{policy}},
			"with another value, down": {"replicas: 3", "replicas: 1", "wrong", []string{policy}},
			"with the label, down":     {"replicas: 3", "replicas: 1", "webhook", []string{down}},
			"with the label, to 0":     {"replicas: 3", "", "webhook", []string{down}},
			"with the label, up":       {"replicas: 1", "replicas: 3", "webhook", []string{up}},
			"with the label, from 0":   {"", "replicas: 3", "webhook", []string{up}},
			"with the label, the same": {"replicas: 3", "replicas: 3", "webhook", nil},
		} {
			t.Run(resource+" "+name, func(t *testing.T) {
				change := review{resource: resource, old: scale(test.from), new: scale(test.to), namespace: map[string]string{}}
				if test.label != "" {
					change.namespace["kubelet-guard.io/scale-review"] = test.label
				}
				var got []string
				_, namespace, _, _ := change.attributes(t)
				require.Contains(t, bindings, policyName)
				if selectsAny(t, bindings[policyName].Spec.MatchResources.NamespaceSelector, namespace) {
					got = append(got, policy)
				}
				for _, entry := range []string{down, up} {
					if entries.calls(t, entry, change) {
						got = append(got, entry)
					}
				}
				require.Equal(t, test.want, got)
			})
		}
	}
	t.Run("an outage holds scale-downs alone", func(t *testing.T) {
		require.Equal(t, admissionregistrationv1.Fail, *entries[down].FailurePolicy)
		require.Equal(t, admissionregistrationv1.Ignore, *entries[up].FailurePolicy)
	})
	t.Run("kinds with an entry or a policy of their own", func(t *testing.T) {
		for _, resource := range []string{"replicasets.apps/scale", "fleets.example.com/scale", "deployments.apps"} {
			change := review{resource: resource, old: scale("replicas: 3"), new: scale("replicas: 1"), namespace: map[string]string{"kubelet-guard.io/scale-review": "webhook"}}
			require.False(t, entries.calls(t, down, change), resource)
		}
	})
}

// Policies decide in the webhook's own namespace, so that nothing there depends on it.
func TestScaleReviewIsNotForTheNamespaceOfTheWebhook(t *testing.T) {
	all, entries := loadPolicies(t, "policies/*.yaml"), loadWebhooks(t)
	labelled := func(name, metadata string) string {
		return "{apiVersion: v1, kind: Namespace, metadata: {name: " + name + ", " + metadata + "}}"
	}
	const label = "labels: {kubelet-guard.io/scale-review: webhook}"
	for name, want := range map[string]string{
		"shop":                 "",
		"kube-system":          "",
		"kubelet-guard-system": "namespaces kubelet-guard-system was not accepted: it has metadata.labels[kubelet-guard.io/scale-review], and the webhook decides nothing in the namespace where it runs. Leave the label out; policies decide there",
	} {
		for _, before := range []string{"", labelled(name, "")} {
			refusal, _ := all.refusal(t, "scale-review.labels.kubelet-guard.io", review{resource: "namespaces", old: before, new: labelled(name, label)})
			require.Equal(t, want, refusal, name)
		}
		refusal, _ := all.refusal(t, "scale-review.labels.kubelet-guard.io", review{resource: "namespaces", old: labelled(name, label), new: labelled(name, "")})
		require.Empty(t, refusal, "the label comes off")
	}
	scale := func(replicas string) string {
		return "{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: guard-webhook, namespace: kubelet-guard-system}, spec: {replicas: " + replicas + "}}"
	}
	require.False(t, entries.calls(t, "scale-down.kubelet-guard.io", review{resource: "deployments.apps/scale", old: scale("2"), new: scale("0"),
		namespace: map[string]string{"kubelet-guard.io/scale-review": "webhook"}}))
}
