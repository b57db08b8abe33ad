package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"k8s.io/client-go/rest"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// kindProvider runs the specs on one worker of a kind cluster that is up: one of the
// pool that is named after the kubelet. The suites of both kubelets may use the same
// cluster at the same time, so nothing here touches what the workers share. It needs
// root and a container engine on this machine: files of the node are reached through
// its processes.
type kindProvider struct {
	options Options
	cluster *kind.Cluster
	node    *kindNode
}

// errShared is the error of a fault that would hit every node of the cluster. Specs
// with one are labelled for it.
var errShared = errors.New("the nodes of a kind cluster share the control plane: label the spec " + labelControlPlane)

func newKindProvider(o Options) *kindProvider { return &kindProvider{options: o} }

// Start finds the node and takes its kubelet over from systemd's restarts.
func (p *kindProvider) Start(ctx context.Context) error {
	if err := p.attach(ctx); err != nil {
		return fmt.Errorf("cluster %s: %w", p.options.ClusterName, err)
	}
	if err := p.node.takeOver(ctx); err != nil {
		return fmt.Errorf("node %s: %w", p.node.Name(), err)
	}
	return nil
}

func (p *kindProvider) attach(ctx context.Context) error {
	cluster, err := kind.Attach(ctx, p.options.OutputDir, p.options.ClusterName)
	if err != nil {
		return err
	}
	nodes := cluster.Pool(string(p.options.Kubelet))
	if len(nodes) == 0 {
		return fmt.Errorf("it has no pool %q: the suite runs on a node of the pool that is named after the kubelet", p.options.Kubelet)
	}
	node, err := newKindNode(ctx, cluster, nodes[0])
	if err != nil {
		return err
	}
	p.cluster, p.node = cluster, node
	return nil
}

// Stop puts the kubelet back to how the cluster came up. The cluster stays.
func (p *kindProvider) Stop(ctx context.Context) error {
	if p.node == nil {
		return nil
	}
	return p.node.restore(ctx)
}

// Remove does so after a suite that could not.
func (p *kindProvider) Remove(ctx context.Context) error {
	if err := p.attach(ctx); err != nil {
		return err
	}
	return p.node.restore(ctx)
}

func (p *kindProvider) Keep(ctx context.Context) error { return p.Stop(ctx) }

func (p *kindProvider) RESTConfig() *rest.Config { return p.cluster.RESTConfig() }

func (p *kindProvider) Kubectl() string {
	return filepath.Join(p.options.OutputDir, p.cluster.Version(), "kubectl") + " --kubeconfig " + p.cluster.Kubeconfig()
}

func (p *kindProvider) Kubeconfig() string { return p.cluster.Kubeconfig() }

func (p *kindProvider) Down() string {
	return "go run ./node-e2e/guard-e2e kind down --name " + p.cluster.Name()
}

func (p *kindProvider) Node() testnode.Node { return p.node }

// Files of a node.
const (
	kindKubelet       = "/usr/bin/kubelet"
	kindKubeletDir    = "/var/lib/kubelet"
	kindKubeletConfig = kindKubeletDir + "/config.yaml"
	kindStaticPods    = "/etc/kubernetes/manifests"
	// kindFolder has what a start of the kubelet needs beyond what is there. Like the
	// unit's drop-in it ends with the node's next start.
	kindFolder = "/run/kubelet-e2e"
	// kindProgram is another kubelet than the node's; programs do not run from /run.
	kindProgram = "/usr/local/bin/kubelet-e2e"
	kindDropIn  = "/run/systemd/system/kubelet.service.d/99-e2e.conf"
	kindLog     = "/var/log/kubelet-e2e.log"
)

// kindNode is one worker.
type kindNode struct {
	node, controlPlane *kind.Node
	// root and controlPlaneRoot are the nodes' root directories as this process sees
	// them.
	root, controlPlaneRoot string
	// config is the kubelet's configuration as the cluster came up with it.
	config []byte
	// client is how the kubelet's port is read.
	client *rest.Config
}

