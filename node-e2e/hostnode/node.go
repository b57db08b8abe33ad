package packages

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
)

// Waits. All hold on the emulated machine, which is several times slower than a
// loaded real one.
const (
	// clusterStart is the embedded cluster's: the API server of the node under test.
	clusterStart = 10 * time.Minute
	// nodeChange covers a start of the kubelet until the API has heard of it.
	nodeChange = 3 * time.Minute
	// quiet is how long containers are watched after a kubelet was exchanged: the
	// stock one kills within 2 s of its start, evictions come after 10 s.
	quiet = 15 * time.Second
	poll  = time.Second
)

// nodeName is the node of the machine's own kubelet.service.
const nodeName = "packages"

// Units and configurations of a node as kubeadm makes it. The variables of the
// kubelet's drop-in are kubeadm's; the credentials are an administrator's, so that
// the test needs no certificates of its own.
const (
	kubeletUnit = `[Unit]
Description=kubelet under test
[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=1
KillMode=process
`
	kubeadmDropIn = `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig=%s"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
Environment="KUBELET_KUBEADM_ARGS=--hostname-override=` + nodeName + `"
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`
	// An administrator's command, with another root directory. A kubelet without it would
	// find no pods there and stop those that run.
	localUnit = `[Service]
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS \
  $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS --root-dir=` + rootDir + `
`
	rootDir     = "/data/kubelet"
	localDropIn = "/etc/systemd/system/kubelet.service.d/20-local.conf"
	stopDropIn  = "/etc/systemd/system/kubelet.service.d/50-stop.conf"
	// The addresses are the loopback's: the embedded node has those of its bridge.
	kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
healthzBindAddress: 127.0.0.1
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
evictionHard: {memory.available: 1Mi, nodefs.available: 1%, imagefs.available: 1%}
resolvConf: ""
`
	containerdUnit = `[Service]
Environment=PATH=%[1]s:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=%[1]s/containerd --config=/etc/containerd/config.toml
Delegate=yes
KillMode=process
`
	containerdConfig = `version = 4
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%[1]q]
conf_dir = "/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + embedded.PauseImage + `"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[1]s/runc-unfiltered"
`
	// The pods of the test use the machine's network; the runtime wants a
	// configuration all the same.
	cniConfig = `{"cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "loopback"}]}`
)

// machine is this machine as a node of the embedded cluster.
type machine struct {
	t       *testing.T
	ctx     context.Context
	nodeBin string
	cluster *embedded.Cluster
	client  kubernetes.Interface
}

// newMachine starts a cluster and joins this machine to it with the stock kubelet
// under systemd.
func newMachine(t *testing.T, output string) *machine {
	m := &machine{t: t, ctx: t.Context(), nodeBin: filepath.Join(output, "node", "bin")}
	starting, cancel := context.WithTimeout(m.ctx, clusterStart)
	defer cancel()
	var err error
	m.cluster, err = embedded.Start(starting, embedded.Config{
		Name:    "packages",
		Dir:     filepath.Join(output, "clusters", "packages"),
		KubeDir: filepath.Join(output, upstream),
		NodeDir: m.nodeBin,
		Kubelet: filepath.Join(output, "bin", "kubelet"),
		Log:     t.Output(),
	})
	if err != nil {
		t.Fatalf("starting the embedded cluster: %v", err)
	}
	t.Cleanup(func() {
		if err := m.cluster.Stop(context.WithoutCancel(m.ctx)); err != nil {
			t.Errorf("stopping the embedded cluster: %v", err)
		}
	})
	if m.client, err = kubernetes.NewForConfig(m.cluster.RESTConfig()); err != nil {
		t.Fatal(err)
	}

	m.copy(filepath.Join(output, "bin", "kubelet-stock"), "/usr/bin/kubelet")
	m.write("/etc/systemd/system/kubelet.service", kubeletUnit)
	m.write("/etc/systemd/system/kubelet.service.d/10-kubeadm.conf", fmt.Sprintf(kubeadmDropIn, m.cluster.Kubeconfig()))
	m.write(localDropIn, localUnit)
	m.write("/var/lib/kubelet/config.yaml", kubeletConfig)
	m.write("/etc/systemd/system/containerd.service", fmt.Sprintf(containerdUnit, m.nodeBin))
	m.write("/etc/containerd/config.toml", fmt.Sprintf(containerdConfig, m.nodeBin))
	m.write("/etc/cni/net.d/loopback.conflist", cniConfig)
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "start", "containerd")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("journal of the kubelet:\n%s", m.run("journalctl", "-u", "kubelet", "--no-pager", "-n", "60"))
		}
		m.run("systemctl", "stop", "kubelet", "containerd")
	})
	m.await("containerd to answer", func() error { return m.try("ctr", "version") })
	m.ctr("images", "import", filepath.Join(m.cluster.LogDir(), "..", "images.tar"))
	m.run("systemctl", "start", "kubelet")
	return m
}

