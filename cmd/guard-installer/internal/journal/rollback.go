package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/pkg/rollout"
)

// Systemd is what a rollback needs.
type Systemd interface {
	Reload(ctx context.Context) error
	Restart(ctx context.Context, unit string) error
	Queue(ctx context.Context, unit string) error
	Unit(ctx context.Context, name string) (systemd.Unit, error)
}

// KeepReason explains why a change that is not confirmed is kept in place all the same, and
// nothing when it is to be rolled back.
type KeepReason func(ctx context.Context, entry *Entry) string

// RollBack restores the previous drop-in and restarts the kubelet, if the entry is
// being switched. Keep is asked first, unless that was decided a moment ago. It returns
// the entry, and nil when there is none.
//
// With an id it is for that change only, and also for one that another process has
// rolled back before its drop-in was put into its place.
func (s Store) RollBack(ctx context.Context, systemd Systemd, id string, keep KeepReason, reason rollout.Reason, message string) (*Entry, error) {
	return s.rollBack(ctx, systemd, s.lock, id, keep, reason, message, systemd.Restart)
}

// RollBackOrTry is RollBack for the unit on the node. Where no change is to be rolled
// back it tries what a rollback needs, so that a unit that cannot do it is found before
// the change.
func (s Store) RollBackOrTry(ctx context.Context, systemd Systemd, keep KeepReason, reason rollout.Reason, message string) (*Entry, error) {
	before, err := s.Read()
	if err != nil {
		return nil, err
	}
	entry, err := s.RollBack(ctx, systemd, "", keep, reason, message)
	if err != nil || before != nil && before.State == Switching {
		return entry, err
	}
	if _, err := systemd.Unit(ctx, rollout.KubeletUnit); err != nil {
		return entry, fmt.Errorf("try a rollback: %w", err)
	}
	if err := s.Root.Write(previousDropIn, nil, 0o644); err != nil {
		return entry, fmt.Errorf("try a rollback: %w", err)
	}
	if err := s.Root.Remove(previousDropIn); err != nil {
		return entry, fmt.Errorf("try a rollback: %w", err)
	}
	return entry, nil
}

// Recover rolls back what a boot has interrupted. It is called before the kubelet is
// started, and so does not wait for it. Where a kubelet runs all the same, keep is asked
// first. A soft reboot starts systemd again in the same boot of the kernel: the timer of
// the change does not run any more then.
//
// The error is host.ErrLocked when another process keeps the lock for 2 seconds. It may be
// a rollback that waits for this very kubelet. Nothing was decided: the kubelet starts with
// the drop-in that is there, and systemd starts the unit again 10 seconds later.
func (s Store) Recover(ctx context.Context, systemd Systemd, keep KeepReason) (*Entry, error) {
	boot, err := s.Root.Boot()
	if err != nil {
		return nil, err
	}
	entry, err := s.Read()
	if err != nil || entry == nil || entry.State != Switching {
		return entry, err
	}
	if entry.Boot == boot {
		timer, err := systemd.Unit(ctx, Timer)
		if err != nil || timer.Active == "active" {
			return entry, err
		}
	}
	if kubelet, err := systemd.Unit(ctx, rollout.KubeletUnit); err == nil && kubelet.MainPID == 0 {
		keep = nil // nothing runs that the old kubelet could stop
	}
	return s.rollBack(ctx, systemd, s.lockSoon, entry.ID, keep, rollout.ReasonInterrupted,
		"the node was started again while its kubelet was being changed. Nothing is known to be wrong with the kubelet that was rolled out", systemd.Queue)
}

