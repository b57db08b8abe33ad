package node

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// startRollbackTimer starts the timer of a change that goes on.
func (i *Installer) startRollbackTimer(ctx context.Context, s State) (*rollout.Report, error) {
	if err := i.Systemd.Start(ctx, rollbackTimer); err != nil {
		i.failure = &failure{entry: s.entry, reason: rollout.ReasonInterrupted, message: fmt.Sprintf("the timer that rolls the change back does not run and could not be started: %v", err)}
	}
	return nil, nil
}

func (i *Installer) stopTimer(ctx context.Context) {
	if err := i.Systemd.Stop(ctx, rollbackTimer); err != nil {
		klog.ErrorS(err, "Could not stop the timer; it will find the change finished and do nothing")
	}
}

// rollBackOrKeep rolls a change back that failed, or keeps it in place where a rollback would
// do more harm.
func (i *Installer) rollBackOrKeep(ctx context.Context, s State) (*rollout.Report, error) {
	found := s.failed()
	i.failure = nil
	why := i.holding().KeepReason(ctx, s.entry)
	if why == "" {
		_, err := i.rollBack(ctx, s.entry, found)
		return nil, err
	}
	klog.InfoS("Keeping the change in place", "reason", found.reason, "message", found.message, "why", why)
	err := i.store().KeepInPlace(ctx, i.Systemd, s.entry.ID, found.reason, found.message+". "+why, atMost20(found.stopped))
	switch {
	case errors.Is(err, journal.ErrTaken):
		_, err = i.rollBack(ctx, s.entry, found) // the timer was quicker, and has decided
	case err == nil:
		i.stopTimer(ctx)
	}
	// After an error the change is tried again. The timer decides in the same way, and writes
	// first, too.
	return nil, err
}

// rollBack has the node roll the change back: by the unit that was tried before, in case
// this container dies in the middle of it, or else from here.
func (i *Installer) rollBack(ctx context.Context, entry *journal.Entry, found *failure) (*journal.Entry, error) {
	klog.InfoS("Rolling the change back", "reason", found.reason, "message", found.message)
	store := i.store()
	if err := store.Decide(entry.ID, found.reason, found.message, atMost20(found.stopped)); err != nil {
		klog.ErrorS(err, "Could not write the reason")
	}
	if err := i.Systemd.Start(ctx, rollbackUnit); err != nil {
		klog.ErrorS(err, "The unit that rolls the change back failed, doing it from here")
	}
	entry, err := store.RollBack(ctx, i.Systemd, entry.ID, i.holding().KeepReason, found.reason, found.message)
	if err != nil {
		return nil, err
	}
	if entry == nil {
		return nil, errors.New("the journal is gone in the middle of a change")
	}
	if entry.State == journal.Confirmed {
		i.stopTimer(ctx)
		return entry, nil // the timer was quicker and left it in place
	}
	if err := i.endUnits(ctx); err != nil {
		klog.ErrorS(err, "Could not remove units, will try again")
	}
	i.waitForOldKubelet(ctx, entry)
	return entry, nil
}

// reportRollback reports a change that was rolled back, or starts again when that is requested.
func (i *Installer) reportRollback(ctx context.Context, s State) (*rollout.Report, error) {
	retry, err := i.retryRequested(ctx, s.entry)
	if err != nil {
		return nil, err
	}
	if retry {
		i.waitedForOldKubelet = false
		return nil, i.store().Clear()
	}
	if !s.entry.Marked {
		// The node rolled it back by itself, maybe a moment ago.
		i.waitForOldKubelet(ctx, s.entry)
	}
	report := reportOf(s.entry)
	report.Reason, report.Attempt = s.entry.Reason, s.entry.ID
	report.Now, err = i.oldKubelet(ctx, s.entry)
	if err != nil {
		report.Phase = rollout.Failed
		report.Message = fmt.Sprintf("%s. The old kubelet was restored and is not healthy: %v. Check the node (journalctl -u kubelet)", s.entry.Message, err)
		return &report, nil
	}
	report.Phase = rollout.RolledBack
	runs := fmt.Sprintf("The old kubelet (%s) runs again", describe(report.Now))
	if report.Before.SHA256 != "" && report.Now.SHA256 != report.Before.SHA256 {
		runs = fmt.Sprintf("The node's own kubelet runs again, which was upgraded during the change: %s before, %s now", describe(report.Before), describe(report.Now))
	}
	report.Message = fmt.Sprintf("%s. %s. To try again: kubectl guard rollout resume --pool %s", s.entry.Message, runs, s.entry.Pool)
	return &report, nil
}

// retryRequested reports whether a retry of the failed attempt was requested. A Node that lost
// its label, or was registered again, requests nothing.
func (i *Installer) retryRequested(ctx context.Context, entry *journal.Entry) (bool, error) {
	if !entry.Marked {
		return false, nil
	}
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return false, err
	}
	return rollout.Resumed(node, entry.ID), nil
}

// oldKubelet returns the kubelet that runs, and what is not healthy with it after a
// change was rolled back.
func (i *Installer) oldKubelet(ctx context.Context, entry *journal.Entry) (rollout.Kubelet, error) {
	now := rollout.Kubelet{}
	unit, process, running := i.kubelet(ctx)
	switch {
	case running.Err() != nil:
		return now, running.Err()
	case running.IsNo():
		return now, fmt.Errorf("%w: %s (%s)", errNotRunning, unit.Active, unit.Sub)
	}
	now.SHA256, now.Path = process.SHA256, entry.Before.Path
	upgraded := i.store().Upgraded(entry, process)
	if entry.Before.SHA256 != "" && process.SHA256 != entry.Before.SHA256 && !upgraded {
		return now, fmt.Errorf("the program that runs has the checksum %s, not %s", process.SHA256, entry.Before.SHA256)
	}
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return now, err
	}
	// The node may have booted since, with another address, or rotated its certificate.
	answer, _, err := i.Ask(ctx, kubeletAddress(node), "")
	if err != nil {
		return now, err
	}
	now.Version, now.Mode = answer.Version, answer.Mode
	if entry.Before.Version != "" && (now.Version != entry.Before.Version && !upgraded || now.Mode != entry.Before.Mode) {
		return now, fmt.Errorf("%s runs, before it was %s", describe(now), describe(entry.Before))
	}
	if !nodeReady(node) {
		return now, errors.New("the node is not ready")
	}
	return now, nil
}

// waitForOldKubelet waits until the old kubelet is healthy, for at most Recovery, once.
func (i *Installer) waitForOldKubelet(ctx context.Context, entry *journal.Entry) {
	if i.waitedForOldKubelet {
		return
	}
	i.waitedForOldKubelet = true
	var unhealthy error
	if err := wait.PollUntilContextTimeout(ctx, i.Poll, i.Recovery, true, func(ctx context.Context) (bool, error) {
		_, unhealthy = i.oldKubelet(ctx, entry)
		return unhealthy == nil, nil
	}); err != nil {
		klog.ErrorS(unhealthy, "The old kubelet is not healthy", "waited", i.Recovery)
	}
}
