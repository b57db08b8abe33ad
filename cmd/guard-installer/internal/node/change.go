package node

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/pkg/rollout"
)

// work inspects the node and does what is requested.
func (i *Installer) work(ctx context.Context) (rollout.Report, error) {
	isItsTurn := false
	if i.inLine != nil {
		// It is inspected again when it is its turn.
		turn, err := i.Cluster.TakeSlot(ctx, i.inLine.node, i.Request.ID(), false)
		if err != nil {
			return rollout.Report{}, err
		}
		if i.turn = turn; !turn.Slot {
			i.inLine.report.Message = turn.WaitReason
			return i.inLine.report, nil
		}
		i.inLine, isItsTurn = nil, true
	}
	v, refusals, err := i.inspect(ctx)
	if err != nil {
		return rollout.Report{}, err
	}
	i.seen = v.node
	report := i.report(&v)
	if i.Request.Target == rollout.Observe {
		if len(refusals) > 0 {
			return i.refuse(report, refusals...), nil
		}
		report.Phase, report.Message = rollout.Observed, "Nothing was changed"
		i.observed, i.observedUntil = &report, time.Now().Add(jittered(checkReport))
		return report, nil
	}
	intact := i.configurationIntact(v.wanted)
	if i.matchesRequest(&v) && intact.Err() != nil {
		return rollout.Report{}, intact.Err()
	}
	if i.matchesRequest(&v) && intact.IsYes() {
		report.Phase = rollout.Done
		if _, why := report.Contradiction(v.node); why != "" {
			return i.notYet(report, []refusal{{rollout.ReasonNode, why}}), nil
		}
		report.Phase, report.Message = rollout.Done, "The node runs what was requested"
		if err := i.cleanUp(ctx, nil); err != nil {
			return rollout.Report{}, err
		}
		return i.setFinished(report), nil
	}
	refuses := lasting(refusals)
	if len(refusals) > 0 && !refuses {
		// Nobody waits for a node that is not healthy, and it takes no slot.
		return i.notYet(report, refusals), nil
	}
	if !isItsTurn || refuses { // a moment ago it was
		if i.turn, err = i.Cluster.TakeSlot(ctx, v.node, i.Request.ID(), refuses); err != nil {
			return rollout.Report{}, err
		}
	}
	switch {
	case i.turn.WaitReason != "":
		report.Phase, report.Message = rollout.Waiting, i.turn.WaitReason
		if !refuses {
			i.inLine = &inLine{node: v.node, report: report}
		}
		return report, nil
	case refuses:
		// With a slot, the roll-out stops there.
		return i.refuse(report, refusals...), nil
	}
	return i.change(context.WithoutCancel(ctx), &v)
}

// lasting reports whether a refusal is among these that does not end by itself.
func lasting(refusals []refusal) bool {
	for _, r := range refusals {
		switch r.reason {
		case rollout.ReasonNode, rollout.ReasonKubelet, rollout.ReasonRuntime, rollout.ReasonSpace:
		default:
			return true
		}
	}
	return false
}

// notYet is the report of a node that can be changed when it is healthy.
func (i *Installer) notYet(report rollout.Report, refusals []refusal) rollout.Report {
	report = i.refuse(report, refusals...)
	report.Phase = rollout.Waiting
	return report
}

func (i *Installer) report(v *view) rollout.Report {
	report := i.newReport()
	report.Architecture = architecture()
	report.Before, report.Now, report.Offered = v.now, v.now, v.offered
	report.Protected, report.Held, report.HeldPods = v.protected, len(v.held), atMost20(v.heldPods)
	report.Containers = len(v.running)
	return report
}

