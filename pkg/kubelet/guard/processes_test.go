package guard

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"
)

const (
	aliveUID       = types.UID("5a1e8c1e-1f0b-4b6e-9f0a-6f4a3f1f3c10")
	aliveContainer = "0d3d6aa3f5a6b1c8f6cbb9d4a3dbe7a9d7f3a0b1c2d3e4f5a6b7c8d9e0f1a2b3"
)

// process is an entry of a proc file system. What is empty has the default of
// newProcDir, except gone: a process that ended while the folder was read.
type process struct {
	cgroups, stat string
	gone          bool
}

// statLine is /proc/PID/stat of a process with an unfriendly name.
func statLine(state string, threads int) string {
	return fmt.Sprintf("42 (a) Z (b) %s 1 42 42 0 -1 4194560 144 0 0 0 0 1 0 0 20 0 %d 0 8443 1294336 32 18446744073709551615 1 1 0\n", state, threads)
}

// newProcDir writes a proc file system with a process outside of any pod and the
// given ones.
func newProcDir(t testing.TB, processes ...process) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"cpuinfo", "sys", "self", "thread-self"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	processes = append([]process{{cgroups: "0::/system.slice/kubelet.service\n"}}, processes...)
	for i, p := range processes {
		entry := filepath.Join(dir, strconv.Itoa(i+1))
		require.NoError(t, os.MkdirAll(entry, 0o755))
		if p.gone {
			continue
		}
		if p.stat == "" {
			p.stat = statLine("S", 1)
		}
		require.NoError(t, os.WriteFile(filepath.Join(entry, "cgroup"), []byte(p.cgroups), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(entry, "stat"), []byte(p.stat), 0o644))
	}
	return dir
}

