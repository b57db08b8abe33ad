package policies

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Pods that guard-etcd has restored have lost their owners. The controllers of workloads that are
// applied again adopt them by an update of their owner references, which nothing may refuse or
// wait for: a controller that cannot adopt creates new pods.
func TestNothingComesBetweenAControllerAndThePodsThatItAdopts(t *testing.T) {
	all, entries := loadPolicies(t, "policies/*.yaml"), loadWebhooks(t)
	pod := func(owners string) string {
		return `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web-1, uid: u, labels: {app: web, pod-template-hash: 79fffdbf8f, kubelet-guard.io/explicit-deletion: required},
			annotations: {kubelet-guard.io/lost-owner: ReplicaSet/web-79fffdbf8f}` + owners + `}, spec: {nodeName: n1, containers: [{name: c, image: i}]}, status: {phase: ""}}`
	}
	const owner = ", ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-79fffdbf8f, uid: v, controller: true, blockOwnerDeletion: true}]"
	labels := map[string]string{
		"kubelet-guard.io/protect-pods": "allowed", "kubelet-guard.io/deletion-protection": "always",
		"kubelet-guard.io/operation-windows": "enforced", "kubelet-guard.io/scale-review": "webhook",
	}
	for _, account := range []string{"replicaset-controller", "statefulset-controller", "daemon-set-controller", "replication-controller", ""} {
		for _, granted := range []string{"allowed", "default"} {
			r := review{resource: "pods", old: pod(""), new: pod(owner), user: "system:kube-controller-manager", groups: []string{"system:authenticated"}, namespace: maps.Clone(labels)}
			if account != "" {
				r.user, r.groups = "system:serviceaccount:kube-system:"+account, []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}
			}
			r.namespace["kubelet-guard.io/protect-pods"] = granted
			for _, name := range slices.Sorted(maps.Keys(all)) {
				refusal, _ := all.refusal(t, name, r)
				require.Empty(t, refusal, "%s by %s", name, r.user)
			}
			for _, name := range slices.Sorted(maps.Keys(entries)) {
				require.False(t, entries.calls(t, name, r), "%s by %s", name, r.user)
			}
		}
	}

	// The test would see one that does: a person who also takes the label.
	person := review{resource: "pods", old: pod(""), new: `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web-1}, spec: {nodeName: n1}}`, user: "jane", namespace: labels}
	require.True(t, slices.ContainsFunc(slices.Collect(maps.Keys(all)), func(name string) bool {
		refusal, _ := all.refusal(t, name, person)
		return refusal != ""
	}))
}
