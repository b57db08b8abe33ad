package policies

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"
)

const (
	ofADeployment = "ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]"
	ofAnOperator  = "ownerReferences: [{apiVersion: db.example.com/v1, kind: Database, name: db, uid: u, controller: true}]"
	confirm       = "labels: {kubelet-guard.io/replicas-protection: confirm}"

	deploymentController = "system:serviceaccount:kube-system:deployment-controller"
)

// workload is one in YAML.
func workload(kind, metadata, spec string) string {
	return "{apiVersion: apps/v1, kind: " + kind + ", metadata: {name: web, namespace: shop, " + metadata + "}, spec: {" + spec + "}}"
}

// join puts the fields of an object together.
func join(fields ...string) string { return strings.Trim(strings.Join(fields, ", "), ", ") }

func TestOnlyTheDeploymentControllerNeedsNoConfirmation(t *testing.T) {
	all, entries := loadPolicies(t, "policies/*.yaml"), loadWebhooks(t)
	for name, test := range map[string]struct {
		resource, kind, owner, user string
		want                        bool
	}{
		"a Deployment":                                        {"deployments.apps", "Deployment", "", "jane", true},
		"an operator's StatefulSet":                           {"statefulsets.apps", "StatefulSet", ofAnOperator, "system:serviceaccount:db:operator", true},
		"a ReplicaSet, by someone":                            {"replicasets.apps", "ReplicaSet", ofADeployment, "jane", true},
		"a ReplicaSet, by its controller":                     {"replicasets.apps", "ReplicaSet", ofADeployment, deploymentController, false},
		"a ReplicaSet, by a controller manager with one name": {"replicasets.apps", "ReplicaSet", ofADeployment, "system:kube-controller-manager", false},
		"a bare ReplicaSet, by that controller":               {"replicasets.apps", "ReplicaSet", "", deploymentController, true},
	} {
		t.Run(name, func(t *testing.T) {
			change := review{resource: test.resource, user: test.user,
				old: workload(test.kind, join(confirm, test.owner), "replicas: 3"), new: workload(test.kind, confirm, "replicas: 5")}
			refusal, _ := all.refusal(t, "update.replicas.kubelet-guard.io", change)
			require.Equal(t, test.want, refusal != "", refusal)
			change.new = workload(test.kind, join(confirm, "annotations: {kubelet-guard.io/override: x}"), "replicas: 5")
			require.Equal(t, test.want, entries.calls(t, "replicas.override.kubelet-guard.io", change))
		})
	}
	t.Run("a custom kind with an owner reaches the webhook", func(t *testing.T) {
		fleet := func(replicas string) string {
			return "{apiVersion: example.com/v1, kind: Fleet, metadata: {name: north, namespace: shop, " + confirm + ", " + ofAnOperator + "}, spec: {replicas: " + replicas + "}}"
		}
		require.True(t, entries.calls(t, "replicas.kubelet-guard.io", review{resource: "fleets.example.com", old: fleet("1"), new: fleet("2")}))
	})
	t.Run("through /scale", func(t *testing.T) {
		scale := func(replicas string) string {
			return "{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: web, namespace: shop}, spec: {replicas: " + replicas + "}}"
		}
		change := review{resource: "statefulsets.apps/scale", old: scale("3"), new: scale("0")}
		for parent, want := range map[string]string{
			workload("StatefulSet", join(confirm, ofAnOperator), "replicas: 3"):                                              "nothing confirms the change",
			workload("StatefulSet", join(confirm, `annotations: {kubelet-guard.io/confirm-replicas: "0-3"}`), "replicas: 3"): "",
			strings.ReplaceAll(workload("StatefulSet", confirm, "replicas: 3"), "name: web", "name: other"):                  "",
		} {
			refusal, _ := all.refusal(t, "statefulsets.scale.kubelet-guard.io", change, object(t, parent))
			if want == "" {
				require.Empty(t, refusal, parent)
				continue
			}
			require.Contains(t, refusal, want, parent)
		}
	})
}

func TestReplicasProtectionOfKindsWithoutReplicas(t *testing.T) {
	all := loadPolicies(t, "policies/*.yaml")
	for resource, kind := range map[string]string{"daemonsets.apps": "apps/v1, kind: DaemonSet", "jobs.batch": "batch/v1, kind: Job", "cronjobs.batch": "batch/v1, kind: CronJob"} {
		labelled := func(metadata string) string {
			return "{apiVersion: " + kind + ", metadata: {name: agent, namespace: shop, " + metadata + "}}"
		}
		refusal, _ := all.refusal(t, "kinds.labels.kubelet-guard.io", review{resource: resource, new: labelled(confirm)})
		require.Contains(t, refusal, " agent was not accepted: metadata.labels[kubelet-guard.io/replicas-protection] protects nothing on it, since the kind has no replicas", resource)
		require.Contains(t, refusal, "kubelet-guard.io/deletion-protection=cascading", resource)
		refusal, _ = all.refusal(t, "kinds.labels.kubelet-guard.io", review{resource: resource, old: labelled(""), new: labelled(confirm)})
		require.NotEmpty(t, refusal, resource)
		for name, r := range map[string]review{
			"it has the label already": {resource: resource, old: labelled(confirm), new: labelled(confirm)},
			"a controller makes it":    {resource: resource, new: labelled(join(confirm, ofAnOperator))},
		} {
			refusal, _ = all.refusal(t, "kinds.labels.kubelet-guard.io", r)
			require.Empty(t, refusal, "%s: %s", resource, name)
		}
	}
}

