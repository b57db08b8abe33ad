package restore

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"

	"kubelet-guard.io/pkg/dataprotection/objects"
)

// definitionFolder is where definitions are below the prefix of etcd.
const definitionFolder = "apiextensions.k8s.io/customresourcedefinitions/"

// Selector names what to restore. Exactly one form is set: a definition with all its custom
// resources, a namespace with all in it, an object with what it owns, or a key.
type Selector struct {
	Definition string
	Namespace  string
	// Kind is that of an object, in lower case: a kind or a plural, or a plural with its group.
	Kind, Name, InNamespace string
	Key                     string
}

// shortNames are those of kubectl for kinds that are restored by themselves.
var shortNames = map[string]string{
	"cm": "configmap", "cj": "cronjob", "crd": "customresourcedefinition", "crds": "customresourcedefinition", "deploy": "deployment",
	"ds": "daemonset", "hpa": "horizontalpodautoscaler", "ing": "ingress", "netpol": "networkpolicy", "no": "node",
	"ns": "namespace", "pc": "priorityclass", "pdb": "poddisruptionbudget", "po": "pod", "pv": "persistentvolume",
	"pvc": "persistentvolumeclaim", "quota": "resourcequota", "rc": "replicationcontroller", "rs": "replicaset", "sa": "serviceaccount",
	"sc": "storageclass", "sts": "statefulset", "svc": "service",
}

// ParseSelector reads KIND/NAME. A kind may be given as kubectl takes it: deployment,
// deployments, deployments.apps, deploy. namespace is that of namespaced objects.
func ParseSelector(text, namespace string) (Selector, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok || kind == "" || name == "" || strings.Contains(name, "/") {
		return Selector{}, fmt.Errorf("%q is not KIND/NAME, as crd/machines.example.com, namespace/shop or deployment/web", text)
	}
	kind = strings.ToLower(kind)
	if long, short := shortNames[kind]; short {
		kind = long
	}
	switch kind {
	case "customresourcedefinition", "customresourcedefinitions", "customresourcedefinitions.apiextensions.k8s.io":
		return Selector{Definition: name}, nil
	case "namespace", "namespaces":
		return Selector{Namespace: name}, nil
	}
	return Selector{Kind: kind, Name: name, InNamespace: namespace}, nil
}

// String is the selector as an administrator gives it.
func (s Selector) String() string {
	switch {
	case s.Definition != "":
		return "crd/" + s.Definition
	case s.Namespace != "":
		return "namespace/" + s.Namespace
	case s.Key != "":
		return "--key=" + s.Key
	}
	return s.Kind + "/" + s.Name
}

// container returns the key of the object whose deletion took the others with it; "" for
// selectors without.
func (s Selector) container(prefix string) string {
	switch {
	case s.Definition != "":
		return prefix + definitionFolder + s.Definition
	case s.Namespace != "":
		return prefix + "namespaces/" + s.Namespace
	}
	return ""
}

// matchesKey reports whether a key can hold a selected object, without its value.
func (s Selector) matchesKey(prefix, key string) bool {
	switch {
	case s.Key != "":
		return key == s.Key
	case key == s.container(prefix):
		return true
	case s.Definition != "":
		plural, group, _ := strings.Cut(s.Definition, ".")
		return strings.HasPrefix(key, prefix+group+"/"+plural+"/")
	case s.Namespace != "":
		return strings.Contains(key, "/"+s.Namespace+"/")
	}
	return strings.HasSuffix(key, "/"+s.Name)
}

// matches reports whether an object whose key matches is selected.
func (s Selector) matches(o *objects.Object, prefix string) bool {
	switch {
	case s.Key != "", s.Definition != "", o.Key == s.container(prefix):
		return true
	case s.Namespace != "":
		return o.Namespace == s.Namespace
	case o.Name != s.Name || (o.Namespace != "" && o.Namespace != s.InNamespace):
		return false
	}
	plural, singular := meta.UnsafeGuessKindToResource(o.GroupVersionKind)
	return s.Kind == singular.Resource || s.Kind == plural.Resource || s.Kind == plural.GroupResource().String()
}

// errNothingSelected is for selectors that match nothing.
var errNothingSelected = errors.New("nothing in the history matches")
