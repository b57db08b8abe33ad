package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupName is the API group of all objects, and the domain of all labels and
// annotations.
const GroupName = "kubelet-guard.io"

// GroupVersion of the types of this package.
var GroupVersion = schema.GroupVersion{Group: GroupName, Version: "v1alpha1"}

var schemeBuilder = runtime.NewSchemeBuilder(func(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion,
		&NodeDeletionPolicy{}, &NodeDeletionPolicyList{},
		&OperationWindow{}, &OperationWindowList{},
		&PodDeletion{}, &PodDeletionList{},
	)
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
})

// AddToScheme adds the types of this package to the scheme.
var AddToScheme = schemeBuilder.AddToScheme

// Resource returns the group and the resource of the name.
func Resource(name string) schema.GroupResource {
	return GroupVersion.WithResource(name).GroupResource()
}