func TestReplicaSetsChangeWithTheirDeployment(t *testing.T) {
	all, entries := loadPolicies(t, "policies/*.yaml"), loadWebhooks(t)
	const policy = "replicasets.replicas.kubelet-guard.io"
	protects := map[string]string{"kubelet-guard.io/protect-pods": "allowed"}
	change := func(owner, before, after, user string, namespace map[string]string) review {
		return review{resource: "replicasets.apps", user: user, namespace: namespace,
			old: workload("ReplicaSet", owner, before), new: workload("ReplicaSet", "", after)}
	}
	const scaling = "replicasets.apps web was not changed: it belongs to Deployment web, and in namespace shop only the deployment controller changes it. Scale the Deployment instead: kubectl scale deployments.apps web -n shop --replicas=0"
	for name, test := range map[string]struct {
		review review
		want   string
	}{
		"scaled where pods are protected":       {change(ofADeployment, "replicas: 3", "replicas: 0", "jane", protects), scaling},
		"scaled where they are by default":      {change(ofADeployment, "replicas: 3", "replicas: 0", "jane", map[string]string{"kubelet-guard.io/protect-pods": "default"}), scaling},
		"scaled where windows are kept":         {change(ofADeployment, "replicas: 3", "replicas: 0", "jane", map[string]string{"kubelet-guard.io/operation-windows": "enforced"}), scaling},
		"changed in another way":                {change(ofADeployment, "replicas: 3", "replicas: 3, minReadySeconds: 1", "jane", protects), "replicasets.apps web was not changed: it belongs to Deployment web, and in namespace shop only the deployment controller changes it. Change the Deployment instead: kubectl edit deployments.apps web -n shop"},
		"elsewhere":                             {change(ofADeployment, "replicas: 3", "replicas: 0", "jane", nil), ""},
		"by its controller":                     {change(ofADeployment, "replicas: 3", "replicas: 0", deploymentController, protects), ""},
		"by a controller manager with one name": {change(ofADeployment, "replicas: 3", "replicas: 0", "system:kube-controller-manager", protects), ""},
		"of a controller that is no Deployment": {change(ofAnOperator, "replicas: 3", "replicas: 0", "jane", protects), ""},
		"a bare one":                            {change("", "replicas: 3", "replicas: 0", "jane", protects), ""},
		"only its metadata":                     {change(ofADeployment, "replicas: 3", "replicas: 3", "jane", protects), ""},
	} {
		t.Run(name, func(t *testing.T) {
			refusal, _ := all.refusal(t, policy, test.review)
			require.Equal(t, test.want, refusal)
		})
	}

	const garbage = "annotations: {kubelet-guard.io/override: x}"
	t.Run("with an override", func(t *testing.T) {
		annotated := change(ofADeployment, "replicas: 3", "replicas: 0", "jane", protects)
		annotated.new = workload("ReplicaSet", garbage, "replicas: 0")
		refusal, _ := all.refusal(t, policy, annotated)
		require.Contains(t, refusal, `does not count: user "jane" may not use the verb override on it`)
		annotated.override = true
		refusal, _ = all.refusal(t, policy, annotated)
		require.Empty(t, refusal)
		require.True(t, entries.calls(t, "replicasets.kubelet-guard.io", annotated), "the webhook judges its expiry")
	})
	t.Run("what reaches the webhook", func(t *testing.T) {
		scale := func(replicas string) string {
			return "{apiVersion: autoscaling/v1, kind: Scale, metadata: {name: web, namespace: shop}, spec: {replicas: " + replicas + "}}"
		}
		scaling := review{resource: "replicasets.apps/scale", old: scale("3"), new: scale("0")}
		for namespace, want := range map[string][2]bool{"allowed": {true, false}, "default": {true, false}, "": {false, true}, "wrong": {false, true}} {
			scaling.namespace = map[string]string{"kubelet-guard.io/protect-pods": namespace}
			got := [2]bool{entries.calls(t, "replicasets.kubelet-guard.io", scaling), entries.calls(t, "elsewhere.replicasets.kubelet-guard.io", scaling)}
			require.Equal(t, want, got, namespace)
		}
		require.False(t, entries.calls(t, "replicasets.kubelet-guard.io", change(ofADeployment, "replicas: 3", "replicas: 0", "jane", protects)), "the policy has refused it")
		require.False(t, entries.calls(t, "replicasets.kubelet-guard.io", change(ofADeployment, "replicas: 3", "replicas: 0", deploymentController, protects)), "an outage holds no roll-out")
	})
}

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
