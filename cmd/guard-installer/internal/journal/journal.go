// Package journal remembers a change of a node while it is being made, and rolls it
// back.
//
// What runs on a node is decided by one file, the drop-in of kubelet.service; the
// journal has what it was and what it shall be. Before the drop-in is touched an entry
// in the state Switching is on the disk. From then on the entry is either confirmed or
// rolled back, exactly once. Both need the lock, and so does a rename of the drop-in. What is not healthy and cannot be rolled
// back without harm is confirmed with a reason: it was kept in place. A rollback may be
// repeated at any point: after a crash, by the timer, when the node boots. It needs no
// room on the disk.
package journal

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/pkg/rollout"
)

const (
	file     = rollout.StateDir + "/journal.json"
	lockFile = rollout.StateDir + "/lock"

	// A rollback must not need room on the disk: both files are written before the change
	// and only renamed then. systemd does not read a drop-in with this ending.
	previousDropIn  = rollout.DropIn + ".previous"
	rolledBackEntry = rollout.StateDir + "/journal-rolled-back.json"

	// decisionHolds is how long a decision to roll back holds: what the guard holds may be
	// more after that.
	decisionHolds = 30 * time.Second
	// recoverPatience is how long Recover waits for the lock: a kubelet is started after it.
	recoverPatience = 2 * time.Second
)

// Timer starts the rollback of a change that nobody has confirmed in time.
const Timer = "kubelet-guard-rollback.timer"

// State of an entry. The zero value is invalid.
type State string

const (
	// Switching: the drop-in may be the old or the new one.
	Switching State = "Switching"
	// Confirmed: the new one is in its place and was found healthy.
	Confirmed State = "Confirmed"
	// RolledBack: the old one is in its place again.
	RolledBack State = "RolledBack"
)

// Entry is a change of a node.
type Entry struct {
	// ID is random: no other attempt has it, also at the same request.
	ID        string         `json:"id,omitempty"`
	State     State          `json:"state"`
	RequestID string         `json:"requestID"`
	Pool      string         `json:"pool"`
	Target    rollout.Target `json:"target"`
	// ReleaseHeld: the pods of Held may stop.
	ReleaseHeld bool `json:"releaseHeld,omitempty"`
	// Boot in which the change started.
	Boot    string    `json:"boot"`
	Started time.Time `json:"started"`
	// Uptime is host.Uptime when it started.
	Uptime time.Duration `json:"uptime,omitempty"`
	// Deadline for the confirmation; Settle is how long everything must have been
	// healthy until then.
	Deadline time.Time     `json:"deadline"`
	Settle   time.Duration `json:"settle"`
	// Previous and Wanted are the content of the drop-in; nil: no drop-in.
	Previous *string `json:"previous"`
	Wanted   *string `json:"wanted"`
	// Exchanged: the drop-in has been Wanted since the change started.
	Exchanged bool `json:"exchanged,omitempty"`
	// Arguments of the kubelet that ran before.
	Arguments []string `json:"arguments,omitempty"`
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

	// Reason and Message explain why it is rolled back, or was; of a confirmed change, what was
	// wrong although it was kept in place. Stopped are containers that were found stopped.
	Reason  rollout.Reason `json:"reason,omitempty"`
	Message string         `json:"message,omitempty"`
	Stopped []string       `json:"stopped,omitempty"`
	// Decided is when it was found that a rollback does no harm.
	Decided time.Time `json:"decided,omitzero"`
	// Ended is how many of Containers had ended for reasons of their own when the change
	// was confirmed.
	Ended int `json:"ended,omitempty"`
	// Marked: the Node has the label of a failed roll-out.
	Marked bool `json:"marked,omitempty"`
}

// newID returns an ID that no other attempt has.
func newID() string { return strings.ToLower(rand.Text()[:12]) }

// Store has at most one entry.
type Store struct{ Root host.Root }

// Read returns the entry, and nil when there is none.
func (s Store) Read() (*Entry, error) { return s.read(file) }

func (s Store) read(file string) (*Entry, error) {
	data, err := s.Root.Read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	entry := &Entry{}
	if err := json.Unmarshal(data, entry); err != nil {
		return nil, fmt.Errorf("the journal %s is damaged: %w (see %s; when the kubelet is healthy, remove the journal)", file, err, rollout.DropIn)
	}
	return entry, nil
}

func (s Store) write(entry *Entry) error { return s.writeTo(file, entry) }

func (s Store) writeTo(file string, entry *Entry) error {
	data, err := json.MarshalIndent(entry, "", "  ")
	if err != nil {
		return err
	}
	return s.Root.Write(file, append(data, '\n'), 0o600)
}

// ErrTaken means that another process has ended the change, or has started another one.
var ErrTaken = errors.New("the change was rolled back or kept meanwhile")

// Start writes a new entry in the state Switching and returns it. One that is being
// switched is an error.
func (s Store) Start(entry Entry) (*Entry, error) {
	entry.ID = newID()
	err := s.locked(func(old *Entry) error {
		if old != nil && old.State == Switching {
			return fmt.Errorf("another change (request %s) is not finished", old.RequestID)
		}
		if entry.Previous != nil {
			if err := s.Root.Write(previousDropIn, []byte(*entry.Previous), 0o644); err != nil {
				return err
			}
		}
		end := entry
		end.State, end.Reason = RolledBack, rollout.ReasonInterrupted
		end.Message = "the change was rolled back, and the reason could not be written to " + file + ": is the disk full? The log of the installer has it, or journalctl on the node"
		if err := s.writeTo(rolledBackEntry, &end); err != nil {
			return err
		}
		entry.State = Switching
		return s.write(&entry)
	})
	if err != nil {
		return nil, err
	}
	return &entry, nil
}

