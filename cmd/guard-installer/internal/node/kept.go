package node

import (
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/pkg/rollout"
)

// reportKept reports a change that is not healthy and was kept in place, or verifies it again
// when that is requested.
func (i *Installer) reportKept(ctx context.Context, s State) (*rollout.Report, error) {
	retry, err := i.retryRequested(ctx, s.entry)
	switch {
	case err != nil:
		return nil, err
	case retry && s.unmodified().Err() != nil:
		return nil, s.unmodified().Err()
	case retry && s.unmodified().IsNo():
		// Another kubelet was put there by hand.
		return nil, i.store().Clear()
	case retry:
		return nil, i.reevaluate(ctx, s)
	}
	report := reportOf(s.entry)
	if s.converged().IsYes() {
		report.Now = s.entry.Kubelet
	}
	report.Phase, report.Reason, report.Kept, report.Attempt = rollout.Failed, s.entry.Reason, true, s.entry.ID
	report.Message = fmt.Sprintf("%s. See kubectl guard holds, and journalctl -u kubelet on the node; fix what the pods are held for and what else is wrong; then have it verified again: kubectl guard rollout resume --pool %s", s.entry.Message, s.entry.Pool)
	return &report, nil
}

// reevaluate verifies the change again. Containers that were stopped by then do not count any
// more.
func (i *Installer) reevaluate(ctx context.Context, s State) error {
	running, err := i.Running(ctx, s.entry.Runtime)
	if err != nil {
		return err
	}
	again := *s.entry
	again.Started, again.Uptime, again.Deadline = s.now, uptime(), s.now.Add(i.Request.Verify())
	// Address and certificate may be others by now.
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return err
	}
	again.Address = kubeletAddress(node)
	if s.running.IsYes() {
		if _, pin, err := i.Ask(ctx, again.Address, ""); err == nil {
			again.Pin = pin
		}
	}
	again.Containers = slices.DeleteFunc(slices.Clone(again.Containers), func(before cri.Container) bool {
		return !slices.ContainsFunc(running, func(c cri.Container) bool { return c.ID == before.ID })
	})
	report := i.newReport()
	report.Before, report.Now, report.Started = s.entry.Before, s.entry.Kubelet, metav1.NewTime(s.now)
	i.progress(ctx, report, "Verifying again the kubelet that was kept in place")
	found, ended := i.verifier(&again, kubelet.NotCounted).run(ctx)
	if found == nil {
		gone := len(s.entry.Containers) - len(again.Containers) - s.entry.Ended
		i.verified = true
		return i.store().Confirm(s.entry.ID, max(gone, 0)+ended)
	}
	found.entry, i.failure = &again, found
	again.State = journal.Switching
	return i.store().Reopen(&again, found.reason, found.message, atMost20(found.stopped))
}
