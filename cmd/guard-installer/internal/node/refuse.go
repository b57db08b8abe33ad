package node

import (
	"context"
	"fmt"
	"strings"

	"kubelet-guard.io/pkg/rollout"
)

// refusal is why a node is not changed.
type refusal struct {
	reason  rollout.Reason
	message string
}

// lasts reports whether it does not end by itself.
func (r refusal) lasts() bool {
	switch r.reason {
	case rollout.ReasonNode, rollout.ReasonKubelet, rollout.ReasonRuntime, rollout.ReasonSpace:
		return false
	}
	return true
}

// refuse reports why the node cannot be changed. With a slot, the roll-out stops there.
func (i *Installer) refuse(_ context.Context, s State) (*rollout.Report, error) {
	if s.journalErr != nil {
		return i.refused(rollout.Report{}, rollout.ReasonPreparation, "%v", s.journalErr), nil
	}
	return i.refusedFor(i.reportOn(s.view), s.view.refusals...), nil
}

// refuseForNow reports why a node cannot be changed until it is healthy. Nobody waits for it,
// and it takes no slot.
func (i *Installer) refuseForNow(ctx context.Context, s State) (*rollout.Report, error) {
	report, err := i.refuse(ctx, s)
	report.Phase = rollout.Waiting
	return report, err
}

func (i *Installer) refused(report rollout.Report, reason rollout.Reason, format string, arguments ...any) *rollout.Report {
	return i.refusedFor(report, refusal{reason, fmt.Sprintf(format, arguments...)})
}

func (i *Installer) refusedFor(report rollout.Report, refusals ...refusal) *rollout.Report {
	base := i.newReport()
	report.RequestID, report.Pool, report.Target = base.RequestID, base.Pool, base.Target
	var messages []string
	for _, r := range refusals {
		messages = append(messages, r.message)
	}
	report.Phase, report.Reason, report.Message = rollout.Refused, refusals[0].reason, "Nothing was changed: "+strings.Join(messages, "; ")
	return &report
}
