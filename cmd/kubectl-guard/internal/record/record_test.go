package record

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

func clientFor(t *testing.T, response http.HandlerFunc) Client {
	server := httptest.NewServer(response)
	t.Cleanup(server.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	require.NoError(t, err)
	return Client{Kube: client}
}

func TestFindDistinguishesAMissingRecordFromAMissingDefinition(t *testing.T) {
	none := clientFor(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404,"message":"not found","details":{"name":"u","group":"kubelet-guard.io","kind":"poddeletions"}}`))
	})
	found, err := none.Find(context.Background(), "u")
	require.NoError(t, err)
	require.Nil(t, found)

	undefined := clientFor(t, http.NotFound)
	_, err = undefined.Find(context.Background(), "u")
	require.ErrorIs(t, err, ErrNoDefinition)
	_, err = undefined.Create(context.Background(), New("u", Spec{}), false)
	require.ErrorIs(t, err, ErrNoDefinition)

	broken := clientFor(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) })
	_, err = broken.Find(context.Background(), "u")
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNoDefinition)
}

// TestSchemaHasTheFieldsOfSpec keeps the Go type and the definition together.
func TestSchemaHasTheFieldsOfSpec(t *testing.T) {
	text, err := os.ReadFile("../../../../manifests/crds/kubelet-guard.io_poddeletions.yaml")
	require.NoError(t, err)
	var definition struct {
		Spec struct {
			Group    string
			Names    struct{ Plural, Kind string }
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema struct {
						Properties map[string]struct {
							Properties map[string]struct{ Type, Description string }
						}
					}
				}
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &definition))
	require.Equal(t, Resource.Group, definition.Spec.Group)
	require.Equal(t, Resource.Resource, definition.Spec.Names.Plural)
	require.Equal(t, Kind, definition.Spec.Names.Kind)
	require.Equal(t, Resource.Version, definition.Spec.Versions[0].Name)

	written, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&Spec{Namespace: "n", Name: "p", NodeName: "w", Reason: "r", RequestedBy: "b", Expires: Expiry(time.Now(), time.Hour)})
	require.NoError(t, err)
	defined := definition.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties
	for field, value := range written {
		require.IsType(t, "", value)
		require.Equal(t, "string", defined[field].Type, "spec.%s", field)
	}
	require.Len(t, defined, len(written))
	for field, schema := range defined {
		require.True(t, strings.HasSuffix(schema.Description, "."), "spec.%s has a description", field)
	}
}
