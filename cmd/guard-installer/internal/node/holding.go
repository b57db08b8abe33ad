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

	"golang.org/x/sys/unix"

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
	// holdingTimeout bounds the question what is held. It is part of timerMargin.
	holdingTimeout = 9 * time.Second
	// systemdTimeout is the part of it for systemd.
	systemdTimeout = 3 * time.Second
	// holdingTries are for a kubelet that was started a moment ago, and for a systemd that
	// is reloading.
	holdingTries = 3
)

// Holding finds out whether a change can be rolled back without harm: pods that the new
// kubelet holds are pods that the old one would stop. The installer asks, and so does
// the node when it rolls a change back by itself.
type Holding struct {
	Root    host.Root
	Systemd interface {
		Unit(ctx context.Context, name string) (systemd.Unit, error)
	}
	// Protected is that of Installer.
	Protected func(ctx context.Context, address, pin string) (*guard.PodList, error)
	// Poll is how long to wait between two questions.
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
	asked := h.retry(ctx, func() answer.Answer {
		list, err := h.Protected(ctx, entry.Address, entry.Pin)
		switch {
		case errors.Is(err, kubelet.ErrNotListening):
			return answer.No() // it has not started to work
		case err != nil:
			return answer.Unknown(err)
		}
		pods = list
		return answer.Of(pods != nil && pods.Mode == guard.Enforce)
	})
	switch {
	case asked.Err() != nil:
		return h.unknown(entry, asked.Err())
	case asked.IsNo():
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
	return h.retry(ctx, func() answer.Answer { return h.runsNow(ctx, entry) })
}

func (h Holding) runsNow(ctx context.Context, entry *journal.Entry) answer.Answer {
	service, err := h.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil {
		return answer.Unknown(err)
	}
	if service.MainPID == 0 || service.Restarts >= enoughRestarts {
		return answer.No()
	}
	process, err := h.Root.Process(service.MainPID)
	if err != nil {
		return answer.Unknown(err) // it may have ended a moment ago
	}
	config, guarded := process.Flag(unit.GuardFlag)
	// Any other is the old one, or one that somebody has put there.
	return answer.Of(guarded && config == configurationOf(entry.Wanted))
}

// retry queries until there is an answer, a few times.
func (h Holding) retry(ctx context.Context, ask func() answer.Answer) (a answer.Answer) {
	for range holdingTries {
		if a = ask(); a.Err() == nil {
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

// unknown decides about a guard that does not say what it holds. It saves every pod that
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

var configurationFlag = regexp.MustCompile(unit.GuardFlag + `=(\S+)`)

// configurationOf returns the path of the guard's configuration that a drop-in of a
// roll-out names; "" when there is no drop-in.
func configurationOf(dropIn *string) string {
	if dropIn == nil {
		return ""
	}
	found := configurationFlag.FindAllStringSubmatch(*dropIn, -1)
	if len(found) == 0 {
		return ""
	}
	return found[len(found)-1][1]
}

// hostTokenFile returns where the node has the file TokenFile, and nothing when it cannot
// be found. The file is in a mount of its own, which the node has under another path.
func (i *Installer) hostTokenFile() string {
	var here, there unix.Stat_t
	if err := unix.Stat(i.TokenFile, &here); err != nil {
		return ""
	}
	mounts, err := os.ReadFile(filepath.Join(string(i.Root), "proc/1/mountinfo"))
	if err != nil {
		return ""
	}
	device := fmt.Sprintf("%d:%d", unix.Major(here.Dev), unix.Minor(here.Dev))
	for line := range strings.Lines(string(mounts)) {
		// 36 35 98:0 /root /mount/point options …
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[2] != device || fields[3] != "/" {
			continue
		}
		name := path.Join(fields[4], filepath.Base(i.TokenFile))
		if err := unix.Stat(i.Root.Path(name), &there); err == nil && there.Dev == here.Dev && there.Ino == here.Ino {
			return name
		}
	}
	return ""
}
