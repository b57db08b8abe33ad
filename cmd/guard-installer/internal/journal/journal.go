// Package journal remembers a change of a node while it is being made, and takes it
// back.
//
// What runs on a node is decided by one file, the drop-in of kubelet.service; the
// journal has what it was and what it shall be. Before the drop-in is touched an entry
// in the state Switching is on the disk. From then on exactly one of two things
// happens to the entry: somebody confirms it, or somebody takes it back. Both hold the
// lock. What is not in order and cannot be taken back without harm is confirmed with a
// reason: it was left in place. Taking back may be repeated at any point: after a crash,
// by the timer, when the node boots.
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/pkg/rollout"
)

const (
	file     = rollout.StateDir + "/journal.json"
	lockFile = rollout.StateDir + "/lock"
)

// State of an entry. The zero value is invalid.
type State string

const (
	// Switching: the drop-in may be the old or the new one.
	Switching State = "Switching"
	// Confirmed: the new one is in force and was found in order.
	Confirmed State = "Confirmed"
	// RolledBack: the old one is in force again.
	RolledBack State = "RolledBack"
)

// Entry is a change of a node.
type Entry struct {
	State     State          `json:"state"`
	RequestID string         `json:"requestID"`
	Pool      string         `json:"pool"`
	Target    rollout.Target `json:"target"`
	// ReleaseHeld: the pods of Held may stop.
	ReleaseHeld bool `json:"releaseHeld,omitempty"`
	// Boot in which the change began.
	Boot  string    `json:"boot"`
	Began time.Time `json:"began"`
	// Deadline for the confirmation; Settle is how long everything must have been in
	// order until then.
	Deadline time.Time     `json:"deadline"`
	Settle   time.Duration `json:"settle"`
	// Previous and Wanted are the content of the drop-in; nil: no drop-in.
	Previous *string `json:"previous"`
	Wanted   *string `json:"wanted"`
	// Before is the kubelet that ran, Kubelet the one that shall run.
	Before  rollout.Kubelet `json:"before"`
	Kubelet rollout.Kubelet `json:"kubelet"`
	// Offered is that of the image.
	Offered   rollout.Kubelet `json:"offered"`
	Protected int             `json:"protected"`
	HeldPods  []string        `json:"heldPods,omitempty"`
	// Containers that ran before the change, and UIDs of the pods that were held.
	Containers []cri.Container `json:"containers"`
	Held       []types.UID     `json:"held,omitempty"`
	// Address and Pin of the kubelet, Runtime is the socket of the container runtime.
	Address string `json:"address"`
	Pin     string `json:"pin"`
	Runtime string `json:"runtime"`
	// TokenFile is where the node has the installer's token for the kubelet; empty when
	// it was not found.
	TokenFile string `json:"tokenFile,omitempty"`
	// GuardDir is the state directory of the guard in the new kubelet; empty when it is
	// unknown.
	GuardDir string `json:"guardDir,omitempty"`

	// Reason and Message say why it is taken back, or was; of a confirmed change, what was
	// wrong although it was left in place. Stopped are containers that were found stopped.
	Reason  rollout.Reason `json:"reason,omitempty"`
	Message string         `json:"message,omitempty"`
	Stopped []string       `json:"stopped,omitempty"`
	// Ended is how many of Containers had ended for reasons of their own when the change
	// was confirmed.
	Ended int `json:"ended,omitempty"`
	// Marked: the Node has the label that says that the roll-out failed there.
	Marked bool `json:"marked,omitempty"`
}

// Store has at most one entry.
type Store struct{ Root host.Root }

// Read returns the entry, and nil when there is none.
func (s Store) Read() (*Entry, error) {
	data, err := s.Root.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	entry := &Entry{}
	if err := json.Unmarshal(data, entry); err != nil {
		return nil, fmt.Errorf("the journal %s is damaged: %w (look at %s; when the kubelet is in order, remove the journal)", file, err, rollout.DropIn)
	}
	return entry, nil
}

func (s Store) write(entry *Entry) error {
	data, err := json.MarshalIndent(entry, "", "  ")
	if err != nil {
		return err
	}
	return s.Root.Write(file, append(data, '\n'), 0o600)
}

// ErrTaken says that somebody else has ended the change.
var ErrTaken = errors.New("the change was taken back or left meanwhile")

// Begin writes a new entry in the state Switching. One that is being switched is an
// error.
func (s Store) Begin(entry Entry) error {
	return s.locked(func(old *Entry) error {
		if old != nil && old.State == Switching {
			return fmt.Errorf("another change (request %s) is not at its end", old.RequestID)
		}
		entry.State = Switching
		return s.write(&entry)
	})
}

// Change changes an entry in the state Switching. The error says so when it is not.
func (s Store) Change(change func(*Entry)) error {
	return s.locked(func(entry *Entry) error {
		if entry == nil || entry.State != Switching {
			return ErrTaken
		}
		change(entry)
		return s.write(entry)
	})
}

