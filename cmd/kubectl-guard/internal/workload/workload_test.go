package workload

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

func object(spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"kind": "Thing", "metadata": map[string]any{"name": "web"}, "spec": spec}}
}

func TestSelector(t *testing.T) {
	for name, test := range map[string]struct {
		spec map[string]any
		want string
	}{
		"of a Deployment":            {map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": "web"}}}, "app=web"},
		"with expressions":           {map[string]any{"selector": map[string]any{"matchExpressions": []any{map[string]any{"key": "app", "operator": "Exists"}}}}, "app"},
		"of a ReplicationController": {map[string]any{"selector": map[string]any{"app": "web"}}, "app=web"},
		"of a CronJob":               {map[string]any{}, ""},
		"that is something else":     {map[string]any{"selector": "app"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			selector, err := Selector(object(test.spec))
			require.NoError(t, err)
			require.Equal(t, test.want, selector.String())
			require.True(t, selector.Matches(labels.Set{"app": "web"}))
		})
	}
	_, err := Selector(object(map[string]any{"selector": map[string]any{"matchExpressions": []any{map[string]any{"key": "app", "operator": "Almost"}}}}))
	require.ErrorContains(t, err, "spec.selector of Thing web")
}

func TestTemplateLabels(t *testing.T) {
	template := map[string]any{"metadata": map[string]any{"labels": map[string]any{"app": "web"}}}
	set, path, ok := TemplateLabels(object(map[string]any{"template": template}))
	require.True(t, ok)
	require.Equal(t, map[string]string{"app": "web"}, set)
	require.Equal(t, []string{"spec", "template", "metadata", "labels"}, path)

	_, path, ok = TemplateLabels(object(map[string]any{"jobTemplate": map[string]any{"spec": map[string]any{"template": template}}}))
	require.True(t, ok)
	require.Equal(t, []string{"spec", "jobTemplate", "spec", "template", "metadata", "labels"}, path)

	_, _, ok = TemplateLabels(object(map[string]any{}))
	require.False(t, ok)
}
