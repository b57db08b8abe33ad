package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kubelet-guard.io/node-e2e/framework/unixsocket"
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
// not told that it is the gateway: it would switch on IP forwarding for the
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

// containerdHealthy asks over CRI, as the kubelet does: the plugin is the last
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
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := writeImages(file, append(nodeImages(c.config.NodeDir), c.config.Images...)); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
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

// Container is one running container of a pod.
type Container struct {
	PodUID       string
	PodNamespace string
	PodName      string
	// Name is the container's name in its pod.
	Name string
	// ID is the runtime's.
	ID string
	// PID is the container's first process, and StartTime its start in clock
	// ticks since boot (field 22 of /proc/<pid>/stat): together they identify
	// the process for good.
	PID       int
	StartTime uint64
	// StartedAt is when the runtime started that process, by its own account.
	StartedAt time.Time
	// SandboxPID is the pod's pause process; 0 if the sandbox is not ready.
	SandboxPID int
}

// Containers returns the containers of the node that run, as the runtime sees
// them, whatever the API says.
func (c *Cluster) Containers(ctx context.Context) ([]Container, error) {
	return c.containersOf(ctx, containerdSocket)
}

// containersOf is Containers for the runtime behind a socket of the node.
func (c *Cluster) containersOf(ctx context.Context, socket string) ([]Container, error) {
	var containers []Container
	err := c.withRuntime(socket, func(client runtimeapi.RuntimeServiceClient) error {
		list, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{
			Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}},
		})
		if err != nil {
			return err
		}
		sandboxes := map[string]int{}
		for _, listed := range list.GetContainers() {
			container, err := describe(ctx, client, listed, sandboxes)
			if status.Code(err) == codes.NotFound || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue // it ended in between
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

// describe completes a listed container by its process. It keeps the pids of
// sandboxes, which several containers share.
func describe(ctx context.Context, client runtimeapi.RuntimeServiceClient, listed *runtimeapi.Container, sandboxes map[string]int) (Container, error) {
	answer, err := client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: listed.GetId(), Verbose: true})
	if err != nil {
		return Container{}, err
	}
	pid, err := verbosePID(answer.GetInfo())
	if err != nil {
		return Container{}, fmt.Errorf("container %s: %w", listed.GetId(), err)
	}
	startTime, err := processStartTime(pid)
	if err != nil {
		return Container{}, err
	}
	sandbox, known := sandboxes[listed.GetPodSandboxId()]
	if !known {
		answer, err := client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: listed.GetPodSandboxId(), Verbose: true})
		if err != nil {
			return Container{}, err
		}
		if answer.GetStatus().GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			if sandbox, err = verbosePID(answer.GetInfo()); err != nil {
				return Container{}, fmt.Errorf("sandbox %s: %w", listed.GetPodSandboxId(), err)
			}
		}
		sandboxes[listed.GetPodSandboxId()] = sandbox
	}
	labels := listed.GetLabels()
	return Container{
		PodUID:       labels["io.kubernetes.pod.uid"],
		PodNamespace: labels["io.kubernetes.pod.namespace"],
		PodName:      labels["io.kubernetes.pod.name"],
		Name:         labels["io.kubernetes.container.name"],
		ID:           listed.GetId(),
		PID:          pid,
		StartTime:    startTime,
		StartedAt:    time.Unix(0, answer.GetStatus().GetStartedAt()),
		SandboxPID:   sandbox,
	}, nil
}

// verbosePID reads the process id from the part of a CRI answer that is the
// runtime's own.
func verbosePID(info map[string]string) (int, error) {
	var verbose struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(info["info"]), &verbose); err != nil {
		return 0, fmt.Errorf("reading the verbose status: %w", err)
	}
	return verbose.PID, nil
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
