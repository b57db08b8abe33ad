package policies

import (
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

func TestOverrideIsOnlyForWhoMayUseTheVerb(t *testing.T) {
	all := loadPolicies(t, "policies/*.yaml")
	custom := loadPolicies(t, "components/scale-custom-kind/policies.yaml")
	const garbage = "annotations: {kubelet-guard.io/override: x}"
	deployment := func(metadata, spec string) string {
		return "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop, " + metadata + "}, spec: {" + spec + "}}"
	}
	pod := func(metadata string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, " + metadata + "}, spec: {nodeName: n}, status: {phase: Running}}"
	}
	for name, test := range map[string]struct {
		policies policies
		policy   string
		review   review
		// checked, in this order: namespace, group, resource, name
		checked [4]string
	}{
		"always": {all, "always.deletion.kubelet-guard.io", review{resource: "configmaps",
			old: "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop, labels: {kubelet-guard.io/deletion-protection: always}, " + garbage + "}}"},
			[4]string{"shop", "", "configmaps", "c"}},
		"a namespace": {all, "always.deletion.kubelet-guard.io", review{resource: "namespaces",
			old: "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {kubelet-guard.io/deletion-protection: always}, " + garbage + "}}"},
			[4]string{"shop", "", "namespaces", "shop"}},
		"an object of the cluster": {all, "always.deletion.kubelet-guard.io", review{resource: "clusterroles.rbac.authorization.k8s.io",
			old: "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: r, labels: {kubelet-guard.io/deletion-protection: always}, " + garbage + "}}"},
			[4]string{"", "rbac.authorization.k8s.io", "clusterroles", "r"}},
		"a workload with replicas": {all, "workloads.deletion.kubelet-guard.io", review{resource: "deployments.apps",
			old: deployment("labels: {kubelet-guard.io/deletion-protection: cascading}, "+garbage, "replicas: 1")},
			[4]string{"shop", "apps", "deployments", "web"}},
		"a workload that is not observed": {all, "workloads.deletion.kubelet-guard.io", review{resource: "deployments.apps",
			old: deployment("generation: 2, labels: {kubelet-guard.io/deletion-protection: cascading}, "+garbage, "replicas: 0")},
			[4]string{"shop", "apps", "deployments", "web"}},
		"a daemon set": {all, "daemonsets.deletion.kubelet-guard.io", review{resource: "daemonsets.apps",
			old: "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: agent, namespace: shop, labels: {kubelet-guard.io/deletion-protection: cascading}, " + garbage + "}, status: {currentNumberScheduled: 2}}"},
			[4]string{"shop", "apps", "daemonsets", "agent"}},
		"replicas": {all, "update.replicas.kubelet-guard.io", review{resource: "deployments.apps",
			old: deployment("labels: {kubelet-guard.io/replicas-protection: confirm}", "replicas: 1"),
			new: deployment("labels: {kubelet-guard.io/replicas-protection: confirm}, "+garbage, "replicas: 0")},
			[4]string{"shop", "apps", "deployments", "web"}},
		"replicas of a custom kind": {custom, "fleets.replicas.kubelet-guard.io", review{resource: "fleets.example.com",
			old: "{apiVersion: example.com/v1, kind: Fleet, metadata: {name: north, namespace: shop, labels: {kubelet-guard.io/replicas-protection: confirm}}, spec: {replicas: 1}}",
			new: "{apiVersion: example.com/v1, kind: Fleet, metadata: {name: north, namespace: shop, labels: {kubelet-guard.io/replicas-protection: confirm}, " + garbage + "}, spec: {replicas: 0}}"},
			[4]string{"shop", "example.com", "fleets", "north"}},
		"the label of a pod": {all, "removal.protection.kubelet-guard.io", review{resource: "pods",
			old: pod("labels: {kubelet-guard.io/explicit-deletion: required}"), new: pod(garbage)},
			[4]string{"shop", "", "pods", "web"}},
		"the label of a pod, by its status": {all, "removal.protection.kubelet-guard.io", review{resource: "pods/status",
			old: pod("labels: {kubelet-guard.io/explicit-deletion: required}"), new: pod(garbage)},
			[4]string{"shop", "", "pods", "web"}},
	} {
		t.Run(name, func(t *testing.T) {
			test.review.user = "jane"
			refusal, questions := test.policies.refusal(t, test.policy, test.review)
			require.Contains(t, refusal, `. The annotation kubelet-guard.io/override does not count: user "jane" may not use the verb override on it. `)
			require.Len(t, questions, 1)
			question := questions[0]
			require.Equal(t, "override", question.Verb)
			require.Equal(t, test.checked, [4]string{question.Namespace, question.APIGroup, question.Resource, question.Name})
			require.Empty(t, question.Subresource, "as the webhook checks it")

			test.review.override = true
			refusal, _ = test.policies.refusal(t, test.policy, test.review)
			require.Empty(t, refusal, "the webhook judges it")
		})
	}
	t.Run("admission configuration has none", func(t *testing.T) {
		refusal, questions := all.refusal(t, "always.deletion.kubelet-guard.io", review{resource: "validatingwebhookconfigurations.admissionregistration.k8s.io", override: true,
			old: "{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: w, labels: {kubelet-guard.io/deletion-protection: always}, " + garbage + "}}"})
		require.Contains(t, refusal, "does not count: it cannot be judged on admission configuration")
		require.Empty(t, questions)
	})
	t.Run("without the annotation nothing is checked", func(t *testing.T) {
		refusal, questions := all.refusal(t, "always.deletion.kubelet-guard.io", review{resource: "configmaps", override: true,
			old: "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop, labels: {kubelet-guard.io/deletion-protection: always}}}"})
		require.Equal(t, "configmaps c was not deleted: it is labelled kubelet-guard.io/deletion-protection=always. If it is really to go, take the label off first: kubectl label configmaps c -n shop kubelet-guard.io/deletion-protection-", refusal)
		require.Empty(t, questions)
	})
}

// What does not compile does not run at all: the API server says so in a status, and acts
// by the failure policy.
func TestEveryExpressionCompiles(t *testing.T) {
	eachPolicy(t, func(policy *admissionregistrationv1.ValidatingAdmissionPolicy) {
		_, err := defaultCompiler(t).validator(policy)
		require.NoError(t, err, policy.Name)
	})
}

// An API server accepts no expression that is newer than itself.
func TestEveryExpressionCompilesOnTheOldestKubernetes(t *testing.T) {
	oldest := func() compiler { return newCompiler(t, version.MajorMinor(1, 35), environment.NewExpressions) }
	eachPolicy(t, func(policy *admissionregistrationv1.ValidatingAdmissionPolicy) {
		_, err := oldest().validator(policy)
		require.NoError(t, err, policy.Name)
	})
	for name, entry := range loadWebhooks(t) {
		errs, _ := oldest().matcher(entry.MatchConditions, cel.OptionalVariableDeclarations{HasAuthorizer: true}, entry.FailurePolicy)
		require.Empty(t, errs, name)
	}
}

// eachPolicy calls a function with each policy of the manifests.
func eachPolicy(t *testing.T, check func(*admissionregistrationv1.ValidatingAdmissionPolicy)) {
	t.Helper()
	for _, pattern := range []string{"policies/*.yaml", "components/*/policies.yaml", "static/validating/*.yaml", "../rbac/protector.yaml", "../rollout/*policy.yaml"} {
		for _, policy := range loadPolicies(t, pattern) {
			check(policy)
		}
	}
}
