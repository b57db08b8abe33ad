package policies

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Only the webhook's own namespace is out, so that an outage can be repaired.
func TestKubeSystemIsLikeAnyOther(t *testing.T) {
	entries := loadWebhooks(t)
	for _, name := range []string{
		"cascading-deletion.kubelet-guard.io", "replicas.kubelet-guard.io", "operation-window.kubelet-guard.io",
		"replicasets.kubelet-guard.io", "elsewhere.replicasets.kubelet-guard.io", "scale-down.kubelet-guard.io", "scale-up.kubelet-guard.io", "protection.kubelet-guard.io",
	} {
		selector := entries[name].NamespaceSelector
		require.NotNil(t, selector, name)
		require.True(t, slices.ContainsFunc(selector.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool {
			return r.Key == "kubernetes.io/metadata.name" && r.Operator == metav1.LabelSelectorOpNotIn && slices.Equal(r.Values, []string{"kubelet-guard-system"})
		}), "%s: %v", name, selector)
	}
	service := "{apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system, labels: {kubelet-guard.io/deletion-protection: cascading}}}"
	require.True(t, entries.calls(t, "cascading-deletion.kubelet-guard.io", review{resource: "services", old: service}))
}