// change makes the change. The context is not cancelled: what has started is
// finished.
func (i *Installer) change(ctx context.Context, v *view) (rollout.Report, error) {
	i.waitedForOldKubelet = false
	report := i.report(v)
	report.Started = metav1.Now()
	i.progress(ctx, report, "Preparing")
	program, err := i.prepare(ctx, v)
	if err != nil {
		if err := i.endUnits(ctx); err != nil {
			klog.ErrorS(err, "Could not remove units")
		}
		return i.refuse(report, refusal{rollout.ReasonPreparation, fmt.Sprintf("the preparation failed: %v", err)}), nil
	}
	klog.InfoS("Prepared", "installer", program, "kubelet", v.program, "configuration", v.config)

	// Inspected again, close to the change.
	running, err := i.Running(ctx, v.socket)
	if err != nil {
		return i.refuse(report, refusal{rollout.ReasonRuntime, err.Error()}), nil
	}
	boot, err := i.Root.Boot()
	if err != nil {
		return i.refuse(report, refusal{rollout.ReasonPreparation, err.Error()}), nil
	}
	if now, err := i.Systemd.Unit(ctx, rollout.KubeletUnit); err != nil {
		return rollout.Report{}, err
	} else if now.MainPID != v.unit.MainPID {
		return rollout.Report{}, fmt.Errorf("%s was restarted while its change was prepared: the node is inspected again", rollout.KubeletUnit)
	}
	wanted := v.stock
	if i.Request.Target.Guarded() {
		wanted = v.offered
		wanted.Path, wanted.Mode = v.program, i.Request.Target.Mode()
	}
	now := time.Now()
	entry := journal.Entry{
		RequestID: i.Request.ID(), Pool: i.Pool.Name, Target: i.Request.Target, ReleaseHeld: len(i.notReleased(v)) == 0,
		Boot: boot, Started: now, Uptime: uptime(), Deadline: now.Add(i.Request.Verify()),
		Settle:   i.Request.SettleTime(),
		Previous: v.dropIn, Wanted: v.wanted, Arguments: v.process.Arguments,
		Before: v.now, Kubelet: wanted, Offered: v.offered,
		Protected: v.protected, HeldPods: atMost20(v.heldPods), Held: v.held,
		Containers: containers.Annotate(running, v.pods),
		Address:    v.address, Pin: v.pin, Runtime: v.socket, TokenFile: i.hostTokenFile(),
		GuardDir: guardDir(v.configData, v.process),
	}
	started, err := i.store().Start(entry)
	if err != nil {
		return i.refuse(report, refusal{rollout.ReasonPreparation, err.Error()}), nil
	}
	if err := i.Systemd.Start(ctx, rollbackTimer); err != nil {
		// Nothing was changed yet, but a crash now must end as one later.
		ended, err := i.rollBack(ctx, started, &failure{reason: rollout.ReasonPreparation, message: fmt.Sprintf("the timer that rolls the change back could not be started: %v", err)})
		if err != nil {
			return rollout.Report{}, err
		}
		return i.outcome(ctx, ended)
	}
	report.Containers = len(running)
	i.progress(ctx, report, fmt.Sprintf("Restarting the kubelet: %s, then %s", describe(v.now), describe(wanted)))
	var ended *journal.Entry
	if err := i.exchange(ctx, started); err != nil {
		ended, err = i.conclude(ctx, started, notExchanged(err), 0)
		if err != nil {
			return rollout.Report{}, err
		}
	} else if ended, err = i.finish(ctx, started); err != nil {
		return rollout.Report{}, err
	}
	return i.outcome(ctx, ended)
}

func (i *Installer) outcome(ctx context.Context, entry *journal.Entry) (rollout.Report, error) {
	switch entry.State {
	case journal.Confirmed:
		if entry.Kept() {
			return i.keptReport(ctx, entry), nil
		}
		return i.doneReport(ctx, entry)
	case journal.RolledBack:
		return i.rolledBackReport(ctx, entry), nil
	default:
		return rollout.Report{}, fmt.Errorf("the change of request %s is not finished", entry.RequestID)
	}
}

// prepare puts everything in its place that the change needs, and tries what takes it
// back. It returns the path of the installer on the node.
func (i *Installer) prepare(ctx context.Context, v *view) (string, error) {
	like := v.command.Program
	program := programPath(v.installerSum, rollout.Name)
	if err := i.Root.Install(i.Program, program, v.installerSum, like); err != nil {
		return "", err
	}
	if i.Request.Target.Guarded() {
		if err := i.Root.Install(i.Kubelet, v.program, v.offered.SHA256, like); err != nil {
			return "", err
		}
		got, err := i.Version(ctx, i.Root, v.program)
		if err != nil {
			return "", fmt.Errorf("%s cannot be run on the node (is it mounted noexec?): %w", v.program, err)
		}
		if got != v.offered.Version {
			return "", fmt.Errorf("%s reports that it is %s, not %s", v.program, got, v.offered.Version)
		}
		if err := i.Root.Write(v.config, v.configData, 0o644); err != nil {
			return "", err
		}
	}
	if err := i.writeUnits(program, i.Request.Verify()+timerMargin); err != nil {
		return "", err
	}
	if err := i.Systemd.Reload(ctx); err != nil {
		return "", err
	}
	if err := i.Systemd.Start(ctx, rollbackUnit); err != nil {
		return "", fmt.Errorf("the unit that rolls a change back was tried and does not work: %w", err)
	}
	return program, nil
}

