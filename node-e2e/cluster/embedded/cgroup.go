package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"

	"github.com/moby/sys/mountinfo"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// cgroupName is the cgroup below which all pods of a cluster are, in every
// hierarchy. It has no leading slash.
func cgroupName(index int) string { return fmt.Sprintf("kg-%d", index) }

// cgroupMount is a mounted cgroup hierarchy.
type cgroupMount struct {
	path string
	v2   bool
}

// cgroupMounts returns the hierarchies of the machine: one of version 2, or one
// for each controller of version 1, or both.
func cgroupMounts() ([]cgroupMount, error) {
	found, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	var mounts []cgroupMount
	for _, mount := range found {
		mounts = append(mounts, cgroupMount{path: mount.Mountpoint, v2: mount.FSType == "cgroup2"})
	}
	return mounts, err
}

// hasCgroupV1 reports whether controllers are in version 1 hierarchies, also
// when an empty version 2 hierarchy is there, too.
func hasCgroupV1(mounts []cgroupMount) bool {
	return slices.ContainsFunc(mounts, func(m cgroupMount) bool { return !m.v2 })
}

func cgroupExists(name string) bool {
	mounts, err := cgroupMounts()
	return err == nil && slices.ContainsFunc(mounts, func(m cgroupMount) bool {
		_, err := os.Stat(filepath.Join(m.path, name))
		return err == nil
	})
}

// createCgroup makes the cgroup in every hierarchy: a kubelet does not make the
// one that its cgroupRoot names.
func createCgroup(name string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	v1 := hasCgroupV1(mounts)
	for _, mount := range mounts {
		if mount.v2 && v1 {
			continue
		}
		if mount.v2 {
			if err := enableControllers(mount.path); err != nil {
				return err
			}
		}
		path := filepath.Join(mount.path, name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the cgroup %s: %w", path, err)
		}
		// A new cpuset of version 1 is empty, and nothing can run in it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(mount.path, file))
			if mount.v2 || err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(path, file), value, 0o644); err != nil {
				return fmt.Errorf("making the cgroup %s: %w", path, err)
			}
		}
	}
	return nil
}

// enableControllers passes all controllers of a version 2 root to its children.
func enableControllers(root string) error {
	available, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(available)) {
		file := filepath.Join(root, "cgroup.subtree_control")
		if err := os.WriteFile(file, []byte("+"+controller), 0o644); err != nil {
			return fmt.Errorf("enabling the cgroup controller %s: %w", controller, err)
		}
	}
	return nil
}

// cgroupTree returns the cgroup and all below it, in every hierarchy, children
// first.
func cgroupTree(name string) ([]string, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	var tree []string
	for _, mount := range mounts {
		// Cgroups vanish while they are walked; what is left is seen next time.
		_ = filepath.WalkDir(filepath.Join(mount.path, name), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				tree = append(tree, path)
			}
			return nil
		})
	}
	slices.Reverse(tree)
	return tree, nil
}

// killCgroup sends SIGKILL to every process of the cgroup and reports how many
// there were.
func killCgroup(name string) (int, error) {
	tree, err := cgroupTree(name)
	if err != nil {
		return 0, err
	}
	pids := map[int]bool{}
	for _, path := range tree {
		// A frozen process of version 1 takes no signal, not even this one.
		_ = os.WriteFile(filepath.Join(path, "freezer.state"), []byte("THAWED"), 0)
		content, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(content)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids[pid] = true
			}
		}
	}
	var failed []error
	for pid := range pids {
		failed = append(failed, testnode.SignalIf(pid, syscall.SIGKILL, func() bool { return inCgroup(pid, name) }))
	}
	return len(pids), errors.Join(failed...)
}

func inCgroup(pid int, name string) bool {
	process, err := procfs.NewProc(pid)
	if err != nil {
		return false
	}
	cgroups, err := process.Cgroups()
	return err == nil && isIn(cgroups, name)
}

// isIn reports whether one of a process' cgroups is the cgroup or one below it.
func isIn(cgroups []procfs.Cgroup, name string) bool {
	return slices.ContainsFunc(cgroups, func(c procfs.Cgroup) bool { return strings.HasPrefix(c.Path+"/", "/"+name+"/") })
}

// removeCgroup removes the cgroup, which must be without processes.
func removeCgroup(name string) error {
	tree, err := cgroupTree(name)
	if err != nil {
		return err
	}
	var failed []error
	for _, path := range tree {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
