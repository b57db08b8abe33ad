package node

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/pkg/rollout"
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

// yieldToOwner reports that another installer runs on the node.
func (i *Installer) yieldToOwner(_ context.Context, s State) (*rollout.Report, error) {
	if !strings.HasSuffix(s.other, " of pool "+i.Pool.Name) { // the form of Owner
		return i.refuseOtherPool("another installer runs on this node: " + s.other), nil
	}
	report := i.newReport()
	report.Phase = rollout.Waiting
	report.Message = fmt.Sprintf("Another installer runs on this node: %s. This one starts when that one has ended", s.other)
	return &report, nil
}

// findOwnerPool finds out whether the node belongs to this pool. A node that several pools
// select belongs to the one that has reported on it, for as long as that one selects it: it
// does not go from one to the other with a boot, or with the sequence in which their
// installers start. Without a report the journal counts, and then who has the lock.
func (i *Installer) findOwnerPool(ctx context.Context, s State) (report *rollout.Report, err error) {
	defer func() {
		if err != nil || report != nil {
			i.disown()
		}
	}()
	node, err := i.Cluster.Node(ctx)
	if err != nil {
		return nil, err
	}
	pool := ""
	if report, err := rollout.ReportOf(node); err == nil && report != nil {
		pool = report.Pool
	} else if s.entry != nil {
		pool = s.entry.Pool
	}
	if pool != "" && pool != i.Pool.Name {
		selects, err := i.Cluster.Selects(ctx, pool, node)
		if err != nil {
			return nil, err
		}
		if selects {
			return i.refuseOtherPool(fmt.Sprintf("the node belongs to pool %s, which selects it as well", pool)), nil
		}
	}
	i.claimed = true
	return nil, nil
}

// refuseOtherPool is the report of an installer whose node belongs to another pool. It is
// for the log and an event: the report on the Node is that of the other pool.
func (i *Installer) refuseOtherPool(why string) *rollout.Report {
	return i.refused(rollout.Report{}, rollout.ReasonOtherPool, "%s. A node must be in one pool only: change the selector of a pool, or the labels of the node", why)
}
