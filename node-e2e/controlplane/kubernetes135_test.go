package controlplane

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"kubelet-guard.io/node-e2e/framework/webhookinstall"
)

// servedBy135 has the kinds that the API server of Kubernetes 1.35 serves without any flag, as
// far as the manifests have objects of the group. They are those that
// k8s.io/api v0.35.4 registers in <group>/<version>/register.go and that pkg/controlplane/instance.go
// of v1.35.4 turns on; it turns beta versions off, so that MutatingAdmissionPolicy is not among
// them. Those of the Prometheus operator and of cert-manager do not depend on Kubernetes' version.
var servedBy135 = map[string][]string{
	"v1":                              {"ConfigMap", "Namespace", "Secret", "Service", "ServiceAccount"},
	"admissionregistration.k8s.io/v1": {"MutatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration"},
	"apiextensions.k8s.io/v1":         {"CustomResourceDefinition"},
	"apps/v1":                         {"ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"},
	"policy/v1":                       {"PodDisruptionBudget"},
	"rbac.authorization.k8s.io/v1":    {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
}

// objects builds a folder as kubectl does: each object by apiVersion, kind and name.
func objects(t *testing.T, dir string) map[[3]string]map[string]any {
	t.Helper()
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	require.NoError(t, err)
	all := map[[3]string]map[string]any{}
	for _, resource := range result.Resources() {
		content, err := resource.Map()
		require.NoError(t, err)
		all[[3]string{resource.GetApiVersion(), resource.GetKind(), resource.GetName()}] = content
	}
	return all
}

func requireServedBy135(t *testing.T, all map[[3]string]map[string]any) {
	t.Helper()
	require.NotEmpty(t, all)
	for key := range all {
		require.Contains(t, servedBy135[key[0]], key[1], "%s %s", key[0], key[2])
	}
}

// What the component adds and deletes, and that it changes nothing else.
func TestOverlaysForKubernetes135(t *testing.T) {
	// kustomize follows links before it follows the relative path in the overlay.
	parent, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	manifests, err := filepath.Abs(filepath.Join("..", "..", "manifests"))
	require.NoError(t, err)
	for _, base := range []string{overlayAudit, overlayCanary, overlayEnforce} {
		t.Run(base, func(t *testing.T) {
			dir := filepath.Join(parent, base)
			require.NoError(t, webhookinstall.Overlay{Manifests: manifests, Base: base, Components: []string{"kubernetes-1.35"}}.Write(dir))
			got := objects(t, dir)
			requireServedBy135(t, got)

			want := objects(t, filepath.Join(manifests, overlays+base))
			const version, added, missing = "admissionregistration.k8s.io/v1", "no-default.protection.kubelet-guard.io", "default.protection.kubelet-guard.io"
			for _, kind := range []string{"MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"} {
				require.Contains(t, want, [3]string{version, kind, missing})
				delete(want, [3]string{version, kind, missing})
			}
			for _, kind := range []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"} {
				key := [3]string{version, kind, added}
				require.Contains(t, got, key)
				require.Equal(t, map[string]any{"name": added, "labels": map[string]any{
					"app.kubernetes.io/part-of": "kubelet-guard", "kubelet-guard.io/deletion-protection": "always"}}, got[key]["metadata"])
				if kind == "ValidatingAdmissionPolicyBinding" {
					require.Equal(t, map[string]any{"policyName": added, "validationActions": []any{"Warn", "Audit"}}, got[key]["spec"], "it refuses nothing")
				}
				delete(got, key)
			}
			require.Equal(t, want, got, "everything else is the overlay's")
		})
	}
}

func TestTheRestNeedsNothingNewerThanKubernetes135(t *testing.T) {
	for _, folder := range []string{"", "rollout", "monitoring/grafana"} {
		t.Run(folder, func(t *testing.T) {
			requireServedBy135(t, objects(t, filepath.Join("..", "..", "manifests", folder)))
		})
	}
}
