package policies

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWrongValuesOfLabelsByEveryWay(t *testing.T) {
	all := loadPolicies(t, "policies/*.yaml")
	service := func(metadata string) string {
		return "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop, " + metadata + "}}"
	}
	namespace := func(metadata string) string {
		return "{apiVersion: v1, kind: Namespace, metadata: {name: shop, " + metadata + "}}"
	}
	for policy, test := range map[string]struct {
		key    string
		object func(string) string
		ways   []string
	}{
		"deletion-protection.labels.kubelet-guard.io": {"deletion-protection", service, []string{"services", "services/status"}},
		"replicas-protection.labels.kubelet-guard.io": {"replicas-protection", service, []string{"services", "services/status"}},
		"protect-pods.labels.kubelet-guard.io":        {"protect-pods", namespace, []string{"namespaces", "namespaces/status", "namespaces/finalize"}},
		"operation-windows.labels.kubelet-guard.io":   {"operation-windows", namespace, []string{"namespaces", "namespaces/status", "namespaces/finalize"}},
		"scale-review.labels.kubelet-guard.io":        {"scale-review", namespace, []string{"namespaces", "namespaces/status", "namespaces/finalize"}},
	} {
		for _, way := range test.ways {
			wrong := test.object("labels: {kubelet-guard.io/" + test.key + ": wrong}")
			refusal, _ := all.refusal(t, policy, review{resource: way, old: test.object(""), new: wrong})
			require.Contains(t, refusal, `is "wrong", which`, "%s by %s", policy, way)
			refusal, _ = all.refusal(t, policy, review{resource: way, old: wrong, new: wrong})
			require.Empty(t, refusal, "%s by %s: it has the label already", policy, way)
		}
	}
}

func TestDeletionProtectionOfPods(t *testing.T) {
	all := loadPolicies(t, "policies/*.yaml")
	pod := func(metadata string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, " + metadata + "}}"
	}
	const label = "labels: {kubelet-guard.io/deletion-protection: always}"
	const refusal = "pod web was not accepted: metadata.labels[kubelet-guard.io/deletion-protection] does not keep it from being evicted in namespace shop"
	for name, test := range map[string]struct {
		old, new, grant string
		want            string
	}{
		"created":                    {"", pod(label), "", refusal},
		"labelled later":             {pod(""), pod(label), "", refusal},
		"has it already":             {pod(label), pod(label), "", ""},
		"in a namespace that grants": {"", pod(label), "allowed", ""},
		"of a controller":            {"", pod(join(label, ofAnOperator)), "", ""},
		"a mirror pod":               {"", pod(label + ", annotations: {kubernetes.io/config.mirror: x}"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := all.refusal(t, "pods.labels.kubelet-guard.io", review{resource: "pods", old: test.old, new: test.new, namespace: map[string]string{"kubelet-guard.io/protect-pods": test.grant}})
			if test.want == "" {
				require.Empty(t, got)
				return
			}
			require.Contains(t, got, test.want)
			require.Contains(t, got, "kubelet-guard.io/explicit-deletion=required")
		})
	}
}
