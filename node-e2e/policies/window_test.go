package policies

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWindowsLetOnlyTheDeploymentControllerPass(t *testing.T) {
	entries := loadWebhooks(t)
	const controller = "system:serviceaccount:kube-system:deployment-controller"
	workload := func(kind, owner, replicas string) string {
		return "{apiVersion: apps/v1, kind: " + kind + ", metadata: {name: web, namespace: shop, ownerReferences: [" + owner + "]}, spec: {replicas: " + replicas + "}}"
	}
	const (
		deployment = "{apiVersion: apps/v1, kind: Deployment, name: web, controller: true}"
		configMap  = "{apiVersion: v1, kind: ConfigMap, name: kube-root-ca.crt, controller: true}"
		operator   = "{apiVersion: db.example.com/v1, kind: Database, name: main, controller: true}"
	)
	for name, test := range map[string]struct {
		resource, kind, owner, user string
		want                        bool
	}{
		"a roll-out":                         {"replicasets.apps", "ReplicaSet", deployment, controller, false},
		"a controller manager with one name": {"replicasets.apps", "ReplicaSet", deployment, "system:kube-controller-manager", false},
		"a ReplicaSet by someone else":       {"replicasets.apps", "ReplicaSet", deployment, "jane", true},
		"a bare ReplicaSet":                  {"replicasets.apps", "ReplicaSet", "", controller, true},
		"a Deployment with an owner":         {"deployments.apps", "Deployment", configMap, "jane", true},
		"a StatefulSet of an operator":       {"statefulsets.apps", "StatefulSet", operator, "system:serviceaccount:db:operator", true},
		"a StatefulSet of a Deployment":      {"statefulsets.apps", "StatefulSet", deployment, controller, true},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, entries.calls(t, "operation-window.kubelet-guard.io", review{
				resource: test.resource, old: workload(test.kind, test.owner, "1"), new: workload(test.kind, "", "2"), user: test.user,
				namespace: map[string]string{"kubelet-guard.io/operation-windows": "enforced"},
			}))
		})
	}
}