// change changes an entry that f allows to be changed.
func (s Store) change(id string, may func(*Entry) bool, f func(*Entry) error) error {
	return s.locked(func(entry *Entry) error {
		if entry == nil || entry.ID != id || !may(entry) {
			return ErrTaken
		}
		return f(entry)
	})
}

func (e *Entry) switching() bool { return e.State == Switching }

// Exchange puts the drop-in of the change into its place, or removes it. It fails with
// ErrTaken when the change is not being switched any more.
func (s Store) Exchange(id string) error {
	return s.change(id, (*Entry).switching, func(entry *Entry) error {
		if err := s.put(entry.Wanted); err != nil {
			return err
		}
		entry.Exchanged = true
		return s.write(entry)
	})
}

func (s Store) put(dropIn *string) error {
	if dropIn == nil {
		return s.Root.Remove(rollout.DropIn)
	}
	return s.Root.Write(rollout.DropIn, []byte(*dropIn), 0o644)
}

// Decide notes why a change that is being switched is to be rolled back, and that this
// does no harm now.
func (s Store) Decide(id string, reason rollout.Reason, message string, stopped []string) error {
	return s.change(id, (*Entry).switching, func(entry *Entry) error {
		if entry.Reason == "" {
			entry.Reason, entry.Message, entry.Stopped = reason, message, stopped
		}
		entry.Decided = time.Now()
		return s.write(entry)
	})
}

func (e *Entry) decided() bool {
	age := time.Since(e.Decided)
	return age >= 0 && age < decisionHolds
}

// Confirm ends a change that is healthy, also one that was kept in place. ended is how
// many more containers have ended for reasons of their own. It fails when the change was
// rolled back meanwhile.
func (s Store) Confirm(id string, ended int) error {
	return s.change(id, func(entry *Entry) bool { return entry.State != RolledBack }, func(entry *Entry) error {
		entry.State = Confirmed
		entry.Ended += ended
		entry.Reason, entry.Message, entry.Stopped, entry.Marked = "", "", nil, false
		return s.write(entry)
	})
}

// KeepInPlace ends a change that is not healthy and is kept in place all the same. It fails
// when another process has ended it meanwhile.
func (s Store) KeepInPlace(ctx context.Context, systemd Systemd, id string, reason rollout.Reason, message string, stopped []string) error {
	return s.change(id, (*Entry).switching, func(entry *Entry) error {
		return s.keepInPlace(ctx, systemd, entry, reason, message, stopped)
	})
}

func (s Store) keepInPlace(ctx context.Context, systemd Systemd, entry *Entry, reason rollout.Reason, message string, stopped []string) error {
	current, err := s.Root.ReadText(rollout.DropIn)
	if err != nil {
		return err
	}
	if !ptr.Equal(current, entry.Wanted) {
		// A rollback got this far. The kubelet that runs shall be the one that systemd would
		// start again.
		if err := s.put(entry.Wanted); err != nil {
			return err
		}
		if err := systemd.Reload(ctx); err != nil {
			return err
		}
	}
	entry.State, entry.Marked = Confirmed, false
	entry.Reason, entry.Message, entry.Stopped = reason, message, stopped
	return s.write(entry)
}

// Kept reports whether the change is not healthy and was kept in place.
func (e *Entry) Kept() bool { return e != nil && e.State == Confirmed && e.Reason != "" }

// Reopen makes a change that was kept in place one that is being switched, which is an
// attempt of its own. again has what is known by now, and gets the ID.
func (s Store) Reopen(again *Entry, reason rollout.Reason, message string, stopped []string) error {
	id := newID()
	err := s.change(again.ID, (*Entry).Kept, func(entry *Entry) error {
		entry.ID, entry.State, entry.Marked, entry.Decided = id, Switching, false, time.Time{}
		entry.Address, entry.Pin = again.Address, again.Pin
		entry.Reason, entry.Message, entry.Stopped = reason, message, stopped
		return s.write(entry)
	})
	if err == nil {
		again.ID = id
	}
	return err
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
			return fmt.Errorf("the change (request %s) is not finished", entry.RequestID)
		}
		return s.Root.Remove(file)
	})
}

// lock takes the lock of the journal, and waits for it.
func (s Store) lock() (*host.Lock, error) { return s.Root.Lock(lockFile) }

// lockSoon takes the lock of the journal, and waits for it for recoverPatience at most.
func (s Store) lockSoon() (*host.Lock, error) {
	deadline := time.Now().Add(recoverPatience)
	for {
		lock, err := s.Root.TryLock(lockFile)
		if !errors.Is(err, host.ErrLocked) || !time.Now().Before(deadline) {
			return lock, err
		}
		time.Sleep(recoverPatience / 20)
	}
}

// locked calls f with the entry, nil when there is none, while no other process may
// change it.
func (s Store) locked(f func(*Entry) error) error { return s.lockedBy(s.lock, f) }

func (s Store) lockedBy(take func() (*host.Lock, error), f func(*Entry) error) error {
	lock, err := take()
	if err != nil {
		return fmt.Errorf("the journal: %w", err)
	}
	defer lock.Close()
	// The writer has the lock: what is unfinished is of a process that was killed.
	if err := s.Root.RemoveUnfinished(rollout.StateDir); err != nil {
		klog.ErrorS(err, "Could not remove what a killed process has left")
	}
	entry, err := s.Read()
	if err != nil {
		return err
	}
	return f(entry)
}