// exchange puts the drop-in into its place, or removes it, and restarts the kubelet.
func (i *Installer) exchange(ctx context.Context, entry *journal.Entry) error {
	if err := i.store().Exchange(entry.ID); err != nil {
		return err
	}
	if err := i.Systemd.Reload(ctx); err != nil {
		return err
	}
	return i.Systemd.Restart(ctx, rollout.KubeletUnit)
}

// finish finishes a change that the journal has as Switching, and returns the
// entry. An error means that this is not known yet; it is tried again.
func (i *Installer) finish(ctx context.Context, entry *journal.Entry) (*journal.Entry, error) {
	boot, err := i.Root.Boot()
	if err != nil {
		return nil, err
	}
	if boot != entry.Boot {
		return i.conclude(ctx, entry, &failure{reason: rollout.ReasonInterrupted, message: "the node was started again while its kubelet was being changed. Nothing is known to be wrong with the kubelet that was rolled out"}, 0)
	}
	unmodified := i.unmodified(entry)
	if err := unmodified.Err(); err != nil {
		return nil, err
	}
	if unmodified.IsNo() {
		return i.conclude(ctx, entry, &failure{reason: rollout.ReasonInterrupted, message: "the installer was stopped before it had exchanged the kubelet. Nothing is known to be wrong with the kubelet that was rolled out"}, 0)
	}
	// A soft reboot leaves the boot as it was and ends the timer.
	timer, err := i.Systemd.Unit(ctx, rollbackTimer)
	if err != nil {
		return nil, err
	}
	if timer.Active != "active" {
		if err := i.Systemd.Start(ctx, rollbackTimer); err != nil {
			return i.conclude(ctx, entry, &failure{reason: rollout.ReasonInterrupted, message: fmt.Sprintf("the timer that rolls the change back does not run and could not be started: %v", err)}, 0)
		}
	}
	exchanged := i.exchanged(ctx, entry)
	if err := exchanged.Err(); err != nil {
		return nil, err
	}
	if exchanged.IsNo() {
		// Between the drop-in and the restart.
		if err := i.exchange(ctx, entry); err != nil {
			return i.conclude(ctx, entry, notExchanged(err), 0)
		}
	}
	found, ended := i.verify(ctx, entry)
	return i.conclude(ctx, entry, found, ended)
}

func notExchanged(err error) *failure {
	return &failure{reason: rollout.ReasonNotStarted, message: fmt.Sprintf("the kubelet could not be exchanged: %v", err)}
}

// conclude confirms a change in which nothing was found wrong. What was is rolled back, or
// kept in place where that would do more harm. It returns the entry.
func (i *Installer) conclude(ctx context.Context, entry *journal.Entry, found *failure, ended int) (*journal.Entry, error) {
	if found != nil {
		why := i.holding().KeepReason(ctx, entry)
		if why == "" {
			return i.rollBack(ctx, entry, found)
		}
		klog.InfoS("Keeping the change in place", "reason", found.reason, "message", found.message, "why", why)
		switch err := i.store().KeepInPlace(ctx, i.Systemd, entry.ID, found.reason, found.message+". "+why, atMost20(found.stopped)); {
		case errors.Is(err, journal.ErrTaken):
			return i.rollBack(ctx, entry, found) // the timer was quicker, and has decided
		case err != nil:
			// Tried again. The timer decides in the same way, and writes first, too.
			return nil, err
		}
	} else if err := i.store().Confirm(entry.ID, ended); err != nil {
		klog.ErrorS(err, "Could not confirm the change")
		// The timer was quicker, or the disk is full: either way it does not count.
		return i.conclude(ctx, entry, &failure{reason: rollout.ReasonInterrupted, message: fmt.Sprintf("the change was verified, but it could not be confirmed: %v", err)}, 0)
	}
	i.stopTimer(ctx)
	return i.store().Read()
}

