package node

import (
	"errors"

	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

// ownerFile is locked by the one installer that may change the node, for its life, and
// names it. It is in /run: nothing of it outlives a boot.
const ownerFile = "/run/kubelet-guard-installer.lock"

// own makes this process the only installer of the node. other names the one that is.
func (i *Installer) own() (other string, err error) {
	if i.owned != nil {
		return "", nil
	}
	lock, err := i.Root.TryLock(ownerFile)
	if errors.Is(err, host.ErrLocked) {
		text, err := i.Root.Read(ownerFile)
		if err != nil || len(text) == 0 {
			return "an installer that has not given its name", nil
		}
		return string(text), nil
	}
	if err != nil {
		return "", err
	}
	if err := lock.SetText(i.Owner); err != nil {
		klog.ErrorS(err, "Could not write the name of this installer", "file", ownerFile)
	}
	i.owned = lock
	return "", nil
}

// disown ends the ownership of a process that works no more.
func (i *Installer) disown() {
	if i.owned != nil {
		_ = i.owned.Close()
		i.owned = nil
	}
}
