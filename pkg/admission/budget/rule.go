package budget

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/pkg/admission"
)

// Rule holds the deletion of protected pods to their budgets.
type Rule struct {
	reservations *Reservations
}

var _ admission.Rule = (*Rule)(nil)

// NewRule returns the rule PodDeletion.
func NewRule(reservations *Reservations) *Rule { return &Rule{reservations} }

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
	answers, err := r.reservations.Reserve(ctx, pod, request.IsDryRun())
	if err != nil {
		return admission.Fail("%w", err)
	}
	if refusal := refusal(answers); refusal != nil {
		return refuse(request, *refusal)
	}
	if len(answers) == 0 {
		return admission.Allow()
	}
	told := make([]string, len(answers))
	for i, answer := range answers {
		told[i] = answer.String()
	}
	return admission.Allow().Annotate("budget", strings.Join(told, "; "))
}

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
		fmt.Sprintf("Try again once ALLOWED DISRUPTIONS is above 0: kubectl get poddisruptionbudget %s -n %s --watch", name, namespace)).
		Annotate("budget", refusal.String())
}
