package controlplane

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// built is what kubectl apply -k applies, as far as these tests check it.
type built struct {
	bindings   []admissionregistrationv1.ValidatingAdmissionPolicyBinding
	policies   []admissionregistrationv1.ValidatingAdmissionPolicy
	webhooks   []admissionregistrationv1.ValidatingWebhook
	deployment appsv1.Deployment
	// kinds and names of everything, sorted.
	kinds, names []string
	// labels of everything, by kind and name.
	labels map[string]map[string]string
}

// build builds a folder below manifests, strictly.
func build(t *testing.T, folder string) built {
	t.Helper()
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join("..", "..", "manifests", folder))
	require.NoError(t, err)
	b := built{labels: map[string]map[string]string{}}
	read := func(text []byte, into any) {
		require.NoError(t, yaml.UnmarshalStrict(text, into), "%s", text)
	}
	for _, resource := range result.Resources() {
		text, err := resource.AsYAML()
		require.NoError(t, err)
		b.kinds = append(b.kinds, resource.GetKind())
		b.names = append(b.names, resource.GetName())
		b.labels[resource.GetKind()+" "+resource.GetName()] = resource.GetLabels()
		switch resource.GetKind() {
		case "ValidatingAdmissionPolicyBinding":
			var binding admissionregistrationv1.ValidatingAdmissionPolicyBinding
			read(text, &binding)
			b.bindings = append(b.bindings, binding)
		case "ValidatingAdmissionPolicy":
			var policy admissionregistrationv1.ValidatingAdmissionPolicy
			read(text, &policy)
			b.policies = append(b.policies, policy)
		case "ValidatingWebhookConfiguration":
			var configuration admissionregistrationv1.ValidatingWebhookConfiguration
			read(text, &configuration)
			b.webhooks = configuration.Webhooks
		case "Deployment":
			read(text, &b.deployment)
		}
	}
	return b
}

// selectsLabelled holds for requirements that no object without the label meets.
func selectsLabelled(requirement metav1.LabelSelectorRequirement) bool {
	return requirement.Operator == metav1.LabelSelectorOpExists || requirement.Operator == metav1.LabelSelectorOpIn
}

const overlays = "control-plane/overlays/"

// roleLimit is what bounds the role kubelet-guard-protector. It is no rule of the control
// plane, and no overlay may loosen it.
const roleLimit = "protectors.kubelet-guard.io"

func TestNoOverlayLoosensTheRoleOfProtectors(t *testing.T) {
	for _, folder := range []string{"", "rbac", overlays + overlayAudit, overlays + overlayCanary, overlays + overlayEnforce} {
		b := build(t, folder)
		require.Contains(t, b.names, "kubelet-guard-protector", folder)
		i := slices.IndexFunc(b.bindings, func(binding admissionregistrationv1.ValidatingAdmissionPolicyBinding) bool {
			return binding.Name == roleLimit
		})
		require.GreaterOrEqual(t, i, 0, folder)
		require.Equal(t, admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName:        roleLimit,
			ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny, admissionregistrationv1.Audit},
		}, b.bindings[i].Spec, folder)
		i = slices.IndexFunc(b.policies, func(policy admissionregistrationv1.ValidatingAdmissionPolicy) bool { return policy.Name == roleLimit })
		require.Equal(t, admissionregistrationv1.Fail, *b.policies[i].Spec.FailurePolicy, folder)
	}
}

func TestEnforceOverlay(t *testing.T) {
	b := build(t, overlays+overlayEnforce)
	require.NotEmpty(t, b.bindings)
	require.Len(t, b.bindings, len(b.policies), "every policy has its binding")
	for _, binding := range b.bindings {
		require.Equal(t, binding.Name, binding.Spec.PolicyName)
		require.Equal(t, []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny, admissionregistrationv1.Audit}, binding.Spec.ValidationActions, binding.Name)
	}
	require.Contains(t, b.deployment.Spec.Template.Spec.Containers[0].Args, "--mode=Enforce")
	for key, labels := range b.labels {
		require.Equal(t, "always", labels["kubelet-guard.io/deletion-protection"], "%s: part of the guard", key)
	}
	for _, entry := range b.webhooks {
		require.LessOrEqual(t, *entry.TimeoutSeconds, int32(5), entry.Name)
		if *entry.FailurePolicy == admissionregistrationv1.Ignore {
			continue
		}
		require.NotEmpty(t, entry.MatchConditions, "%s: a request costs no call unless it must", entry.Name)
		// An outage must not refuse what nobody labelled.
		objects, namespaces := entry.ObjectSelector, entry.NamespaceSelector
		selects := objects != nil && (len(objects.MatchLabels) > 0 || slices.ContainsFunc(objects.MatchExpressions, selectsLabelled)) ||
			namespaces != nil && (len(namespaces.MatchLabels) > 0 || slices.ContainsFunc(namespaces.MatchExpressions, selectsLabelled))
		require.True(t, selects, "%s has failurePolicy Fail and selects no label", entry.Name)
	}
}

