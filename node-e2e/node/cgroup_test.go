package node

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

const cgroupMount = "/sys/fs/cgroup"

// podCgroup returns the folder of the cgroup that holds a pod's containers, and
// the root of its hierarchy, given one of the pod's processes. On cgroup v1, where
// every controller has a hierarchy of its own, it is the one of the pids
// controller: the kubelet misses a pod's cgroup when any of them misses it.
func podCgroup(p testnode.Process) (root, pod string, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		return "", "", err
	}
	root, container, err := parseCgroups(data)
	if err != nil {
		return "", "", fmt.Errorf("cgroups of %s: %w", p, err)
	}
	root = filepath.Join(cgroupMount, root)
	return root, filepath.Dir(filepath.Join(root, container)), nil
}

// parseCgroups reads /proc/<pid>/cgroup: the folder of the hierarchy below the
// mount point and the path in it.
func parseCgroups(data []byte) (hierarchy, path string, err error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	unified := ""
	for lines.Scan() {
		// hierarchy-ID:controller-list:cgroup-path
		fields := strings.SplitN(lines.Text(), ":", 3)
		if len(fields) != 3 {
			return "", "", fmt.Errorf("line %q has not three fields", lines.Text())
		}
		switch {
		case slices.Contains(strings.Split(fields[1], ","), "pids"):
			return "pids", fields[2], nil
		case fields[1] == "":
			unified = fields[2]
		}
	}
	if unified == "" {
		return "", "", fmt.Errorf("neither a pids controller nor a unified hierarchy in %q", data)
	}
	return "", unified, nil
}

// removeCgroup moves the processes of a cgroup and of those below it to the root
// of the hierarchy and removes them all. The processes go on running.
func removeCgroup(root, cgroup string) error {
	var folders []string
	err := filepath.WalkDir(cgroup, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	// The deepest first: a cgroup with children cannot be removed.
	slices.Reverse(folders)
	for _, folder := range folders {
		procs, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		if err != nil {
			return err
		}
		for _, pid := range strings.Fields(string(procs)) {
			if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0o644); err != nil {
				return fmt.Errorf("move process %s out of %s: %w", pid, folder, err)
			}
		}
		if err := os.Remove(folder); err != nil {
			return err
		}
	}
	return nil
}
