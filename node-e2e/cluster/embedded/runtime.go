package embedded

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework/unixsocket"
	"kubelet-guard.io/node-e2e/images"
)

// containerdSocket is a path of the node.
const containerdSocket = "/run/containerd/containerd.sock"

// containerdFolders says where on the node a containerd has its files, and what its
// configuration is called.
type containerdFolders struct{ config, root, state, socket string }

var nodeContainerd = containerdFolders{
	config: "containerd.toml",
	root:   "/var/lib/containerd",
	state:  "/run/containerd",
	socket: containerdSocket,
}

// containerdConfig is the runtime's configuration. The arguments are its root and
// state folders, its socket, the CNI plugin folder, the CNI configuration folder, the
// sandbox image, runc's path and runc's root.
//
// The optional plugin manager (opt) and NRI are off: they use folders of the
// machine. restrict_oom_score_adj lets containers start where the machine
// denies CAP_SYS_RESOURCE. The CPU time of sandboxes, which nobody reads
// here, is collected once a minute and not, as by default, once a second. The sandboxes'
// network namespaces are mounted in the state folder so that they belong to the cluster.
const containerdConfig = `version = 4
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]

[plugins.'io.containerd.server.v1.grpc']
address = %q

[plugins.'io.containerd.nri.v1.nri']
disable = true

[plugins.'io.containerd.cri.v1.runtime']
stats_collect_period = "1m"
stats_retention_period = "5m"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
disable_apparmor = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%q]
conf_dir = %q

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = %q
Root = %q
SystemdCgroup = false
`

// cniConfig joins pods to the bridge that is there already. The bridge plugin is
// not configured as the gateway: it would switch on IP forwarding for the
// whole machine, which pods of one bridge do not need.
func cniConfig(index int) any {
	return map[string]any{
		"cniVersion": "1.0.0",
		"name":       bridgeName(index),
		"plugins": []any{
			map[string]any{
				"type":        "bridge",
				"bridge":      bridgeName(index),
				"hairpinMode": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": []any{[]any{map[string]any{"subnet": podNetwork(index).String(), "gateway": nodeIP(index).String()}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0", "gw": nodeIP(index).String()}},
				},
			},
		},
	}
}

func (c *Cluster) prepareContainerd(folders containerdFolders) (launch, error) {
	configDir := filepath.Join(c.config.Dir, "config")
	cniDir := filepath.Join(configDir, "cni")
	if err := os.MkdirAll(cniDir, 0o755); err != nil {
		return launch{}, err
	}
	cni, err := json.MarshalIndent(cniConfig(c.state.Index), "", "  ")
	if err != nil {
		return launch{}, err
	}
	if err := os.WriteFile(filepath.Join(cniDir, "bridge.conflist"), cni, 0o644); err != nil {
		return launch{}, err
	}
	config := fmt.Sprintf(containerdConfig, folders.root, folders.state, folders.socket, c.config.NodeDir, cniDir, PauseImage,
		filepath.Join(c.config.NodeDir, "runc-unfiltered"), filepath.Join(folders.state, "runc"))
	path := filepath.Join(configDir, folders.config)
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return launch{}, err
	}
	return launch{
		path: filepath.Join(c.config.NodeDir, programContainerd),
		args: []string{"--config=" + path},
	}, nil
}

// containerdHealthy checks over CRI, as the kubelet does: the plugin is the last
// thing that containerd brings up.
func (c *Cluster) containerdHealthy(ctx context.Context, socket string) error {
	return c.withRuntime(socket, func(client runtimeapi.RuntimeServiceClient) error {
		response, err := client.Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		for _, condition := range response.GetStatus().GetConditions() {
			// The runtime reports conditions of its own too, such as deprecations.
			required := condition.GetType() == runtimeapi.RuntimeReady || condition.GetType() == runtimeapi.NetworkReady
			if required && !condition.GetStatus() {
				return fmt.Errorf("%s is false: %s: %s", condition.GetType(), condition.GetReason(), condition.GetMessage())
			}
		}
		return nil
	})
}

// importImages makes the images known to the runtime behind the socket.
func (c *Cluster) importImages(ctx context.Context, socket string) error {
	path := filepath.Join(c.config.Dir, "images.tar")
	all := append([]images.Image{
		images.Program(PauseImage, filepath.Join(c.config.NodeDir, "pause")),
		images.Program(WorkloadImage, filepath.Join(c.config.NodeDir, "workload")),
	}, c.config.Images...)
	if err := images.WriteFile(path, all...); err != nil {
		return err
	}
	return c.mounts.do(func() error {
		ctr := exec.CommandContext(ctx, filepath.Join(c.config.NodeDir, "ctr"),
			"--address="+socket, "--namespace=k8s.io", "images", "import", path)
		ctr.Env = append(os.Environ(), markerEnv+"="+c.config.Dir)
		if output, err := ctr.CombinedOutput(); err != nil {
			return fmt.Errorf("importing the images: %w: %s", err, lastLines(string(output), 10))
		}
		return nil
	})
}