func TestAuditOverlayRefusesNothing(t *testing.T) {
	b := build(t, overlays+overlayAudit)
	require.NotEmpty(t, b.bindings)
	for _, binding := range b.bindings {
		if binding.Name == roleLimit {
			continue
		}
		require.Equal(t, []admissionregistrationv1.ValidationAction{admissionregistrationv1.Warn, admissionregistrationv1.Audit}, binding.Spec.ValidationActions, binding.Name)
	}
	for _, policy := range b.policies {
		if policy.Name == roleLimit {
			continue
		}
		require.Equal(t, admissionregistrationv1.Ignore, *policy.Spec.FailurePolicy, policy.Name)
	}
	for _, entry := range b.webhooks {
		require.Equal(t, admissionregistrationv1.Ignore, *entry.FailurePolicy, "%s: list it in overlays/audit/failure-policy.yaml", entry.Name)
	}
	require.Contains(t, b.deployment.Spec.Template.Spec.Containers[0].Args, "--mode=Audit")
	require.Equal(t, build(t, overlays+overlayEnforce).names, b.names, "both overlays have the same objects")
}

func TestCanaryOverlayIsForCanariesOnly(t *testing.T) {
	b, everywhere := build(t, overlays+overlayCanary), build(t, overlays+overlayEnforce)
	const canary = "kubelet-guard.io/canary"
	require.Len(t, b.bindings, len(everywhere.bindings))
	for i, binding := range b.bindings {
		if binding.Name == roleLimit {
			continue
		}
		want := everywhere.bindings[i].Spec
		if want.MatchResources == nil {
			want.MatchResources = &admissionregistrationv1.MatchResources{}
		}
		if want.MatchResources.NamespaceSelector == nil {
			want.MatchResources.NamespaceSelector = &metav1.LabelSelector{}
		}
		want.MatchResources.NamespaceSelector.MatchLabels = map[string]string{canary: "true"}
		require.Equal(t, want, binding.Spec, "%s: what it had stays so", binding.Name)
	}
	enforced := map[string]admissionregistrationv1.ValidatingWebhook{}
	for _, entry := range everywhere.webhooks {
		enforced[entry.Name] = entry
	}
	for _, entry := range b.webhooks {
		if strings.Contains(entry.Name, "node-deletion") || strings.HasPrefix(entry.Name, "definition-deletion.") {
			continue // neither nodes nor definitions have a namespace
		}
		require.NotNil(t, entry.NamespaceSelector, entry.Name)
		require.Equal(t, "true", entry.NamespaceSelector.MatchLabels[canary], "%s: list it in components/canary/webhooks.yaml", entry.Name)
		if before := enforced[entry.Name].NamespaceSelector; before != nil {
			require.Equal(t, before.MatchExpressions, entry.NamespaceSelector.MatchExpressions, "%s: what was excluded stays so", entry.Name)
		}
	}
}

func TestNothingIsAppliedBeforeWhatItNeeds(t *testing.T) {
	b := build(t, overlays+overlayEnforce)
	// kubectl sorts what a kustomization has, so the order is not that of the files.
	order, err := krusty.MakeKustomizer(&krusty.Options{Reorder: krusty.ReorderOptionLegacy, PluginConfig: types.DisabledPluginConfig()}).
		Run(filesys.MakeFsOnDisk(), filepath.Join("..", "..", "manifests", overlays+overlayEnforce))
	require.NoError(t, err)
	var kinds []string
	for _, resource := range order.Resources() {
		kinds = append(kinds, resource.GetKind())
	}
	require.Len(t, kinds, len(b.kinds))
	require.Equal(t, "Namespace", kinds[0])
	require.Less(t, slices.Index(kinds, "CustomResourceDefinition"), slices.Index(kinds, "Deployment"))
	require.Equal(t, "ValidatingWebhookConfiguration", kinds[len(kinds)-1])
}

func TestEveryDefinitionIsApplied(t *testing.T) {
	files, err := filepath.Glob("../../manifests/crds/*.yaml")
	require.NoError(t, err)
	var want []string
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		var definition struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		require.NoError(t, yaml.Unmarshal(content, &definition))
		want = append(want, definition.Metadata.Name)
	}
	b := build(t, overlays+overlayEnforce)
	var got []string
	for i, kind := range b.kinds {
		if kind == "CustomResourceDefinition" {
			got = append(got, b.names[i])
		}
	}
	require.ElementsMatch(t, want, got, "list it in manifests/crds/kustomization.yaml")

	node := build(t, "")
	require.Contains(t, node.names, "poddeletions.kubelet-guard.io", "the node side alone")
	require.NotContains(t, node.kinds, "Deployment")
}

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
