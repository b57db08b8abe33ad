package hostnode

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"github.com/stretchr/testify/require"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Waits. All hold on the emulated machine, which is several times slower than a
// loaded real one.
const (
	// clusterStart is the embedded cluster's: the API server of the node under test.
	clusterStart = 10 * time.Minute
	// NodeChange covers a start of the kubelet until the API has heard of it.
	NodeChange = 3 * time.Minute
	// quiet is how long containers are watched after a kubelet was exchanged: the
	// stock one kills within 2 s of its start, evictions come after 10 s.
	quiet = 15 * time.Second
	poll  = time.Second
	// podCgroups starts the path of the cgroup of a pod's process, with cgroupfs and with
	// systemd.
	podCgroups = "/kubepods"
)

// RuntimeDir is the folder of the runtime's programs. They are copied: a node that boots has
// them on its disk.
const RuntimeDir = "/usr/local/bin"

// Units and configurations of the runtime.
const (
	containerdUnit = `[Service]
Environment=PATH=` + RuntimeDir + `:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=` + RuntimeDir + `/containerd --config=/etc/containerd/config.toml
Delegate=yes
KillMode=process
Restart=always
[Install]
WantedBy=multi-user.target
`
	containerdConfig = `version = 4
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["` + RuntimeDir + `"]
conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + embedded.PauseImage + `"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "` + RuntimeDir + `/runc-unfiltered"
SystemdCgroup = %t
`
	// The pods of the test use the machine's network; the runtime wants a
	// configuration all the same.
	cniConfig = `{"cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "loopback"}]}`
)

// Config says what node the machine is to be.
type Config struct {
	// Name is that of the embedded cluster.
	Name string
	// NodeName is the machine's. The embedded cluster has a node of its own, too.
	NodeName string
	// Output is the folder with the built programs.
	Output string
	// Files returns the units and the configuration of the kubelet, by path. They are
	// written before systemd reads its units.
	Files func(*embedded.Cluster) (map[string]string, error)
}

// Node is this machine as a node of the embedded cluster.
type Node struct {
	Cluster *embedded.Cluster
	Client  kubernetes.Interface
	// Name is the one under which the kubelet registers.
	Name string

	t   testing.TB
	ctx context.Context
}

// RuntimePrograms are what a container runtime of a node is made of. They belong into
// RuntimeDir of the node.
var RuntimePrograms = []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "runc-unfiltered", "loopback"}

// RuntimeFiles are the unit and the configuration of a node's container runtime, by path.
// With systemdCgroups it has systemd make its cgroups.
func RuntimeFiles(systemdCgroups bool) map[string]string {
	return map[string]string{
		"/etc/systemd/system/containerd.service": containerdUnit,
		"/etc/containerd/config.toml":            fmt.Sprintf(containerdConfig, systemdCgroups),
		"/etc/cni/net.d/loopback.conflist":       cniConfig,
	}
}

// Start starts a cluster and joins this machine to it with the stock kubelet under
// systemd.
func Start(t *testing.T, c Config) *Node {
	n := &Node{Name: c.NodeName, t: t, ctx: t.Context()}
	starting, cancel := context.WithTimeout(n.ctx, clusterStart)
	defer cancel()
	var err error
	n.Cluster, err = embedded.Start(starting, embedded.Config{
		Name:    c.Name,
		Dir:     filepath.Join(c.Output, "clusters", c.Name),
		KubeDir: filepath.Join(c.Output, framework.KubeVersion),
		NodeDir: filepath.Join(c.Output, "node", "bin"),
		Kubelet: filepath.Join(c.Output, "bin", "kubelet"),
		Log:     t.Output(),
	})
	require.NoError(t, err, "starting the embedded cluster")
	t.Cleanup(func() {
		if err := n.Cluster.Stop(context.WithoutCancel(n.ctx)); err != nil {
			t.Errorf("stopping the embedded cluster: %v", err)
		}
	})
	n.Client, err = kubernetes.NewForConfig(n.Cluster.RESTConfig())
	require.NoError(t, err)
	n.Copy(filepath.Join(c.Output, "bin", "kubelet-stock"), "/usr/bin/kubelet")
	for _, name := range RuntimePrograms {
		n.Copy(filepath.Join(n.Cluster.NodeDir(), name), filepath.Join(RuntimeDir, name))
	}
	files, err := c.Files(n.Cluster)
	require.NoError(t, err)
	maps.Copy(files, RuntimeFiles(false))
	for path, content := range files {
		n.Write(path, content)
	}
	n.Run("systemctl", "daemon-reload")
	n.Run("systemctl", "start", "containerd")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("journal of the kubelet:\n%s", n.Output("journalctl", "-u", "kubelet", "--no-pager", "-n", "60"))
		}
		n.Run("systemctl", "stop", "kubelet", "containerd")
	})
	n.Await("containerd to answer", func() error { return n.try("ctr", "version") })
	n.Ctr("images", "import", filepath.Join(n.Cluster.LogDir(), "..", "images.tar"))
	n.Run("systemctl", "start", "kubelet")
	return n
}

// In returns the node for a part of the test.
func (n *Node) In(t testing.TB) *Node {
	part := *n
	part.t, part.ctx = t, t.Context()
	return &part
}

// Run runs a program and returns what it printed, on both streams.
func (n *Node) Run(command ...string) string {
	n.t.Helper()
	output, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, output)
	}
	return string(output)
}