func (s Store) rollBack(ctx context.Context, systemd Systemd, lock func() (*host.Lock, error), id string, keep KeepReason, reason rollout.Reason, message string, restart func(context.Context, string) error) (entry *Entry, err error) {
	err = s.lockedBy(lock, func(e *Entry) error {
		entry = e
		if e == nil {
			return nil
		}
		if id != "" && e.ID != id {
			return ErrTaken
		}
		current, err := s.Root.ReadText(rollout.DropIn)
		if err != nil {
			return err
		}
		lost := id != "" && e.State == RolledBack && ptr.Equal(current, e.Wanted) && !ptr.Equal(current, e.Previous)
		if e.State != Switching && !lost {
			return nil
		}
		e.State = Switching
		if e.Reason != "" {
			reason, message = e.Reason, e.Message
		}
		if keep != nil && !e.decided() {
			if why := keep(ctx, e); why != "" {
				return s.keepInPlace(ctx, systemd, e, reason, message+". "+why, e.Stopped)
			}
		}
		if !ptr.Equal(current, e.Previous) {
			if err := s.restorePrevious(e); err != nil {
				return err
			}
		}
		if err := systemd.Reload(ctx); err != nil {
			return err
		}
		if err := s.restart(ctx, systemd, e, restart); err != nil {
			return err
		}
		e.State, e.Reason, e.Message = RolledBack, reason, message
		return s.end(e)
	})
	if err != nil {
		return entry, fmt.Errorf("roll back the change of the kubelet: %w", err)
	}
	return entry, nil
}

// restorePrevious restores the previous drop-in. On a full disk it needs no room.
func (s Store) restorePrevious(e *Entry) error {
	if e.Previous != nil {
		if prepared, err := s.Root.ReadText(previousDropIn); err == nil && ptr.Equal(prepared, e.Previous) {
			return s.Root.Rename(previousDropIn, rollout.DropIn)
		}
	}
	return s.put(e.Previous)
}

// restart starts the old kubelet, unless it runs: what could not be written does not
// restart it again and again.
func (s Store) restart(ctx context.Context, systemd Systemd, e *Entry, restart func(context.Context, string) error) error {
	if s.runsOld(ctx, systemd, e).IsYes() {
		return nil
	}
	before, beforeErr := systemd.Unit(ctx, rollout.KubeletUnit)
	err := restart(ctx, rollout.KubeletUnit)
	if err == nil {
		return nil
	}
	after, afterErr := systemd.Unit(ctx, rollout.KubeletUnit)
	if afterErr == nil && (after.MainPID == 0 || beforeErr == nil && before.MainPID != after.MainPID) {
		// The new kubelet does not run any more. That the old one does not start is no reason to do it
		// all again: systemd starts it, and the report describes it.
		klog.ErrorS(err, "The old kubelet was restored and did not start at once")
		return nil
	}
	return err
}

// runsOld answers whether the previous kubelet runs.
func (s Store) runsOld(ctx context.Context, systemd Systemd, e *Entry) answer.Answer {
	service, err := systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil || !service.Running() || e.Before.SHA256 == "" || len(e.Arguments) == 0 {
		return answer.Check(false, err)
	}
	process, err := s.Root.Process(service.MainPID)
	return answer.Check((process.SHA256 == e.Before.SHA256 || s.Upgraded(e, process)) && slices.Equal(process.Arguments, e.Arguments), err)
}

// Upgraded reports whether the process runs the node's own kubelet, which was replaced on
// the disk since the change was started: the distribution has upgraded it.
func (s Store) Upgraded(e *Entry, process host.Process) bool {
	if e.Previous != nil || e.Before.Path == "" || process.SHA256 == e.Before.SHA256 {
		return false
	}
	now, err := host.Checksum(s.Root.Path(e.Before.Path))
	return err == nil && now == process.SHA256
}

// end writes an entry that is finished. On a full disk it needs no room: what was
// written when the change started says less, and ends it as well.
func (s Store) end(e *Entry) error {
	err := s.write(e)
	if err == nil {
		return nil
	}
	prepared, readErr := s.read(rolledBackEntry)
	if readErr != nil || prepared == nil || prepared.ID != e.ID {
		return err
	}
	klog.ErrorS(err, "Could not write the reason of a rollback", "reason", e.Reason, "message", e.Message)
	if renameErr := s.Root.Rename(rolledBackEntry, file); renameErr != nil {
		return errors.Join(err, renameErr)
	}
	e.Reason, e.Message, e.Stopped = prepared.Reason, prepared.Message, prepared.Stopped
	return nil
}

// RemovePrepared removes what was prepared for a rollback. No entry may be in the state
// Switching.
func (s Store) RemovePrepared() error {
	return errors.Join(s.Root.Remove(previousDropIn), s.Root.Remove(rolledBackEntry))
}