func TestProcessesOfPodsAndContainers(t *testing.T) {
	const (
		uid     = string(aliveUID)
		escaped = "5a1e8c1e_1f0b_4b6e_9f0a_6f4a3f1f3c10"
		id      = aliveContainer
	)
	cgroupfs := "/kubepods/burstable/pod" + uid
	slice := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + escaped + ".slice"
	v1 := func(path string) string {
		return "12:pids:" + path + "\n11:cpu,cpuacct:" + path + "\n4:memory:" + path + "\n1:name=systemd:" + path + "\n"
	}
	for name, test := range map[string]struct {
		process
		pod, container bool
	}{
		"v1, cgroupfs":                              {process{cgroups: v1(cgroupfs + "/" + id)}, true, true},
		"v1, cgroupfs, Guaranteed":                  {process{cgroups: v1("/kubepods/pod" + uid + "/" + id)}, true, true},
		"v1, systemd":                               {process{cgroups: v1(slice + "/cri-containerd-" + id + ".scope")}, true, true},
		"v2, cgroupfs":                              {process{cgroups: "0::" + cgroupfs + "/" + id + "\n"}, true, true},
		"v2, systemd, containerd":                   {process{cgroups: "0::" + slice + "/cri-containerd-" + id + ".scope\n"}, true, true},
		"v2, systemd, CRI-O":                        {process{cgroups: "0::" + slice + "/crio-" + id + ".scope\n"}, true, true},
		"v2, systemd, CRI-O with a cgroup below":    {process{cgroups: "0::" + slice + "/crio-" + id + ".scope/container\n"}, true, true},
		"v2, systemd, Docker":                       {process{cgroups: "0::" + slice + "/docker-" + id + ".scope\n"}, true, true},
		"v2, systemd, Guaranteed":                   {process{cgroups: "0::/kubepods.slice/kubepods-pod" + escaped + ".slice/cri-containerd-" + id + ".scope\n"}, true, true},
		"v2, systemd, cgroupRoot":                   {process{cgroups: "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + escaped + ".slice/cri-containerd-" + id + ".scope\n"}, true, true},
		"v2, cgroup namespace":                      {process{cgroups: "0::/../../../kubepods/pod" + uid + "/" + id + "\n"}, true, true},
		"both, the pod in the v1 hierarchies":       {process{cgroups: "4:memory:" + cgroupfs + "/" + id + "\n1:name=systemd:/system.slice/containerd.service\n0::/system.slice/containerd.service\n"}, true, true},
		"both, the pod in the v2 hierarchy":         {process{cgroups: "4:memory:/\n1:name=systemd:/\n0::" + slice + "/cri-containerd-" + id + ".scope\n"}, true, true},
		"systemd in the container":                  {process{cgroups: "0::" + cgroupfs + "/" + id + "/init.scope\n"}, true, true},
		"a node that is a pod":                      {process{cgroups: "0::/kubepods/podb0a4f3f1-9e4c-4f5e-8a39-0d2f4a7a3a11/aa/kubelet" + cgroupfs + "/" + id + "\n"}, true, true},
		"a pod that is a node":                      {process{cgroups: "0::" + cgroupfs + "/" + id + "/kubelet/kubepods/podb0a4f3f1-9e4c-4f5e-8a39-0d2f4a7a3a11/aa\n"}, true, true},
		"the sandbox only":                          {process{cgroups: "0::" + slice + "/cri-containerd-ffff.scope\n"}, true, false},
		"the pod's own cgroup":                      {process{cgroups: "0::" + cgroupfs + "\n"}, true, false},
		"CRI-O's monitor":                           {process{cgroups: "0::" + slice + "/crio-conmon-" + id + ".scope\n"}, true, false},
		"a cgroup that was removed":                 {process{cgroups: "0::" + cgroupfs + "/" + id + " (deleted)\n"}, true, true},
		"zombie":                                    {process{cgroups: "0::" + cgroupfs + "/" + id + "\n", stat: statLine("Z", 1)}, false, false},
		"dead":                                      {process{cgroups: "0::" + cgroupfs + "/" + id + "\n", stat: statLine("X", 0)}, false, false},
		"the first thread has ended, others run":    {process{cgroups: "0::" + cgroupfs + "/" + id + "\n", stat: statLine("Z", 3)}, true, true},
		"cannot be interrupted":                     {process{cgroups: "0::" + cgroupfs + "/" + id + "\n", stat: statLine("D", 1)}, true, true},
		"frozen":                                    {process{cgroups: "0::" + cgroupfs + "/" + id + "\n", stat: statLine("T", 1)}, true, true},
		"ended while the folder was read":           {process{gone: true}, false, false},
		"another pod":                               {process{cgroups: "0::/kubepods/podb0a4f3f1-9e4c-4f5e-8a39-0d2f4a7a3a11/" + id + "\n"}, false, false},
		"a UID that starts like it":                 {process{cgroups: "0::/kubepods/pod" + uid + "0/" + id + "\n"}, false, false},
		"no pod":                                    {process{cgroups: v1("/system.slice/containerd.service")}, false, false},
		"podman":                                    {process{cgroups: "0::/machine.slice/libpod-" + id + ".scope\n"}, false, false},
		"a slice of another owner named like a pod": {process{cgroups: "0::/pod" + escaped + ".slice\n"}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcesses(newProcDir(t, test.process), testingclock.NewFakeClock(epoch))
			pod, err := p.podHasProcesses(aliveUID)
			require.NoError(t, err)
			container, err := p.containerHasProcesses(aliveUID, id)
			require.NoError(t, err)
			assert.Equal(t, []bool{test.pod, test.container}, []bool{pod, container}, "pod and container have processes")
		})
	}
}

// What cannot be read is an error, never a pod without processes.
func TestProcessesThatCannotBeRead(t *testing.T) {
	pod := "0::/kubepods/pod" + string(aliveUID) + "/" + aliveContainer + "\n"
	for name, dir := range map[string]func() string{
		"no folder":   func() string { return filepath.Join(t.TempDir(), "proc") },
		"not proc":    t.TempDir,
		"a stat line": func() string { return newProcDir(t, process{cgroups: pod, stat: "42 (a) S 1\n"}) },
		"a cgroup file": func() string {
			dir := newProcDir(t, process{gone: true})
			require.NoError(t, os.Mkdir(filepath.Join(dir, "2", "cgroup"), 0o755))
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcesses(dir(), testingclock.NewFakeClock(epoch))
			_, err := p.podHasProcesses("other")
			assert.Error(t, err)
			_, err = p.containerHasProcesses("other", "c")
			assert.Error(t, err)
		})
	}
}

