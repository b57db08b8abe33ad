package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

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
	// holdingTries are for a kubelet that was started a moment ago.
	holdingTries = 3
)

// Holding finds out whether a change can be taken back without harm: pods that the new
// kubelet holds are pods that the old one would stop. The installer asks, and so does
// the node when it takes a change back by itself.
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

// Keep says why a change must not be taken back: the new kubelet runs, with the guard in
// mode Enforce, and holds pods that the kubelet of before would stop, or cannot be ruled
// out to do so. It says nothing when the change can be taken back, which is so for a
// kubelet that does not run, ends again and again or runs without the guard: there
// nothing is held.
func (h Holding) Keep(ctx context.Context, entry *journal.Entry) string {
	if entry.Wanted == nil || entry.Kubelet.Mode != guard.Enforce {
		return ""
	}
	service, err := h.Systemd.Unit(ctx, rollout.KubeletUnit)
	if err != nil || !service.Running() || service.Restarts >= enoughRestarts {
		return ""
	}
	process, err := h.Root.Process(service.MainPID)
	if err != nil {
		return ""
	}
	config, guarded := process.Flag(unit.GuardFlag)
	if !guarded || !strings.Contains(*entry.Wanted, config) {
		return "" // the old one, or one that somebody has put there
	}
	if entry.Previous != nil && strings.Contains(*entry.Previous, config) {
		return "" // the kubelet of before holds the same pods
	}
	pods, err := h.ask(ctx, entry)
	switch {
	case errors.Is(err, kubelet.ErrNotListening):
		return "" // it has not begun to work
	case err != nil:
		return h.unknown(process, config, err)
	case pods == nil || pods.Mode != guard.Enforce:
		return ""
	}
	var held []string
	for _, pod := range pods.Items {
		// What was held before was held by the kubelet of before.
		if pod.State == guard.Held && !slices.Contains(entry.Held, pod.UID) {
			held = append(held, pod.Namespace+"/"+pod.Name)
		}
	}
	if len(held) == 0 {
		return ""
	}
	return fmt.Sprintf("The change was not taken back: the guard holds %d pods now that the old kubelet would stop: %s", len(held), list(held))
}

func (h Holding) ask(ctx context.Context, entry *journal.Entry) (pods *guard.PodList, err error) {
	ctx, cancel := context.WithTimeout(ctx, holdingTimeout)
	defer cancel()
	for range holdingTries {
		if pods, err = h.Protected(ctx, entry.Address, entry.Pin); err == nil {
			return pods, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(h.Poll):
		}
	}
	return nil, err
}

// unknown is the answer for a guard that does not say what it holds. It saves every pod
// that it protects, so without a saved pod there is nothing to hold.
func (h Holding) unknown(process host.Process, config string, why error) string {
	saved, err := h.saved(process, config)
	switch {
	case err != nil:
		return fmt.Sprintf("The change was not taken back: the guard does not say whether it holds pods that the old kubelet would stop (%v), nor can it be told how many it protects (%v)", why, err)
	case saved > 0:
		return fmt.Sprintf("The change was not taken back: the guard protects %d pods here and does not say whether it holds some that the old kubelet would stop (%v)", saved, why)
	default:
		return ""
	}
}

// saved returns how many pods the guard has saved in its state directory.
func (h Holding) saved(process host.Process, config string) (int, error) {
	data, err := h.Root.Read(config)
	if err != nil {
		return 0, err
	}
	parsed, err := guard.ParseConfiguration(data)
	if err != nil {
		return 0, err
	}
	dir := parsed.StateDir
	if dir == "" {
		root, _ := process.Flag("--root-dir")
		if root == "" {
			root = "/var/lib/kubelet"
		}
		dir = path.Join(root, "guard")
	}
	names, err := h.Root.Folder(path.Join(dir, "pods"))
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
