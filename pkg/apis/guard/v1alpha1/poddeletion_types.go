package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PodDeletionKind is the kind of a PodDeletion.
const PodDeletionKind = "PodDeletion"

// PodDeletionLifetime is how long a PodDeletion is kept unless its writer chooses another
// time: longer than a node is usually cut off before it is given up, a long weekend included.
const PodDeletionLifetime = 7 * 24 * time.Hour

// PodDeletion records that the deletion of one pod was requested. Its name is the
// UID of that pod. A guarded kubelet that holds a pod whose object is gone looks
// for the record of that UID, takes it as proof that the deletion is explicit, and
// terminates the pod by the ordinary path. The record has to name the pod: one whose
// namespace or name is another's proves nothing. The record of a pod that still has
// its object changes nothing: delete the pod.
//
// Cluster-scoped: a record has to outlive the namespace of its pod, and to work
// after that namespace is lost.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=pdel
// +kubebuilder:printcolumn:name=Namespace,type=string,JSONPath=`.spec.namespace`
// +kubebuilder:printcolumn:name=Pod,type=string,JSONPath=`.spec.name`
// +kubebuilder:printcolumn:name=Requested-By,type=string,JSONPath=`.spec.requestedBy`
// +kubebuilder:printcolumn:name=Reason,type=string,JSONPath=`.spec.reason`,priority=1
// +kubebuilder:printcolumn:name=Expires,type=string,JSONPath=`.spec.expires`,priority=1
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:selectablefield:JSONPath=`.spec.namespace`
// +kubebuilder:selectablefield:JSONPath=`.spec.name`
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.matches('^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')",message="metadata.name must be the UID of the pod, such as 3f0d4c1e-8d0e-4f0b-9a57-0c1f6a3b2d10; kubectl guard holds -o wide shows it"
type PodDeletion struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec PodDeletionSpec `json:"spec"`
}

// PodDeletionSpec says what was deleted, by whom and why. It cannot be changed; delete
// the record and write another.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a record cannot be changed; delete it and write another"
type PodDeletionSpec struct {
	// Namespace of the pod.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace"`

	// Name of the pod. A later pod of the same name has another UID and is not meant.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// Name of the node that the pod was bound to, as in its spec. The kubelet of that
	// node finds the record with one question about all pods that it holds; a record
	// without the name it finds later, with a question about that one pod.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName,omitempty"`

	// Why the pod is to end, in the words of the requester.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`

	// User name of the requester of the deletion, as the writer of the record knows it.
	// It is not verified; the audit log of the API server is.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	RequestedBy string `json:"requestedBy,omitempty"`

	// When the record may be removed. It should be later than the longest time that
	// a node can be cut off. The kubelet does not read it: a record counts as long
	// as it exists.
	//
	// +optional
	Expires *metav1.Time `json:"expires,omitempty"`
}

// PodDeletionList is a list of PodDeletions.
//
// +kubebuilder:object:root=true
type PodDeletionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []PodDeletion `json:"items"`
}
