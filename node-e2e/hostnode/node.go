package hostnode

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/node-e2e/embedded"
	"kubelet-guard.io/node-e2e/suite"
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
)

// Units and configurations of the runtime. Its programs are copied: a node that boots has
// them on its disk.
const (
	binDir         = "/usr/local/bin"
	containerdUnit = `[Service]
Environment=PATH=` + binDir + `:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=` + binDir + `/containerd --config=/etc/containerd/config.toml
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
bin_dirs = ["` + binDir + `"]
conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + embedded.PauseImage + `"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "` + binDir + `/runc-unfiltered"
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
	// NodeName is the machine's. The embedded cluster has a node of its own besides.
	NodeName string
	// Output is the folder with the built programs.
	Output string
	// Saved is a folder of Cluster.Save, or empty.
	Saved string
	// SystemdCgroups has the runtime ask systemd for cgroups.
	SystemdCgroups bool
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
	// abandoned is shared by the parts of a test.
	abandoned *bool
}

// Start starts a cluster and joins this machine to it with the stock kubelet under
// systemd. What the cluster is made of stays until the test ends, unless it is detached.
func Start(t *testing.T, c Config) *Node {
	n := startCluster(t, c)
	n.Copy(filepath.Join(c.Output, "bin", "kubelet-stock"), "/usr/bin/kubelet")
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "runc-unfiltered", "loopback"} {
		n.Copy(filepath.Join(n.Cluster.NodeDir(), name), filepath.Join(binDir, name))
	}
	n.Write("/etc/systemd/system/containerd.service", containerdUnit)
	n.Write("/etc/containerd/config.toml", fmt.Sprintf(containerdConfig, c.SystemdCgroups))
	n.Write("/etc/cni/net.d/loopback.conflist", cniConfig)
	files, err := c.Files(n.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range files {
		n.Write(path, content)
	}
	n.Run("systemctl", "daemon-reload")
	n.Run("systemctl", "start", "containerd")
	n.Await("containerd to answer", func() error { return n.try("ctr", "version") })
	n.Ctr("images", "import", filepath.Join(n.Cluster.LogDir(), "..", "images.tar"))
	n.Run("systemctl", "start", "kubelet")
	return n
}

// StartAgain is Start on a machine that has been the node before, and was started again.
func StartAgain(t *testing.T, c Config) *Node { return startCluster(t, c) }

func startCluster(t *testing.T, c Config) *Node {
	n := &Node{Name: c.NodeName, t: t, ctx: t.Context(), abandoned: new(bool)}
	starting, cancel := context.WithTimeout(n.ctx, clusterStart)
	defer cancel()
	var err error
	n.Cluster, err = embedded.Start(starting, embedded.Config{
		Name:    c.Name,
		Dir:     filepath.Join(c.Output, "clusters", c.Name),
		KubeDir: filepath.Join(c.Output, suite.KubeVersion),
		NodeDir: filepath.Join(c.Output, "node", "bin"),
		Kubelet: filepath.Join(c.Output, "bin", "kubelet"),
		Saved:   c.Saved,
		Log:     t.Output(),
	})
	if err != nil {
		t.Fatalf("starting the embedded cluster: %v", err)
	}
	t.Cleanup(func() {
		if *n.abandoned {
			return
		}
		if err := n.Cluster.Stop(context.WithoutCancel(n.ctx)); err != nil {
			t.Errorf("stopping the embedded cluster: %v", err)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("journal of the kubelet:\n%s", n.Output("journalctl", "-u", "kubelet", "--no-pager", "-n", "60"))
		}
		if !*n.abandoned {
			n.Run("systemctl", "stop", "kubelet", "containerd")
		}
	})
	if n.Client, err = kubernetes.NewForConfig(n.Cluster.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	return n
}

// Abandon has the cluster and the units run on when the test ends.
func (n *Node) Abandon() error {
	*n.abandoned = true
	return n.Cluster.Detach()
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
		command = append([]string{filepath.Join(binDir, "ctr"), "--namespace=k8s.io"}, command[1:]...)
	}
	if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, output)
	}
	return nil
}

// Ctr runs ctr in the namespace of the kubelet's containers.
func (n *Node) Ctr(args ...string) string {
	n.t.Helper()
	return n.Run(append([]string{filepath.Join(binDir, "ctr"), "--namespace=k8s.io"}, args...)...)
}

// Write writes a file and makes the folders that it needs.
func (n *Node) Write(path, content string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// Copy copies a program.
func (n *Node) Copy(from, to string) {
	n.t.Helper()
	n.Run("install", "-m", "0755", from, to)
}

// This is the machine as it is, with a node of that name and no cluster.
func This(t *testing.T, name string) *Node { return &Node{Name: name, t: t, ctx: t.Context()} }

// Await tries until it succeeds, and fails the test with the last error.
func (n *Node) Await(what string, attempt func() error) {
	n.t.Helper()
	n.AwaitFor(what, NodeChange, poll, attempt)
}

// AwaitFor is Await with another time, and another pause between attempts.
func (n *Node) AwaitFor(what string, timeout, pause time.Duration, attempt func() error) {
	n.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := attempt()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("waited %s for %s; last: %v", timeout, what, err)
		}
		time.Sleep(pause)
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
		node, err := n.Client.CoreV1().Nodes().Get(n.ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := node.Status.NodeInfo.KubeletVersion; got != version {
			return fmt.Errorf("the node reports %s", got)
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("not Ready: %v", node.Status.Conditions)
	})
}

// KubeletPID is the main process of kubelet.service, 0 if it does not run.
func (n *Node) KubeletPID() int {
	n.t.Helper()
	text := strings.TrimSpace(n.Run("systemctl", "show", "--property=MainPID", "--value", "kubelet"))
	pid, err := strconv.Atoi(text)
	if err != nil {
		n.t.Fatalf("MainPID of kubelet.service: %v", err)
	}
	return pid
}

// KubeletProgram is the path of the program that kubelet.service runs, empty if it runs none.
func (n *Node) KubeletProgram() string {
	n.t.Helper()
	pid := n.KubeletPID()
	if pid == 0 {
		return ""
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return "" // it has just ended
	}
	return program
}

// Tasks are the running containers and sandboxes with their process ids.
func (n *Node) Tasks() string {
	n.t.Helper()
	var running []string
	for line := range strings.Lines(n.Ctr("tasks", "list")) {
		if strings.HasSuffix(strings.TrimSpace(line), "RUNNING") {
			running = append(running, strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(running)
	return strings.Join(running, "\n")
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
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName:    n.Name,
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
	if _, err := n.Client.CoreV1().Pods("default").Create(n.ctx, pod, metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
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
	if err != nil {
		n.t.Fatal(err)
	}
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
