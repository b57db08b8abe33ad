package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// NodeDeletionPolicyKind is the kind of a NodeDeletionPolicy.
const NodeDeletionPolicyKind = "NodeDeletionPolicy"

// NodeDeletionPolicy limits how many Node objects of a pool may be deleted in a
// period, and keeps a floor of ready nodes. A node that several policies select may
// be deleted when all of them allow it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=ndp
// +kubebuilder:printcolumn:name=Max,type=integer,JSONPath=`.spec.maxDeletions`
// +kubebuilder:printcolumn:name=Period,type=string,JSONPath=`.spec.period`
// +kubebuilder:printcolumn:name=Min-Ready,type=string,JSONPath=`.spec.minReady`
// +kubebuilder:printcolumn:name=Nodes,type=integer,JSONPath=`.status.nodes`
// +kubebuilder:printcolumn:name=Ready,type=integer,JSONPath=`.status.readyNodes`
// +kubebuilder:printcolumn:name=Allowed,type=integer,JSONPath=`.status.deletionsAllowed`
// +kubebuilder:printcolumn:name=Valid,type=string,JSONPath=`.status.conditions[?(@.type=="Valid")].status`,priority=1
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
type NodeDeletionPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec NodeDeletionPolicySpec `json:"spec"`

	// +optional
	Status NodeDeletionPolicyStatus `json:"status,omitempty"`
}

// NodeDeletionPolicySpec is the specification of a NodeDeletionPolicy.
//
// +kubebuilder:validation:XValidation:rule="has(self.maxDeletions) || has(self.minReady)",message="give maxDeletions, minReady or both; without them the policy limits nothing"
type NodeDeletionPolicySpec struct {
	// Selector over the labels of nodes: the pool. An empty one ({}) selects all
	// nodes. No two policies may have the same.
	//
	// +required
	NodeSelector metav1.LabelSelector `json:"nodeSelector"`

	// How many nodes of the pool may be deleted in any period of that length, at
	// most 500. 0 lets none be deleted.
	//
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=500
	MaxDeletions *int32 `json:"maxDeletions,omitempty"`

	// How long a deletion counts, from 1m to 720h. 1h, unless given.
	//
	// +optional
	// +kubebuilder:default="1h"
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('720h')",message="must be from 1m to 720h"
	Period *metav1.Duration `json:"period,omitempty"`

	// How many nodes of the pool must be ready after the deletion: a number, or a
	// share such as "80%", rounded up, of the nodes that the pool has now and those
	// that were deleted in the period. The deletion of a node that is not ready does
	// not lower it, and is held to it only when fewer nodes are ready than that and
	// more than two are not: what reports on them may then be what is broken.
	//
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 0 : self.matches('^([0-9]|[1-9][0-9]|100)%$')",message="must be a number that is not negative, or a share from 0% to 100%"
	MinReady *intstr.IntOrString `json:"minReady,omitempty"`

	// What becomes of a deletion in the pool that the webhook does not respond to, because
	// it is away or too slow. Hold, unless given.
	//
	// +optional
	// +kubebuilder:default=Hold
	WhenUnavailable WhenUnavailable `json:"whenUnavailable,omitempty"`
}

// WhenUnavailable is what becomes of deletions that the webhook does not respond to.
//
// +kubebuilder:validation:Enum=Hold;Allow
type WhenUnavailable string

const (
	// WhenUnavailableHold refuses them. A user who may override them can.
	WhenUnavailableHold WhenUnavailable = "Hold"
	// WhenUnavailableAllow lets them pass, until the limit is used up.
	WhenUnavailableAllow WhenUnavailable = "Allow"
)

// NodeDeletionPolicyValid is false when the policy cannot be understood. It then
// lets no node of its pool be deleted, or, when its selector is what cannot be
// understood, limits nothing.
const NodeDeletionPolicyValid = "Valid"

// NodeDeletionPolicyStatus is the ledger of the policy, and what the webhook says
// about its pool.
type NodeDeletionPolicyStatus struct {
	// Generation of the spec that the rest of the status, apart from the deletions,
	// their number and the next expiry, is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Deletions that were allowed in the period, and for some minutes earlier ones,
	// in the order of their time. All replicas of the webhook write here before they let
	// a node be deleted.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1000
	Deletions []NodeDeletion `json:"deletions,omitempty"`

	// Nodes of the pool.
	//
	// +optional
	Nodes int32 `json:"nodes"`

	// Nodes of the pool that are ready and not about to go.
	//
	// +optional
	ReadyNodes int32 `json:"readyNodes"`

	// How many ready nodes may be deleted right now.
	//
	// +optional
	DeletionsAllowed int32 `json:"deletionsAllowed"`

	// How many of the deletions count now, as of the last deletion or expiry. Where that
	// is maxDeletions, the API server refuses the next deletion without the webhook.
	// Unset in audit mode.
	//
	// +optional
	DeletionsCounted *int32 `json:"deletionsCounted,omitempty"`

	// When the next deletion counts no longer. Unset when none counts.
	//
	// +optional
	NextDeletionExpires *metav1.Time `json:"nextDeletionExpires,omitempty"`

	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// NodeDeletion is one deletion that counts.
type NodeDeletion struct {
	// UID of the Node object. It is counted once, however often its deletion is
	// tried.
	//
	// +required
	UID types.UID `json:"uid"`

	// Name of the node.
	//
	// +required
	Node string `json:"node"`

	// When the deletion was allowed, by the clock of the API server.
	//
	// +required
	Time metav1.MicroTime `json:"time"`

	// The time with which the deletion was written, where that was more than a minute
	// ahead: a clock was wrong. The deletion counts from when that was noticed, which is
	// then its time.
	//
	// +optional
	WrittenTime *metav1.MicroTime `json:"writtenTime,omitempty"`

	// Name of the user who deleted it.
	//
	// +optional
	User string `json:"user,omitempty"`
}

// NodeDeletionPolicyList is a list of NodeDeletionPolicies.
//
// +kubebuilder:object:root=true
type NodeDeletionPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []NodeDeletionPolicy `json:"items"`
}
