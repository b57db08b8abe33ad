package admission

import "context"

// RuleName names a rule in metrics, flags, audit annotations and messages. The zero
// value is invalid.
type RuleName string

// The rules of the webhook, and of the policies that decide without it.
const (
	CascadingDeletion RuleName = "CascadingDeletion"
	Replicas          RuleName = "Replicas"
	ResourceDeletion  RuleName = "ResourceDeletion"
	OperationWindow   RuleName = "OperationWindow"
	PodDeletion       RuleName = "PodDeletion"
	// PodDeletionRecord is about the records that forced deletes of pods need.
	PodDeletionRecord RuleName = "PodDeletionRecord"
	// DisruptionBudget is about changes of budgets, and of labels, that take protected pods
	// out of their budgets.
	DisruptionBudget RuleName = "DisruptionBudget"
	NodeDeletion     RuleName = "NodeDeletion"
	// Override counts how overrides were judged.
	Override RuleName = "Override"
	// Protection is about the label on pods and the grant on namespaces.
	Protection RuleName = "Protection"
)

// RuleNames returns all rules.
func RuleNames() []RuleName {
	return []RuleName{
		CascadingDeletion, Replicas, ResourceDeletion, OperationWindow,
		PodDeletion, PodDeletionRecord, DisruptionBudget, NodeDeletion, Override, Protection,
	}
}

// Rule judges requests.
type Rule struct {
	Name RuleName
	// Review judges the request. It returns a Decision made by Allow, Refuse or Fail, and must
	// return soon after the context ends. Requests with dry-run set get the same decision and
	// change nothing. It is safe for concurrent use.
	Review func(ctx context.Context, request *Request) Decision
}
