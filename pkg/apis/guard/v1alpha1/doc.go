// Package v1alpha1 holds the API of Kubelet Guard's control plane: the objects of
// the group kubelet-guard.io, and every label and annotation that its policies and
// its webhook read.
//
// manifests/crds is generated from these types, validation included; write a rule
// into a marker here, never into a file there. The package imports apimachinery
// only, so that clients can use the types at no price.
//
// +kubebuilder:object:generate=true
// +groupName=kubelet-guard.io
package v1alpha1

//go:generate go tool controller-gen object paths=.
//go:generate go tool controller-gen crd:generateEmbeddedObjectMeta=false paths=. output:crd:dir=../../../../manifests/crds
