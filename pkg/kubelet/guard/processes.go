package guard

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// processesInterval is how long one scan of the processes is trusted. It is
// short, since a process that was started in the meantime is not in it.
const processesInterval = time.Second

// processes knows which pods and containers have processes, by the kernel: from the
// cgroups of all processes of the node in /proc/PID/cgroup. It does not need the
// container runtime, which may have forgotten its pods. It assumes nothing about where
// the kubelet's cgroups are, because cgroupRoot or cgroupDriver may have changed.
//
// The names are those of upstream's pkg/kubelet/cm (cgroup_manager_linux.go,
// pod_container_manager_linux.go) and of the runtimes:
//
//	cgroupfs  /kubepods/burstable/pod<UID>/<container ID>
//	systemd   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<UID with _ for ->.slice/cri-containerd-<container ID>.scope
//
// They are the same on cgroup v1, v2 and both together; a process has one line
// per hierarchy, and counts when any of them names the pod.
//
// It is safe for concurrent use: callers that come while a scan runs wait for
// it. The kubelet must see the processes of the node, as it always does: its
// own cgroup code needs their IDs.
type processes struct {
	procDir string
	clock   clock.PassiveClock

	mu sync.Mutex
	// scanned is when the newest scan ended; zero before the first.
	scanned time.Time
	// pods has the names of the cgroups below each pod's cgroup that have
	// processes, in the form of containerName. A pod whose processes are all in
	// its own cgroup has an empty set.
	pods map[types.UID]map[string]bool
	err  error
	// buffer is what files are read into.
	buffer []byte
}

// newProcesses returns the processes of a proc file system, which is /proc but
// in tests.
func newProcesses(procDir string, clock clock.PassiveClock) *processes {
	return &processes{procDir: procDir, clock: clock, buffer: make([]byte, 8<<10)}
}

// podHasProcesses reports whether a process is in the pod's cgroup or below,
// that of the sandbox included. With an error nothing is known: the pod has to
// count as alive.
func (p *processes) podHasProcesses(uid types.UID) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.scanLocked(); err != nil {
		return false, err
	}
	_, found := p.pods[uid]
	return found, nil
}

// containerHasProcesses reports whether a process is in the cgroup of one
// container of the pod, or below. With an error nothing is known.
func (p *processes) containerHasProcesses(podUID types.UID, containerID string) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.scanLocked(); err != nil {
		return false, err
	}
	return p.pods[podUID][containerID], nil
}

// scanLocked reads the cgroups of all processes, unless that was done a moment
// ago. A container cannot slip through by forking while it is read: its first
// process stays until the container ends.
func (p *processes) scanLocked() error {
	if !p.scanned.IsZero() && p.clock.Since(p.scanned) < processesInterval {
		return p.err
	}
	p.pods = map[types.UID]map[string]bool{}
	p.err = p.scan()
	p.scanned = p.clock.Now()
	return p.err
}

func (p *processes) scan() error {
	dir, err := os.Open(p.procDir)
	if err != nil {
		return fmt.Errorf("read the processes of the node: %w", err)
	}
	defer func() { _ = dir.Close() }()
	// Not ReadDir: the order does not matter, nor do the types.
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read the processes of the node: %w", err)
	}
	read := 0
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		cgroups, err := p.read(name, "cgroup")
		if isGone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the cgroups of process %s: %w", name, err)
		}
		read++
		if err := p.add(name, cgroups); err != nil {
			return err
		}
	}
	// The kubelet itself is a process.
	if read == 0 {
		return fmt.Errorf("read the processes of the node: %s has none with a cgroup", p.procDir)
	}
	return nil
}

// add records one process. Most are of no pod, and cost no more than a search in the
// bytes.
func (p *processes) add(pid string, cgroups []byte) error {
	if !bytes.Contains(cgroups, []byte("pod")) {
		return nil
	}
	checked := false
	for line := range strings.Lines(string(cgroups)) {
		// hierarchy-ID:controllers:path, see cgroups(7).
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, path, _ := strings.Cut(rest, ":")
		// The kernel's mark on the cgroup of a process that outlived it.
		path = strings.TrimSuffix(path, " (deleted)")
		// In a node that is itself a pod, one pod is in the other.
		for uid, below, ok := podOfCgroup(path); ok; uid, below, ok = podOfCgroup(below) {
			if !checked {
				running, err := p.runs(pid)
				if err != nil || !running {
					return err
				}
				checked = true
			}
			containers := p.pods[uid]
			if containers == nil {
				containers = map[string]bool{}
				p.pods[uid] = containers
			}
			for element := range strings.SplitSeq(below, "/") {
				if name := containerName(element); name != "" {
					containers[name] = true
				}
			}
		}
	}
	return nil
}

// podOfCgroup returns the first pod whose cgroup is in the path, and the path
// below it.
func podOfCgroup(path string) (uid types.UID, below string, ok bool) {
	for path != "" {
		var element string
		element, path, _ = strings.Cut(path, "/")
		if name, slice := strings.CutSuffix(element, ".slice"); slice {
			// The last part is the pod's own; the ones before are its parents again.
			// Upstream writes every - of a part as _.
			dash := strings.LastIndexByte(name, '-')
			if name, ok = strings.CutPrefix(name[dash+1:], "pod"); ok && dash > 0 && name != "" {
				return types.UID(strings.ReplaceAll(name, "_", "-")), path, true
			}
		} else if name, ok = strings.CutPrefix(element, "pod"); ok && name != "" {
			return types.UID(name), path, true
		}
	}
	return "", "", false
}

// containerName returns the container ID of a cgroup of a container, and
// something that is none for others. CRI-O's monitor of a container is not the
// container.
func containerName(element string) string {
	name, scope := strings.CutSuffix(element, ".scope")
	if !scope {
		return name
	}
	if strings.HasPrefix(name, "crio-conmon-") {
		return ""
	}
	return name[strings.LastIndexByte(name, '-')+1:]
}

// runs reports whether a process is more than a zombie. The first thread of a process
// may have ended before the others: the process runs on, but its state is that of the
// first thread.
func (p *processes) runs(pid string) (bool, error) {
	stat, err := p.read(pid, "stat")
	if isGone(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the state of process %s: %w", pid, err)
	}
	// The second field is the name in parentheses, which may have any characters.
	// Behind it are the state, the third field of proc_pid_stat(5), and the number
	// of threads, the twentieth.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 18 {
		return false, fmt.Errorf("read the state of process %s: %q is not what the kernel writes", pid, stat)
	}
	switch string(fields[0]) {
	case "Z", "X", "x":
		threads := string(fields[17])
		return threads != "0" && threads != "1", nil
	}
	return true, nil
}

// read returns the content of a file of a process, until the next call.
func (p *processes) read(pid, file string) ([]byte, error) {
	f, err := os.Open(filepath.Join(p.procDir, pid, file))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	n := 0
	for {
		if n == len(p.buffer) {
			p.buffer = append(p.buffer, make([]byte, len(p.buffer))...)
		}
		more, err := f.Read(p.buffer[n:])
		n += more
		if errors.Is(err, io.EOF) {
			return p.buffer[:n], nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// isGone reports whether a process ended before its file was read.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}