func newKindNode(ctx context.Context, cluster *kind.Cluster, node *kind.Node) (*kindNode, error) {
	n := &kindNode{node: node, controlPlane: cluster.ControlPlane(), client: cluster.RESTConfig()}
	// kubeadm's kubelets sign their serving certificates themselves.
	n.client.Insecure, n.client.CAFile, n.client.CAData = true, "", nil
	var err error
	if n.root, err = rootOf(ctx, node); err != nil {
		return nil, err
	}
	if n.controlPlaneRoot, err = rootOf(ctx, n.controlPlane); err != nil {
		return nil, err
	}
	n.config, err = os.ReadFile(n.path(kindKubeletConfig))
	return n, err
}

// rootOf returns the root directory of a node through its first process.
func rootOf(ctx context.Context, node *kind.Node) (string, error) {
	namespace, err := node.Exec(ctx, "readlink", "/proc/1/ns/pid")
	if err != nil {
		return "", err
	}
	processes, err := procfs.AllProcs()
	if err != nil {
		return "", err
	}
	for _, p := range processes {
		// One that ends meanwhile is another one's.
		status, err := p.NewStatus()
		if err != nil || len(status.NSpids) == 0 || status.NSpids[len(status.NSpids)-1] != 1 {
			continue
		}
		if own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.PID)); err == nil && own == strings.TrimSpace(namespace) {
			return fmt.Sprintf("/proc/%d/root", p.PID), nil
		}
	}
	return "", fmt.Errorf("the first process of node %s is not on this machine, or this is not root", node.Name())
}

func (n *kindNode) path(inNode string) string { return filepath.Join(n.root, inNode) }

func (n *kindNode) Name() string                  { return n.node.Name() }
func (n *kindNode) Kubelet() testnode.Kubelet     { return kindKubeletControl{n} }
func (n *kindNode) Runtime() testnode.Runtime     { return newKindRuntime(n) }
func (n *kindNode) Storage() testnode.Storage     { return newKindStorage(n) }
func (n *kindNode) APIServer() testnode.Component { return kindAPIServer{} }
func (n *kindNode) KubeletDir() string            { return n.path(kindKubeletDir) }
func (n *kindNode) StaticPodDir() string          { return n.path(kindStaticPods) }
func (n *kindNode) RuntimeSocket() string         { return n.path("/run/containerd/containerd.sock") }

func (n *kindNode) Run(ctx context.Context, command ...string) (string, error) {
	return n.node.Exec(ctx, command...)
}

