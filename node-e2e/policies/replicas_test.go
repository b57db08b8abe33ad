package policies

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
		"a ReplicaSet, by somebody":                           {"replicasets.apps", "ReplicaSet", ofADeployment, "jane", true},
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
