package node

import (
	"context"
	"errors"

	"k8s.io/klog/v2"

	"kubelet-guard.io/cmd/guard-installer/internal/journal"
)

func (i *Installer) stopTimer(ctx context.Context) {
	if err := i.Systemd.Stop(ctx, rollbackTimer); err != nil {
		klog.ErrorS(err, "Could not stop the timer; it will find the change finished and do nothing")
	}
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
