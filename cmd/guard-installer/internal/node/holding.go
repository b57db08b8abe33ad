package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"k8s.io/utils/ptr"

	"kubelet-guard.io/cmd/guard-installer/internal/answer"
	"kubelet-guard.io/cmd/guard-installer/internal/host"
	"kubelet-guard.io/cmd/guard-installer/internal/journal"
	"kubelet-guard.io/cmd/guard-installer/internal/kubelet"
	"kubelet-guard.io/cmd/guard-installer/internal/systemd"
	"kubelet-guard.io/cmd/guard-installer/internal/unit"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

const (
	// holdingTimeout bounds the query for what is held. It is part of timerMargin.
	holdingTimeout = 9 * time.Second
	// systemdTimeout is the part of it for systemd.
	systemdTimeout = 3 * time.Second
	// holdingTries are for a kubelet that was started a moment ago, and for a systemd that
	// is reloading.
	holdingTries = 3
)

// Holding finds out whether a change can be rolled back without harm: pods that the new
// kubelet holds are pods that the old one would stop. The installer uses it, and so does
// the node when it rolls a change back by itself.
type Holding struct {
	Root    host.Root
	Systemd interface {
		Unit(ctx context.Context, name string) (systemd.Unit, error)
	}
	// Protected is that of Installer.
	Protected func(ctx context.Context, address, pin string) (*guard.PodList, error)
	// Poll is how long to wait between two queries.
	Poll time.Duration
}

func (i *Installer) holding() Holding {
	return Holding{Root: i.Root, Systemd: i.Systemd, Protected: i.Protected, Poll: i.Poll}
}

// KeepReason explains why a change must not be rolled back: the new kubelet runs, with the guard in
// mode Enforce, and holds pods that the previous kubelet would stop, or it is unknown
// whether it does. It says nothing when the change can be rolled back, which is so for a
// kubelet that does not run, ends again and again or runs without the guard: there
// nothing is held.
func (h Holding) KeepReason(ctx context.Context, entry *journal.Entry) string {
	if entry.Wanted == nil || entry.Kubelet.Mode != guard.Enforce {
		return ""
	}
	if entry.Previous != nil && configurationOf(entry.Previous) == configurationOf(entry.Wanted) {
		return "" // the previous kubelet holds the same pods
	}
	ctx, cancel := context.WithTimeout(ctx, holdingTimeout)
	defer cancel()
	if runs := h.runs(ctx, entry); runs.IsNo() {
		return ""
	}
	// The guard is queried also where systemd does not report what runs.
	var pods *guard.PodList
	enforces := h.retry(ctx, func() answer.Answer {
		list, err := h.Protected(ctx, entry.Address, entry.Pin)
		if errors.Is(err, kubelet.ErrNotListening) {
			return answer.No() // it has not started to work
		}
		pods = list
		return answer.Check(pods != nil && pods.Mode == guard.Enforce, err)
	})
	switch {
	case enforces.Err() != nil:
		return h.unknown(entry, enforces.Err())
	case enforces.IsNo():
		return ""
	}
	var held []string
	for _, pod := range pods.Items {
		// What was held before was held by the previous kubelet.
		if pod.State == guard.Held && !slices.Contains(entry.Held, pod.UID) {
			held = append(held, pod.Namespace+"/"+pod.Name)
		}
	}
	if len(held) == 0 {
		return ""
	}
	return fmt.Sprintf("The change was not rolled back: the guard holds %d pods now that the old kubelet would stop: %s", len(held), list(held))
}

// runs answers whether a kubelet with the configuration of the change runs and goes on
// running.
func (h Holding) runs(ctx context.Context, entry *journal.Entry) answer.Answer {
	ctx, cancel := context.WithTimeout(ctx, systemdTimeout)
	defer cancel()
	return h.retry(ctx, func() answer.Answer {
		service, err := h.Systemd.Unit(ctx, rollout.KubeletUnit)
		if err != nil || service.MainPID == 0 || service.Restarts >= enoughRestarts {
			return answer.Check(false, err)
		}
		process, err := h.Root.Process(service.MainPID) // it may have ended a moment ago
		config, guarded := process.Flag(unit.GuardFlag)
		// Any other is the old one, or one that was put there by hand.
		return answer.Check(guarded && config == configurationOf(entry.Wanted), err)
	})
}

