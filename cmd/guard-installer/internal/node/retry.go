package node

import (
	"context"
	"fmt"
	"time"

	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// retry ends this call with the reason why nothing can be decided.
func (i *Installer) retry(_ context.Context, s State) (*rollout.Report, error) {
	return nil, s.unknown()
}

// retryLater waits until a change that could not be finished is tried again.
func (i *Installer) retryLater(context.Context, State) (*rollout.Report, error) { return &i.stuck, nil }

// retryOrReport reports a change that could not be finished, when that has failed a few times.
func (i *Installer) retryOrReport(entry *journal.Entry, err error) (*rollout.Report, error) {
	if i.unfinished++; i.unfinished < quickTries {
		return nil, err
	}
	i.nextTry = time.Now().Add(slowTry)
	report := reportOf(entry)
	report.Phase, report.Reason = rollout.Failed, entry.Reason
	if report.Reason == "" {
		report.Reason = rollout.ReasonInterrupted
	}
	report.Message = fmt.Sprintf("The change of the kubelet is neither confirmed nor rolled back, after %d tries: %v. Fix that on the node; the installer tries again every minute, and so does %s (journalctl -u %s)", i.unfinished, err, rollbackUnit, rollbackUnit)
	i.stuck = report
	return &report, nil
}
