package replicasprotection

import (
	"context"
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Paths is where the replicas of a kind are, as fields from the root: those of the built-in
// workloads in spec.replicas and status.replicas, those of custom kinds where their definition
// has them.
type Paths struct {
	Spec, Status []string
	// Default is the number that an object without the field in its spec has.
	Default int64
}

// BuiltIn are the paths of the workloads of Kubernetes.
var BuiltIn = Paths{Spec: []string{"spec", "replicas"}, Status: []string{"status", "replicas"}, Default: 1}

// builtIn are the resources that BuiltIn is for.
var builtIn = map[schema.GroupResource]bool{
	{Group: "apps", Resource: "deployments"}:  true,
	{Group: "apps", Resource: "statefulsets"}: true,
	{Group: "apps", Resource: "replicasets"}:  true,
	{Resource: "replicationcontrollers"}:      true,
}

// IsBuiltIn reports whether the resource is a workload of Kubernetes with replicas.
func IsBuiltIn(resource schema.GroupResource) bool { return builtIn[resource] }

// Lookup finds out where kinds have their replicas, custom ones by their definition.
type Lookup struct {
	Definitions apiextensions.CustomResourceDefinitionInterface
}

// Paths returns where the resource has its replicas, false when it has none.
func (l Lookup) Paths(ctx context.Context, resource schema.GroupVersionResource) (Paths, bool, error) {
	if IsBuiltIn(resource.GroupResource()) {
		return BuiltIn, true, nil
	}
	// Groups without a dot are Kubernetes' own; none of the others has replicas.
	if !strings.Contains(resource.Group, ".") {
		return Paths{}, false, nil
	}
	name := resource.GroupResource().String()
	definition, err := l.Definitions.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return Paths{}, false, nil
	case err != nil:
		return Paths{}, false, fmt.Errorf("get CustomResourceDefinition %s: %w", name, err)
	}
	return Defined(definition, resource.Version)
}

// Defined returns the paths of a version of the definition, false when no version has a
// scale subresource. Those of another version count where that one has none: a client
// chooses the version of its request, and the replicas are the same.
func Defined(definition *apiextensionsv1.CustomResourceDefinition, version string) (Paths, bool, error) {
	var subresource *apiextensionsv1.CustomResourceSubresourceScale
	for _, v := range definition.Spec.Versions {
		if v.Subresources == nil || v.Subresources.Scale == nil {
			continue
		}
		if subresource == nil || v.Name == version {
			subresource = v.Subresources.Scale
		}
	}
	if subresource == nil {
		return Paths{}, false, nil
	}
	spec, err := fields(subresource.SpecReplicasPath)
	if err != nil {
		return Paths{}, false, fmt.Errorf("CustomResourceDefinition %s: specReplicasPath: %w", definition.Name, err)
	}
	status, err := fields(subresource.StatusReplicasPath)
	if err != nil {
		return Paths{}, false, fmt.Errorf("CustomResourceDefinition %s: statusReplicasPath: %w", definition.Name, err)
	}
	return Paths{Spec: spec, Status: status}, true, nil
}

// fields splits a path such as .spec.replicas. The API server lets no array notation
// into a definition.
func fields(path string) ([]string, error) {
	parts := strings.Split(strings.TrimPrefix(path, "."), ".")
	for _, part := range parts {
		if part == "" {
			return nil, fmt.Errorf("%q is not a path of fields", path)
		}
	}
	return parts, nil
}

// Desired returns the replicas in the spec of the object.
func (p Paths) Desired(object map[string]any) (int64, error) {
	return number(object, p.Spec, p.Default)
}

// Observed returns the replicas in the status of the object.
func (p Paths) Observed(object map[string]any) (int64, error) {
	return number(object, p.Status, 0)
}

func number(object map[string]any, path []string, missing int64) (int64, error) {
	value, found, err := unstructured.NestedFieldNoCopy(object, path...)
	switch {
	case err != nil:
		return 0, err
	case !found || value == nil:
		return missing, nil
	}
	switch n := value.(type) {
	case int64:
		return n, nil
	case float64:
		return int64(n), nil
	}
	return 0, fmt.Errorf("%s is a %T and not a number", strings.Join(path, "."), value)
}
