package policies

import (
	"testing"

	"github.com/stretchr/testify/require"
)

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
