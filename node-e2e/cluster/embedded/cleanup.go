package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// Remove ends and removes the cluster in a folder, whatever started it and
// whether or not that program still lives. Only the logs stay. A folder without
// a cluster is no error.
func Remove(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	index := -1
	s, err := readState(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Not even the index was recorded, so there is no cgroup either.
	case err != nil:
		return err
	default:
		index = s.Index
	}

	err = await(ctx, "the processes of the cluster in "+dir+" to end", func(context.Context) error {
		return killAll(dir, index)
	})
	if err != nil {
		return err
	}
	if err := removeBridges(dir); err != nil {
		return err
	}
	if index >= 0 {
		// A cgroup stays busy for an instant after its last process.
		err := await(ctx, "the cgroup "+cgroupName(index)+" to be removed", func(context.Context) error {
			return removeCgroup(cgroupName(index))
		})
		if err != nil {
			return err
		}
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return removeFiles(dir)
}

// killAll kills what it finds of a cluster, and is an error until it finds
// nothing.
func killAll(dir string, index int) error {
	found, err := killMarked(dir)
	if err != nil {
		return err
	}
	if index >= 0 {
		contained, err := killCgroup(cgroupName(index))
		if err != nil {
			return err
		}
		found += contained
	}
	if found > 0 {
		return fmt.Errorf("%d are left", found)
	}
	return nil
}

// killMarked kills the processes whose environment has the cluster's mark, and
// reports how many there were.
func killMarked(dir string) (int, error) {
	processes, err := procfs.AllProcs()
	if err != nil {
		return 0, err
	}
	found := 0
	var failed []error
	for _, p := range processes {
		if !marked(p, dir) {
			continue
		}
		found++
		failed = append(failed, testnode.SignalIf(p.PID, syscall.SIGKILL, func() bool { return marked(p, dir) }))
	}
	return found, errors.Join(failed...)
}

// marked reports whether a process belongs to the cluster. The environment of a
// process that has ended, but is not yet reaped, is empty.
func marked(p procfs.Proc, dir string) bool {
	if p.PID == os.Getpid() {
		return false
	}
	environment, err := p.Environ()
	return err == nil && slices.Contains(environment, markerEnv+"="+dir)
}

// unmountBelow detaches what is mounted below the folder in this program's own
// namespace. Nothing should be: it keeps the removal of files from following a
// mount of another origin.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	var failed []error
	// The last mounted first.
	for _, mount := range slices.Backward(mounts) {
		if mount.Mountpoint == dir {
			continue
		}
		// EINVAL: it is no mount any more.
		if err := unix.Unmount(mount.Mountpoint, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			failed = append(failed, fmt.Errorf("unmounting %s: %w", mount.Mountpoint, err))
		}
	}
	return errors.Join(failed...)
}

// removeFiles removes all but the logs and the lock. The state file goes last: a
// removal that is interrupted is continued by the next.
func removeFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		switch entry.Name() {
		case logsFolder, lockFile, stateFile:
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	err = os.Remove(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// cleanupTime bounds a clean-up that must happen although its caller's context
// has ended.
const cleanupTime = 30 * time.Second
