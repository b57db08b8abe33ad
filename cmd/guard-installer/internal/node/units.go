package node

import (
	"context"
	"fmt"
	"path"
	"time"

	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/pkg/rollout"
)

// Units that exist while a node is being changed.
const (
	// rollbackUnit rolls the change back. rollbackTimer starts it when nobody has
	// confirmed the change in time.
	rollbackUnit  = "kubelet-guard-rollback.service"
	rollbackTimer = journal.Timer
	// recoverUnit rolls the change back when the node boots in the middle of it.
	recoverUnit = "kubelet-guard-recover.service"

	// A rollback that fails is tried again by systemd, RollbackTries times in all, with
	// RollbackPause seconds between. That is 10 minutes, and more where each takes its time.
	RollbackTries = 60
	// RollbackPause is in seconds.
	RollbackPause = 10

	// What is in /run is gone after a boot.
	runtimeUnits = "/run/systemd/system"
	units        = "/etc/systemd/system"
	// The unit of the kubelet wants it, whatever target the node boots to.
	wanted = units + "/" + rollout.KubeletUnit + ".wants"
)

// writeUnits writes the units. program is the installer on the node, after is when the
// timer rolls the change back.
func (i *Installer) writeUnits(program string, after time.Duration) error {
	i.unitsRemoved = false
	files := map[string]string{
		path.Join(runtimeUnits, rollbackUnit): fmt.Sprintf(`# Written by guard-installer; it is gone when the roll-out on this node has ended.
[Unit]
Description=Restore the kubelet that a roll-out of Kubelet Guard has replaced
StartLimitIntervalSec=86400
StartLimitBurst=%d
[Service]
Type=oneshot
ExecStart=%s rollback
TimeoutStartSec=180
Restart=on-failure
RestartSec=%d
`, RollbackTries, program, RollbackPause),
		path.Join(runtimeUnits, rollbackTimer): fmt.Sprintf(`# Written by guard-installer; it is gone when the roll-out on this node has ended.
[Unit]
Description=Restore the kubelet unless the roll-out of Kubelet Guard confirms the new one
[Timer]
OnActiveSec=%d
AccuracySec=1
`, int(after.Seconds())),
		path.Join(units, recoverUnit): fmt.Sprintf(`# Written by guard-installer; it is gone when the roll-out on this node has ended.
[Unit]
Description=Restore the kubelet of a roll-out of Kubelet Guard that a boot has interrupted
Before=%s
RequiresMountsFor=%s %s %s
StartLimitIntervalSec=86400
StartLimitBurst=%d
[Service]
Type=oneshot
ExecStart=%s recover
TimeoutStartSec=60
Restart=on-failure
RestartSec=%d
[Install]
WantedBy=%s
`, rollout.KubeletUnit, rollout.InstallDir, rollout.StateDir, path.Dir(rollout.DropIn), RollbackTries, program, RollbackPause, rollout.KubeletUnit),
	}
	for name, text := range files {
		if err := i.Root.Write(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return i.Root.Link(path.Join(units, recoverUnit), path.Join(wanted, recoverUnit))
}

// endUnits stops and removes what writeUnits wrote, and removes what the journal has
// prepared for a rollback and what installers that were killed have left. No change may be
// under way. The unit for a boot goes last: while it is there, the next installer does the
// rest. Its link goes before it: without its file it would be an error of every boot.
func (i *Installer) endUnits(ctx context.Context) error {
	// A timer that ran on would end the next change early.
	for _, name := range []string{rollbackTimer, rollbackUnit} {
		if err := i.Systemd.Stop(ctx, name); err != nil {
			return err
		}
	}
	for _, name := range []string{rollbackTimer, rollbackUnit} {
		if err := i.Root.Remove(path.Join(runtimeUnits, name)); err != nil {
			return err
		}
	}
	if err := i.store().RemovePrepared(); err != nil {
		return err
	}
	folders := []string{wanted, units, runtimeUnits, path.Dir(rollout.DropIn), rollout.StateDir, rollout.ConfigDir}
	programs, err := i.Root.Folder(rollout.InstallDir)
	if err != nil {
		return err
	}
	for _, name := range programs {
		folders = append(folders, path.Join(rollout.InstallDir, name))
	}
	for _, folder := range folders {
		if err := i.Root.RemoveUnfinished(folder); err != nil {
			return err
		}
	}
	for _, name := range []string{path.Join(wanted, recoverUnit), path.Join(units, recoverUnit)} {
		if err := i.Root.Remove(name); err != nil {
			return err
		}
	}
	if err := i.Root.RemoveEmpty(wanted); err != nil {
		return err
	}
	if err := i.Systemd.Reload(ctx); err != nil {
		return err
	}
	i.unitsRemoved = true
	return nil
}

// removeUnits removes what an installer has left that was interrupted before or after a
// change. What has failed is reported first: that stops the roll-out.
func (i *Installer) removeUnits(ctx context.Context, s State) (*rollout.Report, error) {
	err := i.endUnits(ctx)
	if err != nil && s.entry != nil && s.entry.Reason != "" && !s.entry.Marked {
		klog.ErrorS(err, "Could not remove units, will try again")
		i.keepsUnits, err = true, nil
	}
	return nil, err
}
