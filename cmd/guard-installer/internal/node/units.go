package node

import (
	"fmt"
	"path"
	"time"

	"kubelet-guard.io/pkg/rollout"
)

// Units that exist while a node is being changed.
const (
	// takeBackUnit takes the change back. takeBackTimer starts it when nobody has
	// confirmed the change in time.
	takeBackUnit  = "kubelet-guard-take-back.service"
	takeBackTimer = "kubelet-guard-take-back.timer"
	// recoverUnit takes the change back when the node boots in the middle of it.
	recoverUnit = "kubelet-guard-recover.service"

	// What is in /run is gone after a boot.
	runtimeUnits = "/run/systemd/system"
	units        = "/etc/systemd/system"
	// The unit of the kubelet wants it, whatever target the node boots to.
	wanted = units + "/" + rollout.KubeletUnit + ".wants"
)

// writeUnits writes the units. program is the installer on the node, after is when the
// timer takes the change back.
func (i *Installer) writeUnits(program string, after time.Duration) error {
	files := map[string]string{
		path.Join(runtimeUnits, takeBackUnit): fmt.Sprintf(`# Written by guard-installer; it is gone when the roll-out on this node is at its end.
[Unit]
Description=Put back the kubelet that a roll-out of Kubelet Guard has replaced
[Service]
Type=oneshot
ExecStart=%s take-back
TimeoutStartSec=180
`, program),
		path.Join(runtimeUnits, takeBackTimer): fmt.Sprintf(`# Written by guard-installer; it is gone when the roll-out on this node is at its end.
[Unit]
Description=Put back the kubelet unless the roll-out of Kubelet Guard confirms the new one
[Timer]
OnActiveSec=%d
AccuracySec=1
`, int(after.Seconds())),
		path.Join(units, recoverUnit): fmt.Sprintf(`# Written by guard-installer; it is gone when the roll-out on this node is at its end.
[Unit]
Description=Put back the kubelet of a roll-out of Kubelet Guard that a boot has interrupted
Before=%s
RequiresMountsFor=%s %s %s
[Service]
Type=oneshot
ExecStart=%s recover
TimeoutStartSec=60
[Install]
WantedBy=%s
`, rollout.KubeletUnit, rollout.InstallDir, rollout.StateDir, path.Dir(rollout.DropIn), program, rollout.KubeletUnit),
	}
	for name, text := range files {
		if err := i.Root.Write(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return i.Root.Link(path.Join(units, recoverUnit), path.Join(wanted, recoverUnit))
}

// removeUnits removes what writeUnits wrote. The link goes first: without its file it
// would be an error of every boot.
func (i *Installer) removeUnits() error {
	for _, name := range []string{
		path.Join(wanted, recoverUnit), path.Join(units, recoverUnit),
		path.Join(runtimeUnits, takeBackTimer), path.Join(runtimeUnits, takeBackUnit),
	} {
		if err := i.Root.Remove(name); err != nil {
			return err
		}
	}
	return i.Root.RemoveEmpty(wanted)
}
