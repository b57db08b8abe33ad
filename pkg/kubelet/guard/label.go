package guard

const (
	// ExplicitDeletionLabel with the value ExplicitDeletionRequired is the default pod
	// selector. This package is the home of both: it is part of the Kubernetes tree and
	// imports nothing of this module. pkg/apis/guard/v1alpha1 repeats them, and its test
	// compares both.
	ExplicitDeletionLabel = "kubelet-guard.io/explicit-deletion"
	// ExplicitDeletionRequired is the value of ExplicitDeletionLabel that protects a pod.
	ExplicitDeletionRequired = "required"
)