// reevaluate verifies a change again that was kept in place, after a resume. Containers that were stopped by then do not count any more.
func (i *Installer) reevaluate(ctx context.Context, entry *journal.Entry) (*journal.Entry, error) {
	now := time.Now()
	running, err := i.Running(ctx, entry.Runtime)
	if err != nil {
		return nil, err
	}
	runs := map[string]bool{}
	for _, c := range running {
		runs[c.ID] = true
	}
	again := *entry
	again.Started, again.Uptime, again.Deadline = now, uptime(), now.Add(i.Request.Verify())
	// Address and certificate may be others by now.
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return nil, err
	}
	again.Address = kubeletAddress(node)
	if process, runs := i.process(ctx); runs.IsYes() {
		if _, pin, err := i.askNow(ctx, again.Address, entry, process); err == nil {
			again.Pin = pin
		}
	}
	again.Containers = nil
	for _, c := range entry.Containers {
		if runs[c.ID] {
			again.Containers = append(again.Containers, c)
		}
	}
	report := i.newReport()
	report.Before, report.Now, report.Started = entry.Before, entry.Kubelet, metav1.NewTime(now)
	i.progress(ctx, report, "Verifying again the kubelet that was kept in place")
	found, ended := i.verifyAgain(ctx, &again)
	if found == nil {
		gone := len(entry.Containers) - len(again.Containers) - entry.Ended
		if err := i.store().Confirm(entry.ID, max(gone, 0)+ended); err != nil {
			return nil, err
		}
		return i.store().Read()
	}
	if err := i.store().Reopen(&again, found.reason, found.message, atMost20(found.stopped)); err != nil {
		return nil, err
	}
	return i.conclude(ctx, &again, found, 0)
}

// keptReport is the report of a change that is not healthy and was kept in place.
func (i *Installer) keptReport(ctx context.Context, entry *journal.Entry) rollout.Report {
	report := reportOf(entry)
	report.Architecture = architecture()
	if i.converged(ctx, entry).IsYes() {
		report.Now = entry.Kubelet
	}
	report.Phase, report.Reason, report.Kept, report.Attempt = rollout.Failed, entry.Reason, true, entry.ID
	report.Message = fmt.Sprintf("%s. See kubectl guard holds, and journalctl -u kubelet on the node; fix what the pods are held for and what else is wrong; then have it verified again: kubectl guard rollout resume --pool %s", entry.Message, entry.Pool)
	return report
}

// exchanged answers whether the kubelet was restarted since the drop-in was changed. One
// that does not run was.
func (i *Installer) exchanged(ctx context.Context, entry *journal.Entry) answer.Answer {
	state, err := i.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil {
		return answer.Unknown(err)
	}
	if !state.Running() {
		return answer.Yes()
	}
	process, err := i.Root.Process(state.MainPID)
	if err != nil {
		return answer.Unknown(err)
	}
	configuration, guarded := process.Flag(unit.GuardFlag)
	if entry.Wanted == nil {
		return answer.Of(!guarded)
	}
	return answer.Of(process.SHA256 == entry.Kubelet.SHA256 && guarded && configuration == configurationOf(entry.Wanted))
}

// doneReport is the report of a change that was confirmed.
func (i *Installer) doneReport(ctx context.Context, entry *journal.Entry) (rollout.Report, error) {
	report := reportOf(entry)
	report.Architecture, report.Now = architecture(), entry.Kubelet
	report.Phase = rollout.Done
	report.Message = fmt.Sprintf("The node runs %s, and the %d containers that ran before", describe(entry.Kubelet), len(entry.Containers))
	if entry.Ended > 0 {
		report.Message = fmt.Sprintf("The node runs %s; %d of the %d containers that ran before have ended since, by themselves or with their pods", describe(entry.Kubelet), entry.Ended, len(entry.Containers))
	}
	if err := i.cleanUp(ctx, entry); err != nil {
		return rollout.Report{}, err
	}
	return i.setFinished(report), nil
}

// cleanUp removes what is not needed any more. With the stock kubelet that is all that
// a roll-out ever wrote; the guard's own state of pods is left. Otherwise the kubelet of
// before stays, so that a rollback needs no image.
func (i *Installer) cleanUp(ctx context.Context, entry *journal.Entry) error {
	if err := i.endUnits(ctx); err != nil {
		return err
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
