package policies

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLabelOfAPodComesOff(t *testing.T) {
	all, entries := loadPolicies(t, "policies/*.yaml"), loadWebhooks(t)
	const (
		label   = "labels: {kubelet-guard.io/explicit-deletion: required}"
		running = "containerStatuses: [{name: c, state: {running: {}}}]"
		ended   = "containerStatuses: [{name: c, state: {terminated: {exitCode: 1}}}]"
	)
	pod := func(metadata, spec, status string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, " + metadata + "}, spec: {" + spec + "}, status: {" + status + "}}"
	}
	for name, test := range map[string]struct {
		grant, spec, status, metadata string
		want                          string
	}{
		"running":                               {"allowed", "nodeName: n", "phase: Running, " + running, label, "pod web keeps the label kubelet-guard.io/explicit-deletion: without it, its node may stop it"},
		"starting":                              {"allowed", "nodeName: n", "phase: Pending", label, "without it, its node may stop it"},
		"failed, and its containers run":        {"allowed", "nodeName: n", "phase: Failed, " + running, label, "without it, its node may stop it"},
		"succeeded, and an init container runs": {"allowed", "nodeName: n", "phase: Succeeded, initContainerStatuses: [{name: i, state: {running: {}}}]", label, "without it, its node may stop it"},
		"failed":                                {"allowed", "nodeName: n", "phase: Failed, " + ended, label, ""},
		"failed before it started":              {"allowed", "nodeName: n", "phase: Failed", label, ""},
		"on no node":                            {"allowed", "", "phase: Pending", label, ""},
		"on no node, with the label by default": {"default", "", "phase: Pending", label, "pod web keeps the label kubelet-guard.io/explicit-deletion: namespace shop gives it to all of its pods"},
		"on no node and failed":                 {"default", "", "phase: Failed", label, ""},
		"terminating":                           {"default", "nodeName: n", "phase: Running, " + running, label + `, deletionTimestamp: "2026-05-04T10:00:00Z"`, ""},
		"a mirror pod":                          {"default", "nodeName: n", "phase: Running, " + running, label + ", annotations: {kubernetes.io/config.mirror: x}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, resource := range []string{"pods", "pods/status"} {
				change := review{resource: resource, namespace: map[string]string{"kubelet-guard.io/protect-pods": test.grant},
					old: pod(test.metadata, test.spec, test.status), new: pod("", test.spec, test.status)}
				refusal, _ := all.refusal(t, "removal.protection.kubelet-guard.io", change)
				if test.want == "" {
					require.Empty(t, refusal)
					continue
				}
				require.Contains(t, refusal, test.want)
				change.new = pod("annotations: {kubelet-guard.io/override: x}", test.spec, test.status)
				require.True(t, entries.calls(t, "protection.override.kubelet-guard.io", change), "what the policy leaves to the webhook reaches it")
			}
		})
	}
}

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

// On Kubernetes 1.35 nothing labels pods by default.
func TestWarningOfADefaultThatIsNotSet(t *testing.T) {
	all := loadPolicies(t, "components/kubernetes-1.35/policies.yaml")
	namespace := func(grant string) string {
		return "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {a: b" + grant + "}}}"
	}
	const byDefault, allowed = ", kubelet-guard.io/protect-pods: default", ", kubelet-guard.io/protect-pods: allowed"
	for name, test := range map[string]struct {
		old, new string
		warned   bool
	}{
		"created":            {"", namespace(byDefault), true},
		"labelled":           {namespace(""), namespace(byDefault), true},
		"changed":            {namespace(allowed), namespace(byDefault), true},
		"has it already":     {namespace(byDefault), namespace(byDefault), false},
		"loses it":           {namespace(byDefault), namespace(""), false},
		"with another value": {namespace(""), namespace(allowed), false},
		"without a label":    {"", namespace(""), false},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := all.refusal(t, "no-default.protection.kubelet-guard.io", review{resource: "namespaces", old: test.old, new: test.new})
			if !test.warned {
				require.Empty(t, got)
				return
			}
			require.Equal(t, "pods of namespace shop do not get the label kubelet-guard.io/explicit-deletion: for kubelet-guard.io/protect-pods=default"+
				" the API server must be Kubernetes 1.36 or newer. Add kubelet-guard.io/explicit-deletion=required to the pod templates of its workloads", got)
		})
	}
}
