package restore

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"kubelet-guard.io/pkg/dataprotection/objects"
)

func TestParseSelector(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Selector{
		"crd/widgets.example.com":                      {Definition: "widgets.example.com"},
		"CustomResourceDefinition/widgets.example.com": {Definition: "widgets.example.com"},
		"ns/shop":              {Namespace: "shop"},
		"namespaces/shop":      {Namespace: "shop"},
		"deploy/web":           {Kind: "deployment", Name: "web", InNamespace: "default"},
		"deployments.apps/web": {Kind: "deployments.apps", Name: "web", InNamespace: "default"},
	} {
		got, err := ParseSelector(text, "default")
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "web", "/web", "deploy/", "deploy/a/b"} {
		_, err := ParseSelector(text, "default")
		require.ErrorContains(t, err, "is not KIND/NAME", text)
	}
}

func TestASelectorMatches(t *testing.T) {
	t.Parallel()
	object := func(key, group, kind, namespace, name string) *objects.Object {
		return &objects.Object{Key: testPrefix + key, GroupVersionKind: schema.GroupVersionKind{Group: group, Version: "v1", Kind: kind}, Namespace: namespace, Name: name}
	}
	deployment := object("deployments/shop/web", "apps", "Deployment", "shop", "web")
	namespace := object("namespaces/shop", "", "Namespace", "", "shop")
	definition := object(definitionFolder+"widgets.example.com", "apiextensions.k8s.io", "CustomResourceDefinition", "", "widgets.example.com")
	widget := object("example.com/widgets/shop/web", "example.com", "Widget", "shop", "web")
	volume := object("persistentvolumes/web", "", "PersistentVolume", "", "web")
	all := []*objects.Object{deployment, namespace, definition, widget, volume}
	for _, test := range []struct {
		name     string
		selector Selector
		want     []*objects.Object
	}{
		{"a definition and its resources", Selector{Definition: "widgets.example.com"}, []*objects.Object{definition, widget}},
		{"another definition", Selector{Definition: "gadgets.example.com"}, nil},
		{"a namespace and what is in it", Selector{Namespace: "shop"}, []*objects.Object{deployment, namespace, widget}},
		{"a kind in its namespace", Selector{Kind: "deployment", Name: "web", InNamespace: "shop"}, []*objects.Object{deployment}},
		{"a plural with its group", Selector{Kind: "deployments.apps", Name: "web", InNamespace: "shop"}, []*objects.Object{deployment}},
		{"another namespace", Selector{Kind: "deployment", Name: "web", InNamespace: "default"}, nil},
		{"an object of no namespace", Selector{Kind: "persistentvolume", Name: "web", InNamespace: "default"}, []*objects.Object{volume}},
		{"a key", Selector{Key: testPrefix + "namespaces/shop"}, []*objects.Object{namespace}},
	} {
		var got []*objects.Object
		for _, o := range all {
			if test.selector.matchesKey(testPrefix, o.Key) && test.selector.matches(o, testPrefix) {
				got = append(got, o)
			}
		}
		require.Equal(t, test.want, got, test.name)
	}
}