// Confirm ends a change that is in order, also one that was left in place. ended is how
// many more containers have ended for reasons of their own. It fails when the change was
// taken back meanwhile.
func (s Store) Confirm(ended int) error {
	return s.locked(func(entry *Entry) error {
		if entry == nil || entry.State == RolledBack {
			return ErrTaken
		}
		entry.State = Confirmed
		entry.Ended += ended
		entry.Reason, entry.Message, entry.Stopped, entry.Marked = "", "", nil, false
		return s.write(entry)
	})
}

// Leave ends a change that is not in order and is left in place all the same. It fails
// when somebody else has ended it meanwhile.
func (s Store) Leave(reason rollout.Reason, message string, stopped []string) error {
	return s.Change(func(entry *Entry) { leave(entry, reason, message, stopped) })
}

func leave(entry *Entry, reason rollout.Reason, message string, stopped []string) {
	entry.State, entry.Marked = Confirmed, false
	entry.Reason, entry.Message, entry.Stopped = reason, message, stopped
}

// Left reports whether the change is not in order and was left in place.
func (e *Entry) Left() bool { return e != nil && e.State == Confirmed && e.Reason != "" }

// Reopen makes a change that was left in place one that is being switched.
func (s Store) Reopen(reason rollout.Reason, message string, stopped []string) error {
	return s.locked(func(entry *Entry) error {
		if !entry.Left() {
			return ErrTaken
		}
		entry.State, entry.Marked = Switching, false
		entry.Reason, entry.Message, entry.Stopped = reason, message, stopped
		return s.write(entry)
	})
}

// Mark notes that the Node was marked as failed.
func (s Store) Mark() error {
	return s.locked(func(entry *Entry) error {
		if entry == nil || entry.State == Switching || entry.Reason == "" {
			return nil
		}
		entry.Marked = true
		return s.write(entry)
	})
}

// Clear removes an entry that is not being switched.
func (s Store) Clear() error {
	return s.locked(func(entry *Entry) error {
		if entry != nil && entry.State == Switching {
			return fmt.Errorf("the change (request %s) is not at its end", entry.RequestID)
		}
		return s.Root.Remove(file)
	})
}

// Systemd is what taking back needs.
type Systemd interface {
	Reload(ctx context.Context) error
	Restart(ctx context.Context, unit string) error
	Queue(ctx context.Context, unit string) error
}

// Keep says why a change that is not confirmed is left in place all the same, and
// nothing when it is to be taken back.
type Keep func(ctx context.Context, entry *Entry) string

// TakeBack puts the previous drop-in back and restarts the kubelet, if the entry is
// being switched. An entry with a reason was decided on; of any other, keep is asked
// first. It returns the entry, and nil when there is none.
func (s Store) TakeBack(ctx context.Context, systemd Systemd, keep Keep, reason rollout.Reason, message string) (*Entry, error) {
	return s.takeBack(ctx, keep, reason, message, func(ctx context.Context) error {
		if err := systemd.Reload(ctx); err != nil {
			return err
		}
		return systemd.Restart(ctx, rollout.KubeletUnit)
	})
}

// Recover takes back what was begun in another boot. It is called before the kubelet
// is started, and so does not wait for it. Nothing runs then that the old kubelet could
// stop, so nobody is asked.
func (s Store) Recover(ctx context.Context, systemd Systemd) (*Entry, error) {
	boot, err := s.Root.Boot()
	if err != nil {
		return nil, err
	}
	entry, err := s.Read()
	if err != nil || entry == nil || entry.Boot == boot {
		return entry, err
	}
	return s.takeBack(ctx, nil, rollout.ReasonInterrupted, "the node was started again while its kubelet was being changed. Nothing is known to be wrong with the kubelet that was rolled out", func(ctx context.Context) error {
		if err := systemd.Reload(ctx); err != nil {
			return err
		}
		return systemd.Queue(ctx, rollout.KubeletUnit)
	})
}

func (s Store) takeBack(ctx context.Context, keep Keep, reason rollout.Reason, message string, restart func(context.Context) error) (entry *Entry, err error) {
	err = s.locked(func(e *Entry) error {
		entry = e
		if e == nil || e.State != Switching {
			return nil
		}
		if keep != nil && e.Reason == "" {
			if why := keep(ctx, e); why != "" {
				leave(e, reason, message+". "+why, nil)
				return s.write(e)
			}
		}
		if e.Previous == nil {
			err = s.Root.Remove(rollout.DropIn)
		} else {
			err = s.Root.Write(rollout.DropIn, []byte(*e.Previous), 0o644)
		}
		if err != nil {
			return err
		}
		if err := restart(ctx); err != nil {
			return err
		}
		e.State = RolledBack
		if e.Reason == "" {
			e.Reason, e.Message = reason, message
		}
		return s.write(e)
	})
	if err != nil {
		return entry, fmt.Errorf("take back the change of the kubelet: %w", err)
	}
	return entry, nil
}

// locked calls f with the entry, nil when there is none, while no other process may
// change it.
func (s Store) locked(f func(*Entry) error) error {
	path := s.Root.Path(lockFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lock the journal: %w", err)
	}
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock the journal: %w", err)
	}
	defer lock.Close()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock the journal: %w", err)
		}
	}
	entry, err := s.Read()
	if err != nil {
		return err
	}
	return f(entry)
}