// Fetch sends the request from within the node: this machine has no route to pods.
func (n *kindNode) Fetch(ctx context.Context, url string) (string, error) {
	return n.node.Exec(ctx, "curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "10", url)
}

func (n *kindNode) NewLink() (testnode.Link, error) { return kindLink{n.node}, nil }

// kindLink is the node's network cable, whatever the kubelet is configured with.
type kindLink struct{ node *kind.Node }

func (l kindLink) Cut() error     { return l.node.Disconnect(context.Background()) }
func (l kindLink) Restore() error { return l.node.Reconnect(context.Background()) }
func (l kindLink) Reset() error   { return errShared }
func (l kindLink) Close() error   { return l.Restore() }

// takeOver puts the drop-in into the kubelet's unit that keeps systemd from starting
// the kubelet again, and restarts it.
func (n *kindNode) takeOver(ctx context.Context) error {
	if err := n.Kubelet().Stop(ctx); err != nil {
		return err
	}
	return n.Kubelet().Start(ctx, testnode.KubeletChange{})
}

func (n *kindNode) restore(ctx context.Context) error {
	for _, path := range []string{kindDropIn, kindFolder, kindProgram} {
		if err := os.RemoveAll(n.path(path)); err != nil {
			return err
		}
	}
	if _, err := n.node.Exec(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	return n.node.RestartKubelet(ctx)
}

// kindKubeletControl controls the kubelet's unit.
type kindKubeletControl struct{ *kindNode }

func (k kindKubeletControl) LogPath() string { return k.path(kindLog) }

func (k kindKubeletControl) Start(ctx context.Context, change testnode.KubeletChange) error {
	dropIn, err := k.dropIn(ctx, change)
	if err != nil {
		return err
	}
	if err := k.writeDropIn(ctx, dropIn); err != nil {
		return err
	}
	var before int64
	if info, err := os.Stat(k.LogPath()); err == nil {
		before = info.Size()
	}
	// /healthz responds before the resource managers have started; when the device
	// manager's socket accepts connections, all have. curl's error 7 is a refused connection.
	const script = `systemctl start kubelet || exit
for i in $(seq 600); do
  case $(systemctl show --property=ActiveState --value kubelet) in
  failed|inactive) exit 9 ;;
  esac
  if curl --silent --fail --max-time 1 --output /dev/null http://127.0.0.1:10248/healthz; then
    curl --silent --max-time 1 --output /dev/null --unix-socket ` + kindKubeletDir + `/device-plugins/kubelet.sock http://localhost/
    [ $? -eq 7 ] || exit 0
  fi
  sleep 0.1
done
exit 8`
	_, err = k.node.Exec(ctx, "sh", "-c", script)
	if err == nil || ctx.Err() != nil {
		return err
	}
	output := k.logSince(before)
	status, showErr := k.node.Exec(ctx, "systemctl", "show", "--property=ActiveState,ExecMainStatus", "kubelet")
	if showErr != nil {
		return errors.Join(err, showErr)
	}
	properties := map[string]string{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		properties[name] = value
	}
	if code, convErr := strconv.Atoi(properties["ExecMainStatus"]); convErr == nil && properties["ActiveState"] != "active" {
		return &testnode.ExitError{Name: "kubelet", Code: code, Output: output}
	}
	return fmt.Errorf("the kubelet of %s does not become healthy: %w: %s", k.Name(), err, output)
}

// writeDropIn makes systemd know the drop-in. It is not reloaded when it does already:
// when it reads its units, it makes lost cgroups again.
func (k kindKubeletControl) writeDropIn(ctx context.Context, dropIn string) error {
	file := k.path(kindDropIn)
	if before, err := os.ReadFile(file); err == nil && string(before) == dropIn {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(dropIn), 0o644); err != nil {
		return err
	}
	_, err := k.node.Exec(ctx, "systemctl", "daemon-reload")
	return err
}

// logSince returns the end of what the kubelet has written since its log had a size.
func (k kindKubeletControl) logSince(size int64) string {
	const limit = 8 << 10
	content, err := os.ReadFile(k.LogPath())
	if err != nil {
		return err.Error()
	}
	content = content[min(size, int64(len(content))):]
	return string(content[max(0, len(content)-limit):])
}

// dropIn returns the drop-in of the kubelet's unit for one start, and writes the files
// that it names. Flags that come later win.
func (k kindKubeletControl) dropIn(ctx context.Context, change testnode.KubeletChange) (string, error) {
	if err := os.RemoveAll(k.path(kindFolder)); err != nil {
		return "", err
	}
	if err := os.Mkdir(k.path(kindFolder), 0o700); err != nil {
		return "", err
	}
	program, environment, flags := kindKubelet, "", ""
	if change.Binary != "" {
		program = kindProgram
		if err := k.node.CopyTo(ctx, change.Binary, program, 0o755); err != nil {
			return "", err
		}
		// The node's own flags suit its own kubelet only.
		environment = "EnvironmentFile=\nEnvironmentFile=-" + kindKubeletDir + "/kubeadm-flags.env\n"
	}
	configure := func(c *kubeletconfig.KubeletConfiguration) {
		if change.Configure != nil {
			change.Configure(c)
		}
	}
	if change.NodeName != "" {
		kubeconfig, err := k.credentials(ctx, change.NodeName)
		if err != nil {
			return "", fmt.Errorf("credentials for node %s: %w", change.NodeName, err)
		}
		if err := os.WriteFile(k.path(kindFolder+"/kubeconfig"), kubeconfig, 0o600); err != nil {
			return "", err
		}
		flags += " --hostname-override=" + change.NodeName + " --kubeconfig=" + kindFolder + "/kubeconfig"
		inner := configure
		configure = func(c *kubeletconfig.KubeletConfiguration) {
			inner(c)
			// It would go on with the certificate that it has.
			c.RotateCertificates = false
		}
	}
	if change.HostnameOverride != "" {
		flags += " --hostname-override=" + change.HostnameOverride
	}
	if change.Standalone {
		flags += " --kubeconfig= --bootstrap-kubeconfig="
		inner := configure
		configure = func(c *kubeletconfig.KubeletConfiguration) {
			inner(c)
			testnode.AuthorizeWithoutAPIServer(c)
		}
	}
	if change.Configure != nil || change.NodeName != "" || change.Standalone {
		var config kubeletconfig.KubeletConfiguration
		if err := yaml.UnmarshalStrict(k.config, &config); err != nil {
			return "", fmt.Errorf("%s of %s: %w", kindKubeletConfig, k.Name(), err)
		}
		configure(&config)
		content, err := yaml.Marshal(&config)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(k.path(kindFolder+"/config.yaml"), content, 0o600); err != nil {
			return "", err
		}
		flags += " --config=" + kindFolder + "/config.yaml"
	}
	if change.GuardConfig != "" {
		file := change.GuardConfig
		content, err := os.ReadFile(file)
		switch {
		case err == nil:
			file = kindFolder + "/guard.yaml"
			err = os.WriteFile(k.path(file), content, 0o600)
		case errors.Is(err, fs.ErrNotExist):
			// The kubelet is to find that out.
			err = nil
		}
		if err != nil {
			return "", err
		}
		flags += " --guard-config=" + file
	}
	return "[Service]\nRestart=no\nStandardOutput=append:" + kindLog + "\nStandardError=append:" + kindLog + "\n" + environment +
		"ExecStart=\nExecStart=" + program + " $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS" + flags + "\n", nil
}

// credentials returns a kubeconfig for a node of another name, signed by the cluster.
func (k kindKubeletControl) credentials(ctx context.Context, name string) ([]byte, error) {
	kubeconfig, err := k.controlPlane.Exec(ctx, "kubeadm", "kubeconfig", "user", "--config=/kind/kubeadm.conf", "--client-name=system:node:"+name, "--org=system:nodes")
	return []byte(kubeconfig), err
}

func (k kindKubeletControl) Stop(ctx context.Context) error {
	_, err := k.node.Exec(ctx, "systemctl", "stop", "kubelet")
	return err
}

func (k kindKubeletControl) Kill(ctx context.Context) error {
	// There may be no process, not even one that is to become the kubelet.
	const script = `if ! systemctl kill --signal=KILL --kill-who=main kubelet; then
  [ "$(systemctl show --property=MainPID --value kubelet)" = 0 ]
  exit
fi
for i in $(seq 100); do
  case $(systemctl show --property=ActiveState --value kubelet) in
  failed|inactive) exit 0 ;;
  esac
  sleep 0.05
done
echo 'the kubelet is still there' >&2
exit 1`
	_, err := k.node.Exec(ctx, "sh", "-c", script)
	return err
}

func (k kindKubeletControl) Get(ctx context.Context, path string) ([]byte, error) {
	return testnode.GetFromKubelet(ctx, k.client, k.node.Address(), path)
}

// kindRuntime is the node's containerd.
type kindRuntime struct {
	*kindNode
	testnode.Images
}

func newKindRuntime(n *kindNode) kindRuntime {
	return kindRuntime{n, testnode.Images{Ctr: func(ctx context.Context, args ...string) (string, error) {
		return n.node.Exec(ctx, append([]string{"ctr", "--namespace=k8s.io"}, args...)...)
	}}}
}

func (r kindRuntime) Containers(ctx context.Context) ([]testnode.Container, error) {
	listed, err := r.node.Containers(ctx)
	if err != nil {
		return nil, err
	}
	processes, err := findProcesses()
	if err != nil {
		return nil, err
	}
	var containers []testnode.Container
	for _, c := range listed {
		container := c.Container
		container.Process = processes.find(c.PID, c.ID)
		container.Sandbox = processes.find(c.SandboxPID, c.SandboxID)
		// Without a process it ended since the listing.
		if container.Process != (testnode.Process{}) {
			containers = append(containers, container)
		}
	}
	return containers, nil
}

func (r kindRuntime) Restart(ctx context.Context) error {
	if _, err := r.node.Exec(ctx, "systemctl", "restart", "containerd"); err != nil {
		return err
	}
	_, err := r.node.Containers(ctx)
	return err
}

func (r kindRuntime) Stop(ctx context.Context) error {
	_, err := r.node.Exec(ctx, "systemctl", "stop", "containerd")
	return err
}

func (r kindRuntime) Start(ctx context.Context) error {
	if _, err := r.node.Exec(ctx, "systemctl", "start", "containerd"); err != nil {
		return err
	}
	_, err := r.node.Containers(ctx)
	return err
}

func (r kindRuntime) Dir() string { return r.path("/var/lib/containerd") }

// errOwnMachine is the error of what a node in a container does not have.
var errOwnMachine = errors.New("a node of a kind cluster does not have this: label the spec " + labelOwnMachine)

func (kindRuntime) StartOther(context.Context) (testnode.OtherRuntime, error) {
	return nil, errOwnMachine
}

func (kindRuntime) RemoveImage(context.Context, string) (func(context.Context) error, error) {
	return nil, errOwnMachine
}

// machineProcess is a process as this machine sees it.
type machineProcess struct {
	procfs.Proc
	// namespaced are its numbers in its PID namespaces, this process' first.
	namespaced []uint64
	cgroups    []procfs.Cgroup
}

type machineProcesses []machineProcess

// findProcesses lists the processes of this machine. One that ends meanwhile may be
// missing.
func findProcesses() (machineProcesses, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, err
	}
	var found machineProcesses
	for _, p := range all {
		status, statusErr := p.NewStatus()
		cgroups, cgroupErr := p.Cgroups()
		if statusErr == nil && cgroupErr == nil {
			found = append(found, machineProcess{p, status.NSpids, cgroups})
		}
	}
	return found, nil
}

// find returns the process with a number on a node that is in the cgroup of a container or
// sandbox; the result is empty if it has ended.
func (m machineProcesses) find(pid int, id string) testnode.Process {
	for _, p := range m {
		// The node's number for the process is the second: this machine's comes first.
		if len(p.namespaced) < 2 || p.namespaced[1] != uint64(pid) {
			continue
		}
		if slices.ContainsFunc(p.cgroups, func(c procfs.Cgroup) bool { return strings.Contains(c.Path, id) }) {
			found, _ := testnode.FindProcess(p.PID)
			return found
		}
	}
	return testnode.Process{}
}

// kindStorage is the cluster's etcd. Single keys may be changed: each belongs to one
// spec.
type kindStorage struct{ testnode.Etcd }

func newKindStorage(n *kindNode) kindStorage {
	folder := filepath.Join(n.controlPlaneRoot, "/etc/kubernetes/pki/etcd")
	return kindStorage{testnode.Etcd{
		Endpoint: net.JoinHostPort(n.controlPlane.Address(), "2379"),
		TLS: rest.TLSClientConfig{
			CAFile:   filepath.Join(folder, "ca.crt"),
			CertFile: filepath.Join(folder, "healthcheck-client.crt"),
			KeyFile:  filepath.Join(folder, "healthcheck-client.key"),
		},
	}}
}

func (kindStorage) Snapshot(context.Context, string) error { return errShared }
func (kindStorage) Wipe(context.Context) error             { return errShared }
func (kindStorage) Restore(context.Context, string) error  { return errShared }

type kindAPIServer struct{}

func (kindAPIServer) Stop(context.Context) error  { return errShared }
func (kindAPIServer) Start(context.Context) error { return errShared }

func (n *kindNode) StartOtherAPIServer(context.Context) (testnode.OtherAPIServer, error) {
	return nil, errShared
}
