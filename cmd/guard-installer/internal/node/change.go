package node

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// change makes the change, as far as the restart of the kubelet.
func (i *Installer) change(ctx context.Context, s State) (*rollout.Report, error) {
	v := s.view
	i.waitedForOldKubelet, i.learned = false, learned{}
	report := i.reportOn(v)
	report.Started = metav1.Now()
	i.progress(ctx, report, "Preparing")
	if err := i.prepare(ctx, v); err != nil {
		if err := i.endUnits(ctx); err != nil {
			klog.ErrorS(err, "Could not remove units")
		}
		return i.refused(report, rollout.ReasonPreparation, "the preparation failed: %v", err), nil
	}
	// Inspected again, close to the change.
	running, err := i.Running(ctx, v.socket)
	if err != nil {
		return i.refused(report, rollout.ReasonRuntime, "%v", err), nil
	}
	if now, err := i.Systemd.Unit(ctx, rollout.KubeletUnit); err != nil {
		return nil, err
	} else if now.MainPID != v.unit.MainPID {
		return nil, fmt.Errorf("%s was restarted while its change was prepared: the node is inspected again", rollout.KubeletUnit)
	}
	entry, err := i.start(v, containers.Annotate(running, v.pods))
	if err != nil {
		return i.refused(report, rollout.ReasonPreparation, "%v", err), nil
	}
	if err := i.Systemd.Start(ctx, rollbackTimer); err != nil {
		// Nothing was changed yet, but a crash now must end as one later.
		_, err := i.rollBack(ctx, entry, &failure{reason: rollout.ReasonPreparation, message: fmt.Sprintf("the timer that rolls the change back could not be started: %v", err)})
		return nil, err
	}
	report.Containers = len(running)
	i.progress(ctx, report, fmt.Sprintf("Restarting the kubelet: %s, then %s", describe(v.now), describe(entry.Kubelet)))
	return i.exchange(ctx, State{entry: entry})
}

// start writes the change into the journal.
func (i *Installer) start(v *view, running []cri.Container) (*journal.Entry, error) {
	boot, err := i.Root.Boot()
	if err != nil {
		return nil, err
	}
	wanted := v.stock
	if i.Request.Target.Guarded() {
		wanted = v.offered
		wanted.Path, wanted.Mode = v.program, i.Request.Target.Mode()
	}
	now := time.Now()
	return i.store().Start(journal.Entry{
		RequestID: i.Request.ID(), Pool: i.Pool.Name, Target: i.Request.Target, ReleaseHeld: len(i.notReleased(v)) == 0,
		Boot: boot, Started: now, Uptime: uptime(), Deadline: now.Add(i.Request.Verify()),
		Settle:   i.Request.SettleTime(),
		Previous: v.dropIn, Wanted: v.wanted, Arguments: v.process.Arguments,
		Before: v.now, Kubelet: wanted, Offered: v.offered,
		Protected: v.protected, HeldPods: atMost20(v.heldPods), Held: v.held,
		Containers: running,
		Address:    v.address, Pin: v.pin, Runtime: v.socket, TokenFile: i.hostTokenFile(),
		GuardDir: guardDir(v.configData, v.process),
	})
}

// prepare puts everything in its place that the change needs, and tries what rolls it back.
func (i *Installer) prepare(ctx context.Context, v *view) error {
	like := v.command.Program
	program := programPath(v.installerSum, rollout.Name)
	if err := i.Root.Install(i.Program, program, v.installerSum, like); err != nil {
		return err
	}
	if i.Request.Target.Guarded() {
		if err := i.Root.Install(i.Kubelet, v.program, v.offered.SHA256, like); err != nil {
			return err
		}
		got, err := i.Version(ctx, i.Root, v.program)
		if err != nil {
			return fmt.Errorf("%s cannot be run on the node (is it mounted noexec?): %w", v.program, err)
		}
		if got != v.offered.Version {
			return fmt.Errorf("%s reports that it is %s, not %s", v.program, got, v.offered.Version)
		}
		if err := i.Root.Write(v.config, v.configData, 0o644); err != nil {
			return err
		}
	}
	if err := i.writeUnits(program, i.Request.Verify()+timerMargin); err != nil {
		return err
	}
	if err := i.Systemd.Reload(ctx); err != nil {
		return err
	}
	if err := i.Systemd.Start(ctx, rollbackUnit); err != nil {
		return fmt.Errorf("the unit that rolls a change back was tried and does not work: %w", err)
	}
	klog.InfoS("Prepared", "installer", program, "kubelet", v.program, "configuration", v.config)
	return nil
}

// exchange puts the drop-in into its place, or removes it, and restarts the kubelet.
func (i *Installer) exchange(ctx context.Context, s State) (*rollout.Report, error) {
	i.exchanged = true
	err := i.store().Exchange(s.entry.ID)
	if err == nil {
		err = i.Systemd.Reload(ctx)
	}
	if err == nil {
		err = i.Systemd.Restart(ctx, rollout.KubeletUnit)
	}
	if err != nil {
		i.failure = &failure{entry: s.entry, reason: rollout.ReasonNotStarted, message: fmt.Sprintf("the kubelet could not be exchanged: %v", err)}
	}
	return nil, nil
}
