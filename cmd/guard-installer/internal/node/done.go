package node

import (
	"context"
	"fmt"
	"path"
	"strings"

	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// reportDone reports a change that was confirmed.
func (i *Installer) reportDone(ctx context.Context, s State) (*rollout.Report, error) {
	report := reportOf(s.entry)
	report.Phase, report.Now = rollout.Done, s.entry.Kubelet
	report.Message = fmt.Sprintf("The node runs %s, and the %d containers that ran before", describe(s.entry.Kubelet), len(s.entry.Containers))
	if s.entry.Ended > 0 {
		report.Message = fmt.Sprintf("The node runs %s; %d of the %d containers that ran before have ended since, by themselves or with their pods", describe(s.entry.Kubelet), s.entry.Ended, len(s.entry.Containers))
	}
	return i.finish(ctx, s, report, s.entry)
}

// reportDoneAlready reports a node that was found with what is requested.
func (i *Installer) reportDoneAlready(ctx context.Context, s State) (*rollout.Report, error) {
	report := i.reportOn(s.view)
	report.Phase, report.Message = rollout.Done, "The node runs what was requested"
	if _, why := report.Contradiction(s.view.node); why != "" {
		report = *i.refused(report, rollout.ReasonNode, "%s", why)
		report.Phase = rollout.Waiting
		return &report, nil
	}
	return i.finish(ctx, s, report, nil)
}

// finish removes what is not needed any more. From then on the node is watched only.
func (i *Installer) finish(ctx context.Context, s State, report rollout.Report, entry *journal.Entry) (*rollout.Report, error) {
	if err := i.cleanUp(ctx, entry); err != nil {
		return nil, err
	}
	i.finished, i.finishedDropIn = &report, s.dropIn
	return &report, nil
}

// cleanUp removes what is not needed any more. With the stock kubelet that is all that
// a roll-out ever wrote; the guard's own state of pods is left. Otherwise the previous
// kubelet stays, so that a rollback needs no image.
func (i *Installer) cleanUp(ctx context.Context, entry *journal.Entry) error {
	if !i.unitsRemoved {
		if err := i.endUnits(ctx); err != nil {
			return err
		}
	}
	if !i.Request.Target.Guarded() {
		for _, dir := range []string{rollout.InstallDir, rollout.ConfigDir, rollout.StateDir} {
			if err := i.Root.RemoveAll(dir); err != nil {
				return err
			}
		}
		for _, dir := range []string{path.Dir(rollout.StateDir), path.Dir(rollout.DropIn)} {
			if err := i.Root.RemoveEmpty(dir); err != nil {
				return err
			}
		}
		return nil
	}
	if entry == nil {
		return nil
	}
	keep := ""
	for _, dropIn := range []*string{entry.Previous, entry.Wanted} {
		if dropIn != nil {
			keep += *dropIn
		}
	}
	for dir, suffix := range map[string]string{rollout.InstallDir: "", rollout.ConfigDir: ".yaml"} {
		names, err := i.Root.Folder(dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			if sum := strings.TrimSuffix(name, suffix); len(sum) == 64 && !strings.Contains(keep, sum) {
				if err := i.Root.RemoveAll(path.Join(dir, name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