// Runtime controls the node's container runtime. Containers keep running while it is
// stopped or restarted.
type Runtime struct {
	*Component
	testnode.Images
}

func (c *Cluster) newRuntime(component *Component) *Runtime {
	return &Runtime{Component: component, Images: testnode.Images{Ctr: func(ctx context.Context, args ...string) (string, error) {
		return c.RunOnNode(ctx, append([]string{filepath.Join(c.config.NodeDir, "ctr"), "--namespace=k8s.io"}, args...)...)
	}}}
}

// Containers implements testnode.Runtime.
func (r *Runtime) Containers(ctx context.Context) ([]testnode.Container, error) {
	return r.cluster.containersOf(ctx, containerdSocket)
}

// Dir implements testnode.Runtime.
func (r *Runtime) Dir() string { return r.cluster.HostPath(nodeContainerd.root) }

// StartOther implements testnode.Runtime.
func (r *Runtime) StartOther(ctx context.Context) (testnode.OtherRuntime, error) {
	other := r.cluster.otherRuntime
	return other, other.Start(ctx)
}

// containersOf lists the running containers of the runtime behind a socket of the node.
func (c *Cluster) containersOf(ctx context.Context, socket string) ([]testnode.Container, error) {
	var containers []testnode.Container
	err := c.withRuntime(socket, func(client runtimeapi.RuntimeServiceClient) error {
		list, err := testnode.List(ctx, client)
		if err != nil {
			return err
		}
		for _, listed := range list {
			container := listed.Container
			if container.Process, err = testnode.FindProcess(listed.PID); testnode.Ended(err) {
				continue
			}
			if err == nil && listed.SandboxPID != 0 {
				// A sandbox that ended since the listing has no identity any more.
				container.Sandbox, _ = testnode.FindProcess(listed.SandboxPID)
			}
			if err != nil {
				return err
			}
			containers = append(containers, container)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the containers of the runtime: %w", err)
	}
	return containers, nil
}

// RuntimeSocket returns the container runtime's socket as it is found outside the
// node's mount namespace. The path may be too long for a socket address.
func (c *Cluster) RuntimeSocket() string { return c.HostPath(containerdSocket) }

// withRuntime calls f with a client of the container runtime behind a socket of the
// node. The connection is not kept: the runtime comes and goes, and a kept connection
// would wait out its back-off.
func (c *Cluster) withRuntime(nodeSocket string, f func(runtimeapi.RuntimeServiceClient) error) error {
	connection, err := unixsocket.Client(c.HostPath(nodeSocket))
	if err != nil {
		return err
	}
	defer connection.Close()
	return f(runtimeapi.NewRuntimeServiceClient(connection))
}

// programOtherRuntime is the name of the second runtime among the components, and of
// its log.
const programOtherRuntime = "containerd-other"

// otherContainerd has its folders within those of the node's own containerd, so that
// they belong to the cluster, too.
var otherContainerd = containerdFolders{
	config: "containerd-other.toml",
	root:   nodeContainerd.root + "/other",
	state:  nodeContainerd.state + "/other",
	socket: nodeContainerd.state + "/other/containerd.sock",
}

// OtherRuntime is a second containerd next to the node's own, with images, but without
// containers: what a kubelet sees that is pointed to a wrong socket or whose runtime
// has lost its records. The methods of Component that it does not redefine apply.
type OtherRuntime struct {
	*Component
}

func (c *Cluster) newOtherRuntime() *OtherRuntime {
	return &OtherRuntime{&Component{
		cluster:  c,
		name:     programOtherRuntime,
		inNode:   true,
		prepare:  func() (launch, error) { return c.prepareContainerd(otherContainerd) },
		healthy:  func(ctx context.Context) error { return c.containerdHealthy(ctx, otherContainerd.socket) },
		patience: termPatience,
	}}
}

// Start starts it without containers of earlier starts and with the images of the
// node, and returns when it is healthy.
func (r *OtherRuntime) Start(ctx context.Context) error {
	for _, folder := range []string{otherContainerd.root, otherContainerd.state} {
		if err := os.RemoveAll(r.cluster.HostPath(folder)); err != nil {
			return fmt.Errorf("starting %s: %w", r.name, err)
		}
	}
	if err := r.Component.Start(ctx); err != nil {
		return err
	}
	return r.cluster.importImages(ctx, otherContainerd.socket)
}

// Stop stops it. Containers that it has run on; the caller sees to it that there are
// none.
func (r *OtherRuntime) Stop(ctx context.Context) error {
	if err := r.Component.Stop(ctx); err != nil {
		return err
	}
	return r.cluster.forget(r.name)
}

// Endpoint is what a kubelet's containerRuntimeEndpoint is for it.
func (r *OtherRuntime) Endpoint() string { return "unix://" + otherContainerd.socket }

// Containers returns its running containers.
func (r *OtherRuntime) Containers(ctx context.Context) ([]testnode.Container, error) {
	return r.cluster.containersOf(ctx, otherContainerd.socket)
}
