package budget

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/nodes"
)

// LostNodes tells nodes that are lost from a mass failure.
type LostNodes interface {
	// Condition returns that of the node, which is the zero value for one that is ready or
	// has no object.
	Condition(ctx context.Context, node string) (nodes.Condition, error)
}

// Rule holds the deletion of protected pods to their budgets, but not that of pods on lost
// nodes: nobody can reach them, and their workloads need new ones. Kubernetes deletes them
// past the budget for that reason.
type Rule struct {
	reservations *Reservations
	nodes        LostNodes
}

var _ admission.Rule = (*Rule)(nil)

// NewRule returns the rule PodDeletion.
func NewRule(reservations *Reservations, nodes LostNodes) *Rule { return &Rule{reservations, nodes} }

// Name implements admission.Rule.
func (r *Rule) Name() admission.RuleName { return admission.PodDeletion }

// Review implements admission.Rule. A disruption that it reserved stays reserved when
// something else refuses the request afterwards, for two minutes at most, as it does
// for an eviction whose delete fails.
func (r *Rule) Review(ctx context.Context, request *admission.Request) admission.Decision {
	pod := &corev1.Pod{}
	if err := request.DecodeOldObject(pod); err != nil {
		return admission.Fail("%w", err)
	}
	if why := passes(pod, request); why != "" {
		if why == notProtected {
			return admission.Allow()
		}
		return admission.Allow().Annotate("budget", string(why))
	}
	var node nodes.Condition
	if !isReady(pod) {
		var err error
		if node, err = r.nodes.Condition(ctx, pod.Spec.NodeName); err != nil {
			return admission.Fail("find out whether node %s is lost: %w", pod.Spec.NodeName, err)
		}
		if node.Lost {
			return admission.Allow().Annotate("budget", string(nodeLost))
		}
	}
	answer, err := r.reservations.Reserve(ctx, pod, request.IsDryRun())
	if err != nil {
		return admission.Fail("%w", err)
	}
	if node.MassFailure != "" && answer.account == accountRefuse {
		answer.why += fmt.Sprintf("; its node is not ready, but does not count as lost, since %s", node.MassFailure)
	}
	decision := admission.Allow()
	switch answer.account {
	case accountUnselected:
		return decision
	case accountRefuse:
		decision = refuse(request, answer)
	case accountSeveral:
		decision = refuseSeveral(request, answer)
	}
	return decision.Annotate("budget", answer.String())
}

// refuses reports whether the pod may not go.
func (a answer) refuses() bool { return a.account == accountRefuse || a.account == accountSeveral }

// String is for the audit log.
func (a answer) String() string {
	switch {
	case a.account == accountCharge && !a.at.IsZero():
		return fmt.Sprintf("%s: charged, %d left", a.budget.Name, a.left)
	case a.account == accountCharge:
		return a.budget.Name + ": not charged, dry run"
	}
	return a.budget.Name + ": " + string(a.account)
}

func refuse(request *admission.Request, refusal answer) admission.Decision {
	name, namespace := refusal.budget.Name, refusal.budget.Namespace
	return admission.Refuse(admission.ReasonDisruptionBudget,
		fmt.Sprintf("%s is protected, and its deletion is held to poddisruptionbudget %s, which %s", request.Target(), name, refusal.why),
		fmt.Sprintf("Try again once ALLOWED DISRUPTIONS is above 0: kubectl get poddisruptionbudget %s -n %s --watch", name, namespace))
}

func refuseSeveral(request *admission.Request, refusal answer) admission.Decision {
	return admission.Refuse(admission.ReasonDisruptionBudget,
		fmt.Sprintf("%s is protected, and several poddisruptionbudgets select it (%s), of which Kubernetes keeps only one up to date, so that it can be neither deleted nor evicted", request.Target(), refusal.budget.Name),
		fmt.Sprintf("Change them so that one selects the pod, or delete the others: kubectl get poddisruptionbudgets -n %s -o wide", refusal.budget.Namespace))
}