// Output runs a program that may fail and returns what it printed, on both streams.
func (n *Node) Output(command ...string) string {
	output, _ := exec.Command(command[0], command[1:]...).CombinedOutput()
	return string(output)
}

func (n *Node) try(command ...string) error {
	if command[0] == "ctr" {
		command = append([]string{filepath.Join(RuntimeDir, "ctr"), "--namespace=k8s.io"}, command[1:]...)
	}
	if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, output)
	}
	return nil
}

// Ctr runs ctr in the namespace of the kubelet's containers.
func (n *Node) Ctr(args ...string) string {
	n.t.Helper()
	return n.Run(append([]string{filepath.Join(RuntimeDir, "ctr"), "--namespace=k8s.io"}, args...)...)
}

// Write writes a file and makes the folders that it needs.
func (n *Node) Write(path, content string) {
	n.t.Helper()
	require.NoError(n.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(n.t, os.WriteFile(path, []byte(content), 0o644))
}

// Copy copies a program.
func (n *Node) Copy(from, to string) {
	n.t.Helper()
	n.Run("install", "-m", "0755", from, to)
}

// Await is the function Await with the time of a change of the node.
func (n *Node) Await(what string, attempt func() error) {
	n.t.Helper()
	Await(n.t, NodeChange, what, attempt)
}

// Await tries every second until it succeeds, and fails the test with the last error after
// the limit.
func Await(t testing.TB, limit time.Duration, what string, attempt func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := attempt()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s; last: %v", limit, what, err)
		}
		time.Sleep(poll)
	}
}

// AwaitKubelet waits until the node is Ready with a kubelet of that version.
func (n *Node) AwaitKubelet(version string) {
	n.t.Helper()
	n.Await("the node to be Ready with "+version, func() error {
		pid := n.KubeletPID()
		if pid == 0 {
			return fmt.Errorf("kubelet.service has no process")
		}
		return ReadyWith(n.ctx, n.Client, n.Name, version)
	})
}

// ReadyWith is an error unless the API shows the node as Ready with a kubelet of that version.
func ReadyWith(ctx context.Context, client kubernetes.Interface, name, version string) error {
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if got := node.Status.NodeInfo.KubeletVersion; got != version {
		return fmt.Errorf("the node reports %s", got)
	}
	if !testnode.NodeReady(node) {
		return fmt.Errorf("not Ready: %v", node.Status.Conditions)
	}
	return nil
}

// KubeletPID is the main process of kubelet.service, 0 if it does not run.
func (n *Node) KubeletPID() int {
	n.t.Helper()
	text := strings.TrimSpace(n.Run("systemctl", "show", "--property=MainPID", "--value", "kubelet"))
	pid, err := strconv.Atoi(text)
	require.NoError(n.t, err, "MainPID of kubelet.service")
	return pid
}

// Tasks are the processes of the node's pods, each with its start in clock ticks and its cgroup,
// in a line. They are read from /proc, which costs an emulated machine little. Those of the
// embedded cluster's own node are not among them.
func (n *Node) Tasks() string {
	n.t.Helper()
	processes, err := procfs.AllProcs()
	require.NoError(n.t, err)
	var lines []string
	for _, p := range processes {
		cgroups, err := p.Cgroups()
		if err != nil || len(cgroups) == 0 || !strings.HasPrefix(cgroups[0].Path, podCgroups) {
			continue // it has ended, or is no pod's
		}
		// One that ends now is missing, too.
		if stat, err := p.Stat(); err == nil {
			lines = append(lines, fmt.Sprintf("process %d, start %d, cgroup %s", p.PID, stat.Starttime, cgroups[0].Path))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// ExpectTasks checks for a while that the same containers run in the same
// processes.
func (n *Node) ExpectTasks(want string) {
	n.t.Helper()
	for end := time.Now().Add(quiet); time.Now().Before(end); time.Sleep(poll) {
		if got := n.Tasks(); got != want {
			n.t.Fatalf("containers changed:\n%s\nwere\n%s", got, want)
		}
	}
}

// RunPod runs a pod on the node and waits until it is Running.
func (n *Node) RunPod(name string, protected bool) {
	n.t.Helper()
	_, err := n.Client.CoreV1().Pods("default").Create(n.ctx, Pod(name, n.Name, protected), metav1.CreateOptions{})
	require.NoError(n.t, err)
	n.Await("pod "+name+" to run", func() error {
		pod, err := n.Client.CoreV1().Pods("default").Get(n.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Running != nil {
			return nil
		}
		return fmt.Errorf("its status is %v", pod.Status)
	})
}

// Read returns the content of a file.
func (n *Node) Read(path string) string {
	n.t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(n.t, err)
	return string(content)
}

// ExpectNoFile checks that there are no such files.
func (n *Node) ExpectNoFile(paths ...string) {
	n.t.Helper()
	for _, path := range paths {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			n.t.Errorf("%s is still there (%v)", path, err)
		}
	}
}

// Pod is a pod for a node that has no pod network.
func Pod(name, node string, protected bool) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName:    node,
			HostNetwork: true,
			Containers: []corev1.Container{{
				Name: "workload", Image: embedded.WorkloadImage, ImagePullPolicy: corev1.PullNever,
				// Any free port: the pods share the machine's.
				Env: []corev1.EnvVar{{Name: "PORT", Value: "0"}},
			}},
		},
	}
	if protected {
		pod.Labels = map[string]string{guardv1alpha1.ExplicitDeletionLabel: guardv1alpha1.ExplicitDeletionRequired}
	}
	return pod
}
