package policies

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a Service or a pod template is labelled, its children are too.
func TestCopiesOfLabelsAreLeftAlone(t *testing.T) {
	all, entries := loadPolicies(t, "policies/*.yaml"), loadWebhooks(t)
	for resource, kind := range map[string][2]string{
		"endpoints":                       {"v1", "Endpoints"},
		"endpointslices.discovery.k8s.io": {"discovery.k8s.io/v1", "EndpointSlice"},
		"controllerrevisions.apps":        {"apps/v1", "ControllerRevision"},
	} {
		t.Run(resource, func(t *testing.T) {
			labelled := func(label, value string) string {
				return fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {name: web-1, namespace: shop, labels: {kubelet-guard.io/%s: %s}, annotations: {kubelet-guard.io/override: x}}}", kind[0], kind[1], label, value)
			}
			refusal, _ := all.refusal(t, "always.deletion.kubelet-guard.io", review{resource: resource, old: labelled("deletion-protection", "always")})
			require.Empty(t, refusal)
			for _, entry := range []string{"cascading-deletion.kubelet-guard.io", "deletion.override.kubelet-guard.io"} {
				require.False(t, entries.calls(t, entry, review{resource: resource, old: labelled("deletion-protection", "cascading")}), entry)
			}
			for policy, label := range map[string]string{"deletion-protection.labels.kubelet-guard.io": "deletion-protection", "replicas-protection.labels.kubelet-guard.io": "replicas-protection"} {
				refusal, _ = all.refusal(t, policy, review{resource: resource, new: labelled(label, "Always")})
				require.Empty(t, refusal, "a Service that had a wrong label before keeps its endpoints")
			}
		})
	}
	t.Run("their parents are not", func(t *testing.T) {
		service := "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop, labels: {kubelet-guard.io/deletion-protection: VALUE}}}"
		refusal, _ := all.refusal(t, "always.deletion.kubelet-guard.io", review{resource: "services", old: strings.ReplaceAll(service, "VALUE", "always")})
		require.Contains(t, refusal, "services web was not deleted")
		require.True(t, entries.calls(t, "cascading-deletion.kubelet-guard.io", review{resource: "services", old: strings.ReplaceAll(service, "VALUE", "cascading")}))
	})
}