// run runs a program and returns what it printed, on both streams.
func (m *machine) run(command ...string) string {
	m.t.Helper()
	output, err := exec.Command(command[0], command[1:]...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, output)
	}
	return string(output)
}

// output runs a program that may fail and returns what it printed, on both streams.
func (m *machine) output(command ...string) string {
	output, _ := exec.Command(command[0], command[1:]...).CombinedOutput()
	return string(output)
}

func (m *machine) try(command ...string) error {
	if command[0] == "ctr" {
		command = append([]string{filepath.Join(m.nodeBin, "ctr"), "--namespace=k8s.io"}, command[1:]...)
	}
	if output, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, output)
	}
	return nil
}

func (m *machine) ctr(args ...string) string {
	m.t.Helper()
	return m.run(append([]string{filepath.Join(m.nodeBin, "ctr"), "--namespace=k8s.io"}, args...)...)
}

func (m *machine) write(path, content string) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) copy(from, to string) {
	m.t.Helper()
	m.run("install", "-m", "0755", from, to)
}

// await tries until it succeeds, and fails the test with the last error.
func (m *machine) await(what string, attempt func() error) {
	m.t.Helper()
	deadline := time.Now().Add(nodeChange)
	for {
		err := attempt()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("waited %s for %s; last: %v", nodeChange, what, err)
		}
		time.Sleep(poll)
	}
}

// awaitKubelet waits until the node is Ready with a kubelet of that version.
func (m *machine) awaitKubelet(version string) {
	m.t.Helper()
	m.await("the node to be Ready with "+version, func() error {
		pid := m.kubeletPID()
		if pid == 0 {
			return fmt.Errorf("kubelet.service has no process")
		}
		node, err := m.client.CoreV1().Nodes().Get(m.ctx, nodeName, metav1.GetOptions{})
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

func (m *machine) kubeletPID() int {
	m.t.Helper()
	text := strings.TrimSpace(m.run("systemctl", "show", "--property=MainPID", "--value", "kubelet"))
	pid, err := strconv.Atoi(text)
	if err != nil {
		m.t.Fatalf("MainPID of kubelet.service: %v", err)
	}
	return pid
}

// tasks are the running containers and sandboxes with their process ids.
func (m *machine) tasks() string {
	m.t.Helper()
	var running []string
	for line := range strings.Lines(m.ctr("tasks", "list")) {
		if strings.HasSuffix(strings.TrimSpace(line), "RUNNING") {
			running = append(running, strings.Join(strings.Fields(line), " "))
		}
	}
	slices.Sort(running)
	return strings.Join(running, "\n")
}

// expectTasks checks for a while that the same containers run in the same
// processes.
func (m *machine) expectTasks(want string) {
	m.t.Helper()
	for end := time.Now().Add(quiet); time.Now().Before(end); time.Sleep(poll) {
		if got := m.tasks(); got != want {
			m.t.Fatalf("containers changed:\n%s\nwere\n%s", got, want)
		}
	}
}