// retry queries until there is an answer, a few times.
func (h Holding) retry(ctx context.Context, query func() answer.Answer) (a answer.Answer) {
	for range holdingTries {
		if a = query(); a.Err() == nil {
			return a
		}
		select {
		case <-ctx.Done():
			return a
		case <-time.After(h.Poll):
		}
	}
	return a
}

// unknown decides about a guard that does not report what it holds. It saves every pod that
// it protects, so without a saved pod there is nothing to hold.
func (h Holding) unknown(entry *journal.Entry, why error) string {
	saved, err := h.saved(entry)
	switch {
	case err != nil:
		return fmt.Sprintf("The change was not rolled back: the guard does not report whether it holds pods that the old kubelet would stop (%v), and it is unknown how many it protects (%v)", why, err)
	case saved > 0:
		return fmt.Sprintf("The change was not rolled back: the guard protects %d pods here and does not report whether it holds some that the old kubelet would stop (%v)", saved, why)
	default:
		return ""
	}
}

// saved returns how many pods the guard has saved in its state directory.
func (h Holding) saved(entry *journal.Entry) (int, error) {
	if entry.GuardDir == "" {
		return 0, errors.New("the journal does not name the state directory of the guard")
	}
	names, err := h.Root.Folder(path.Join(entry.GuardDir, "pods"))
	if err != nil {
		return 0, err
	}
	saved := 0
	for _, name := range names {
		if strings.HasSuffix(name, ".pod") {
			saved++
		}
	}
	return saved, nil
}

// guardDir returns the state directory of a guard with the configuration, in a kubelet
// with the arguments of the process.
func guardDir(configuration []byte, process host.Process) string {
	if parsed, err := guard.ParseConfiguration(configuration); err != nil {
		return "" // unknown
	} else if parsed.StateDir != "" {
		return parsed.StateDir
	}
	root, _ := process.Flag("--root-dir")
	if root == "" {
		root = "/var/lib/kubelet"
	}
	return path.Join(root, "guard")
}

// ofDropIn finds the program and the configuration that one of our drop-ins names.
var ofDropIn = regexp.MustCompile(`(?m)^ExecStart=[^/\n]*(` + regexp.QuoteMeta(rollout.InstallDir) + `/\S+) (?:.* )?` + regexp.QuoteMeta(unit.GuardFlag) + `=(\S+)$`)

// parseDropIn returns the paths of the kubelet and of the guard's configuration that a drop-in
// of a roll-out names; "" when there is no drop-in.
func parseDropIn(dropIn *string) (program, configuration string) {
	if found := ofDropIn.FindStringSubmatch(ptr.Deref(dropIn, "")); found != nil {
		return found[1], found[2]
	}
	return "", ""
}

func configurationOf(dropIn *string) string {
	_, configuration := parseDropIn(dropIn)
	return configuration
}

// hostTokenFile returns where the node has the file TokenFile, and nothing when it cannot
// be found. The file is in a mount of its own, which the node has under another path.
func (i *Installer) hostTokenFile() string {
	var here, there unix.Stat_t
	if err := unix.Stat(i.TokenFile, &here); err != nil {
		return ""
	}
	file, err := os.Open(filepath.Join(string(i.Root), "proc/1/mountinfo"))
	if err != nil {
		return ""
	}
	defer file.Close()
	mounts, err := mountinfo.GetMountsFromReader(file, func(m *mountinfo.Info) (skip, stop bool) {
		return uint32(m.Major) != unix.Major(here.Dev) || uint32(m.Minor) != unix.Minor(here.Dev) || m.Root != "/", false
	})
	if err != nil {
		return ""
	}
	for _, mount := range mounts {
		name := path.Join(mount.Mountpoint, filepath.Base(i.TokenFile))
		if err := unix.Stat(i.Root.Path(name), &there); err == nil && there.Dev == here.Dev && there.Ino == here.Ino {
			return name
		}
	}
	return ""
}
