package replicasprotection

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/fake"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"
)

func version(name, spec, status string) apiextensionsv1.CustomResourceDefinitionVersion {
	v := apiextensionsv1.CustomResourceDefinitionVersion{Name: name}
	if spec != "" {
		v.Subresources = &apiextensionsv1.CustomResourceSubresources{Scale: &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: spec, StatusReplicasPath: status}}
	}
	return v
}

// lookup returns one that finds shops with these versions, and plain things without replicas; a
// definition of broken ones cannot be read.
func lookup(versions ...apiextensionsv1.CustomResourceDefinitionVersion) Lookup {
	definition := func(name string, versions ...apiextensionsv1.CustomResourceDefinitionVersion) *apiextensionsv1.CustomResourceDefinition {
		return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: apiextensionsv1.CustomResourceDefinitionSpec{Versions: versions}}
	}
	client := fake.NewClientset(definition("shops.example.com", versions...), definition("plain.example.com", version("v1", "", "")))
	client.PrependReactor("get", "customresourcedefinitions", func(action clienttesting.Action) (bool, runtime.Object, error) {
		return action.(clienttesting.GetAction).GetName() == "broken.example.com", nil, errors.New("timeout")
	})
	return Lookup{client.ApiextensionsV1().CustomResourceDefinitions()}
}

func TestPaths(t *testing.T) {
	lookup := lookup(version("v1", "", ""), version("v2", ".spec.size.tills", ".status.tills"), version("v3", "..x", ".status.tills"))
	tests := []struct {
		name      string
		resource  schema.GroupVersionResource
		want      Paths
		wantFound bool
		wantErr   string
	}{
		{"a built-in workload", schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, BuiltIn, true, ""},
		{"a built-in kind without replicas", schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, Paths{}, false, ""},
		{"a custom kind", schema.GroupVersionResource{Group: "example.com", Version: "v2", Resource: "shops"}, Paths{Spec: []string{"spec", "size", "tills"}, Status: []string{"status", "tills"}}, true, ""},
		{"a version without a scale subresource, next to one that has it", schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "shops"}, Paths{Spec: []string{"spec", "size", "tills"}, Status: []string{"status", "tills"}}, true, ""},
		{"no version with a scale subresource", schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "plain"}, Paths{}, false, ""},
		{"a kind that no definition is for", schema.GroupVersionResource{Group: "other.example.com", Version: "v1", Resource: "things"}, Paths{}, false, ""},
		{"a path that is none", schema.GroupVersionResource{Group: "example.com", Version: "v3", Resource: "shops"}, Paths{}, false, `CustomResourceDefinition shops.example.com: specReplicasPath: "..x" is not a path of fields`},
		{"a definition that cannot be read", schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "broken"}, Paths{}, false, "get CustomResourceDefinition broken.example.com: timeout"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, found, err := lookup.Paths(t.Context(), test.resource)
			if test.wantErr != "" {
				require.EqualError(t, err, test.wantErr)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.wantFound, found)
			require.Equal(t, test.want, got)
		})
	}
}

func TestNumbers(t *testing.T) {
	object := map[string]any{"spec": map[string]any{"replicas": int64(3)}, "status": map[string]any{"replicas": "many"}}
	desired, err := BuiltIn.Desired(object)
	require.NoError(t, err)
	require.Equal(t, int64(3), desired)
	_, err = BuiltIn.Observed(object)
	require.EqualError(t, err, "status.replicas is a string and not a number")
	desired, err = BuiltIn.Desired(map[string]any{})
	require.NoError(t, err)
	require.Equal(t, int64(1), desired)
}
