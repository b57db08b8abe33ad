package v1alpha1

import "time"

// Labels and their values.
const (
	// ExplicitDeletionLabel on a pod requests the protection of the node guard, and
	// that its deletion respects the disruption budgets. Package pkg/kubelet/guard has
	// it under the same name.
	ExplicitDeletionLabel = GroupName + "/explicit-deletion"
	// ExplicitDeletionRequired is the only value of ExplicitDeletionLabel.
	ExplicitDeletionRequired = "required"

	// ProtectPodsLabel on a namespace grants its pods ExplicitDeletionLabel. A
	// protected pod cannot be evicted, so protection is a grant and not a wish.
	ProtectPodsLabel = GroupName + "/protect-pods"
	// ProtectPodsAllowed lets pods of the namespace carry the label.
	ProtectPodsAllowed = "allowed"
	// ProtectPodsDefault also gives the label to every pod that is created without.
	ProtectPodsDefault = "default"

	// DeletionProtectionLabel on an object of any kind restricts its deletion.
	DeletionProtectionLabel = GroupName + "/deletion-protection"
	// DeletionProtectionAlways refuses every deletion.
	DeletionProtectionAlways = "always"
	// DeletionProtectionCascading refuses the deletion while something depends on
	// the object.
	DeletionProtectionCascading = "cascading"

	// ReplicasProtectionLabel on a workload restricts changes of its replicas.
	ReplicasProtectionLabel = GroupName + "/replicas-protection"
	// ReplicasProtectionConfirm wants the new number in ConfirmReplicasAnnotation.
	ReplicasProtectionConfirm = "confirm"

	// OperationWindowsLabel on a namespace makes the OperationWindows in it effective.
	// Without it a window is reported as not effective: the webhook is in the path of
	// updates only where that was chosen.
	OperationWindowsLabel = GroupName + "/operation-windows"
	// OperationWindowsEnforced is the only value of OperationWindowsLabel.
	OperationWindowsEnforced = "enforced"

	// ScaleReviewLabel on a namespace selects what judges changes of replicas through /scale
	// there. Without it, policies of the API server do, at a price that grows with the
	// number of labelled workloads.
	ScaleReviewLabel = GroupName + "/scale-review"
	// ScaleReviewWebhook is the only value of ScaleReviewLabel: the webhook reads the one
	// workload, and an outage of the webhook holds scale-downs.
	ScaleReviewWebhook = "webhook"
)

// Annotations.
const (
	// ConfirmReplicasAnnotation on a workload confirms a change of its replicas: a
	// number, or a range "<min>-<max>" in which an autoscaler may move.
	ConfirmReplicasAnnotation = GroupName + "/confirm-replicas"

	// OverrideAnnotation on an object lets one operation pass that a rule refuses:
	// "<RFC 3339 expiry> <reason>". It counts only for users who may use
	// OverrideVerb on the object.
	OverrideAnnotation = GroupName + "/override"

	// LostOwnerAnnotation on a pod that guard-etcd restored from its node names the owners that
	// were gone and are no longer referred to, as "ReplicaSet/web-79fffdbf8f", with commas
	// between them. A controller whose selector matches adopts the pod.
	LostOwnerAnnotation = GroupName + "/lost-owner"

	// RequestedAtAnnotation on a PodDeletion is when the deletion was last requested
	// (RFC 3339), where that is later than the creation of the record.
	RequestedAtAnnotation = GroupName + "/requested-at"
)

// OverrideVerb is the RBAC verb, on the object itself, that makes its
// OverrideAnnotation count.
const OverrideVerb = "override"

// FormatOverride returns the value of OverrideAnnotation: until when, and why.
func FormatOverride(expires time.Time, reason string) string {
	return expires.UTC().Format(time.RFC3339) + " " + reason
}

// AggregateToWebhookLabel with the value "true" on a ClusterRole gives its rules to the
// webhook, which lists the custom resources of a definition before that is deleted.
const AggregateToWebhookLabel = "kubelet-guard.io/aggregate-to-webhook"

// SystemNamespace is where the webhook runs. No rule applies to its objects,
// except those of the policies that protect the guard itself.
const SystemNamespace = "kubelet-guard-system"