func TestProcessesAreTrustedForAMoment(t *testing.T) {
	clock := testingclock.NewFakeClock(epoch)
	dir := newProcDir(t, process{cgroups: "0::/kubepods/pod" + string(aliveUID) + "/" + aliveContainer + "\n"})
	p := newProcesses(dir, clock)
	query := func() bool {
		found, err := p.podHasProcesses(aliveUID)
		require.NoError(t, err)
		return found
	}
	require.True(t, query())
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "2")))
	clock.Step(processesInterval - time.Millisecond)
	assert.True(t, query(), "within the interval")
	clock.Step(time.Millisecond)
	assert.False(t, query(), "after it")

	require.NoError(t, os.RemoveAll(dir))
	clock.Step(processesInterval)
	_, err := p.podHasProcesses(aliveUID)
	assert.Error(t, err)
}

func TestProcessesAreSafeForConcurrentUse(t *testing.T) {
	p := newProcesses(newProcDir(t, process{cgroups: "0::/kubepods/pod" + string(aliveUID) + "/" + aliveContainer + "\n"}), clock.RealClock{})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 100 {
				pod, err := p.podHasProcesses(aliveUID)
				assert.NoError(t, err)
				container, err := p.containerHasProcesses(aliveUID, aliveContainer)
				assert.NoError(t, err)
				assert.True(t, pod && container)
			}
		})
	}
	group.Wait()
}

// The kernel's own words: a process is put into cgroups with the names of a pod
// and a container, and ends there.
func TestProcessesOfTheKernel(t *testing.T) {
	p := newProcesses("/proc", testingclock.NewFakeClock(epoch))
	_, err := p.podHasProcesses(aliveUID)
	require.NoError(t, err, "the processes of this machine")

	root := ""
	for _, hierarchy := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"} {
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err == nil {
			root = hierarchy
			break
		}
	}
	base := filepath.Join(root, "guard-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(base, 0o755); err != nil || root == "" {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	for name, path := range map[string]string{
		"cgroupfs": "pod" + string(aliveUID) + "/" + aliveContainer,
		"systemd":  "a-pod" + strings.ReplaceAll(string(aliveUID), "-", "_") + ".slice/cri-containerd-" + aliveContainer + ".scope",
	} {
		t.Run(name, func(t *testing.T) {
			container := filepath.Join(base, path)
			require.NoError(t, os.MkdirAll(container, 0o755))
			sleep := exec.Command("sleep", "600")
			require.NoError(t, sleep.Start())
			t.Cleanup(func() {
				_ = sleep.Process.Kill()
				_ = sleep.Wait()
				assert.NoError(t, os.Remove(container))
				assert.NoError(t, os.Remove(filepath.Dir(container)))
			})
			require.NoError(t, os.WriteFile(filepath.Join(container, "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0o644))
			look := func() []bool {
				p := newProcesses("/proc", testingclock.NewFakeClock(epoch))
				pod, err := p.podHasProcesses(aliveUID)
				require.NoError(t, err)
				container, err := p.containerHasProcesses(aliveUID, aliveContainer)
				require.NoError(t, err)
				return []bool{pod, container}
			}
			assert.Equal(t, []bool{true, true}, look(), "while the process runs")
			require.NoError(t, sleep.Process.Signal(syscall.SIGKILL))
			// Nobody has taken note of its end yet: a zombie.
			require.Eventually(t, func() bool {
				stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", sleep.Process.Pid))
				return err == nil && strings.Contains(string(stat), ") Z ")
			}, 10*time.Second, time.Millisecond)
			assert.Equal(t, []bool{false, false}, look(), "a zombie")
		})
	}
	require.NoError(t, os.Remove(base))
}

// A scan of a node with a thousand processes, a hundred of them of pods.
func BenchmarkProcesses(b *testing.B) {
	var all []process
	for i := range 1000 {
		path := "/system.slice/containerd.service"
		if i%10 == 0 {
			path = fmt.Sprintf("/kubepods/burstable/pod%036d/%064d", i, i)
		}
		all = append(all, process{cgroups: "12:pids:" + path + "\n4:memory:" + path + "\n1:name=systemd:" + path + "\n0::" + path + "\n"})
	}
	clock := testingclock.NewFakeClock(epoch)
	p := newProcesses(newProcDir(b, all...), clock)
	b.ReportAllocs()
	for b.Loop() {
		clock.Step(processesInterval)
		if _, err := p.podHasProcesses(aliveUID); err != nil {
			b.Fatal(err)
		}
	}
}
