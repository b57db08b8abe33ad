package app

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/rollout"
)

// TestManifestsOfRollOutsFitTheProgram compares the names and rights in manifests with
// what the program uses.
func TestManifestsOfRollOutsFitTheProgram(t *testing.T) {
	t.Parallel()
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join("..", "..", "..", "..", "manifests", "rollout"))
	require.NoError(t, err)
	var names []string
	policy := ""
	operator := map[string][]string{}
	for _, object := range result.Resources() {
		names = append(names, object.GetKind()+" "+object.GetNamespace()+"/"+object.GetName())
		text, err := object.AsYAML()
		require.NoError(t, err)
		switch {
		case object.GetKind() == "ValidatingAdmissionPolicy":
			policy += string(text)
		case object.GetKind() == "Role" && object.GetName() == "kubelet-guard-rollout":
			var role rbacv1.Role
			require.NoError(t, yaml.UnmarshalStrict(text, &role))
			for _, rule := range role.Rules {
				for _, resource := range rule.Resources {
					operator[resource] = rule.Verbs
				}
			}
		}
	}
	require.Contains(t, names, "Namespace /"+rollout.Namespace)
	require.Contains(t, names, "ServiceAccount "+rollout.Namespace+"/"+rollout.ServiceAccount)
	for _, name := range []string{
		"system:serviceaccount:" + rollout.Namespace + ":" + rollout.ServiceAccount, rollout.StateLabel, rollout.ReportAnnotation,
	} {
		require.Contains(t, policy, "'"+name+"'")
	}
	require.ElementsMatch(t, []string{"get", "list", "create", "update", "patch", "delete"}, operator["daemonsets"])
	require.ElementsMatch(t, []string{"get", "list", "delete"}, operator["leases"])
	require.ElementsMatch(t, []string{"get", "list", "patch", "delete"}, operator["pods"], "the installer's own message advises to delete its pod")
	require.ElementsMatch(t, []string{"get"}, operator["pods/log"])
}
