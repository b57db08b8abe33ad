package node

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

// Variant says which kubelet a node runs.
type Variant string

const (
	// Stock is the kubelet as upstream releases it.
	Stock Variant = "stock"
	// Guarded is the kubelet with this project's patches.
	Guarded Variant = "guarded"
)

// ParseVariant reads the value of a -kubelet flag.
func ParseVariant(s string) (Variant, error) {
	switch v := Variant(s); v {
	case Stock, Guarded:
		return v, nil
	}
	return "", fmt.Errorf("kubelet %q is not known: use %q or %q", s, Stock, Guarded)
}

// labelControlPlane marks specs whose fault is one of the control plane: where nodes
// share it, they cannot be run for one node.
const labelControlPlane = "control-plane"

// labelOwnMachine marks specs that need what only a node has whose parts run on this
// machine: another runtime, loop devices.
const labelOwnMachine = "own-machine"

// Options says which cluster a provider brings up.
type Options struct {
	// ClusterName names the cluster, its folder and its network, so that clusters
	// with different names can run side by side.
	ClusterName string
	// OutputDir is the folder that holds the built programs and that receives the
	// cluster's state.
	OutputDir string
	// Kubelet is which kubelet the node runs, for providers that choose among nodes.
	Kubelet Variant
	// KubeletBinary is the kubelet that the node runs, for providers that make it.
	KubeletBinary string
	// APIServerFlags are appended to the API server's command line, by providers that
	// make it.
	APIServerFlags []string
	// Log receives the provider's progress messages.
	Log io.Writer
}

// Provider brings up and takes down a cluster with one node.
//
// Start is called once, before anything else; Stop is always called, also after
// a Start that failed. Methods are not meant for concurrent use.
type Provider interface {
	Start(ctx context.Context) error
	// Stop removes everything that Start and the specs made.
	Stop(ctx context.Context) error
	// Remove removes what an earlier run with the same options left. It is for
	// programs that did not call Start.
	Remove(ctx context.Context) error
	// Keep leaves the cluster up when the program ends; it takes the place of Stop.
	Keep(ctx context.Context) error
	// RESTConfig gives administrator access to the API server.
	RESTConfig() *rest.Config
	// Kubectl is the command line, without a verb, with which a person reaches the
	// cluster, and Down the one that removes a cluster that was kept.
	Kubectl() string
	Down() string
	// Kubeconfig is the administrator's kubeconfig file.
	Kubeconfig() string
	Node() Node
}

// Node is the one node of the cluster, with the parts of the control plane that
// the incidents damage.
type Node interface {
	Name() string
	Kubelet() Kubelet
	Runtime() Runtime
	Storage() Storage
	ControlPlane() ControlPlane
	// KubeletDir is the kubelet's root directory, as the suite's process sees it.
	KubeletDir() string
	// RuntimeSocket is the container runtime's socket, as the suite's process sees it.
	RuntimeSocket() string
	// WriteStaticPod puts a manifest into the folder that the kubelet watches, and
	// RemoveStaticPod takes it away; removing one that is not there is no error.
	WriteStaticPod(name string, manifest []byte) error
	RemoveStaticPod(name string) error
	// Run runs a program on the node, as root and among the node's own mounts, and
	// returns what it printed.
	Run(ctx context.Context, command ...string) (string, error)
	// Fetch returns what a server in the cluster's network answers to a GET, without the
	// API server. An answer other than 200 is an error.
	Fetch(ctx context.Context, url string) (string, error)
	// NewLink makes a connection to the API server that can be cut, for a kubelet to
	// be started with. Its creator closes it.
	NewLink() (Link, error)
}

// Link is a connection between a kubelet and the API server. While it is cut,
// nothing passes in either direction and no end is notified, as on a network that drops
// packets; once it is mended, what was on the way arrives.
type Link interface {
	Cut() error
	Mend() error
	// Reset ends all connections, and what was on the way is lost, as after a long
	// time without a network.
	Reset() error
	Close() error
}

// KubeletChange says how a kubelet is started. The zero value is the normal
// configuration.
type KubeletChange struct {
	// Configure changes the normal configuration; nil leaves it as it is.
	Configure func(*kubeletconfig.KubeletConfiguration)
	// GuardConfig is the value of --guard-config; empty leaves the flag out.
	GuardConfig string
	// Binary is the path of another kubelet; empty is the node's own.
	Binary string
	// NodeName registers the kubelet under another name, with credentials for it;
	// empty is the node's own name.
	NodeName string
	// Link is how the kubelet reaches the API server; nil is directly.
	Link Link
	// APIServer is another API server than the cluster's own; nil is that one.
	APIServer OtherAPIServer
	// HostnameOverride is the value of the flag when it alone is changed, and the
	// credentials are those of the node's own name; empty leaves it as it is.
	HostnameOverride string
	// Standalone starts the kubelet without a kubeconfig, as when the flag is lost.
	Standalone bool
}

// Kubelet controls the kubelet's process.
type Kubelet interface {
	// Start starts the kubelet and returns when it is healthy. The change holds for
	// this start only. A kubelet that refuses to start gives an *ExitError.
	Start(ctx context.Context, change KubeletChange) error
	// Stop ends the kubelet with SIGTERM, Kill with SIGKILL. Neither touches pods.
	Stop(ctx context.Context) error
	Kill(ctx context.Context) error
	// Get reads a path of the kubelet's authenticated port. It does not go through
	// the API server, so that it works for a node that the API has lost.
	Get(ctx context.Context, path string) ([]byte, error)
	// LogPath is the file that receives the kubelet's output.
	LogPath() string
}

// ExitError is a kubelet that ended instead of becoming healthy.
type ExitError struct {
	// Code is the exit code.
	Code int
	// Output is the end of what the kubelet wrote.
	Output string
}

// Error implements error.
func (e *ExitError) Error() string {
	return fmt.Sprintf("the kubelet ended with exit code %d: %s", e.Code, e.Output)
}

// Container is a running container of the node.
type Container struct {
	PodUID, PodNamespace, PodName string
	// Name is the container's name in the pod, ID the runtime's name for it.
	Name, ID string
	Process  Process
	// StartedAt is when the runtime started the process, by its own account.
	StartedAt time.Time
	// Sandbox is the pod's pause process.
	Sandbox Process
}

// Runtime is the node's container runtime.
type Runtime interface {
	// Containers lists the running containers, without sandboxes.
	Containers(ctx context.Context) ([]Container, error)
	// Restart restarts the runtime, Stop and Start are its halves; containers keep
	// running.
	Restart(ctx context.Context) error
	Stop(ctx context.Context) error
	Start(ctx context.Context) error
	// Dir is containerd's root directory, as the suite's process sees it.
	Dir() string
	// Tag gives an image of the runtime one more name, and Untag takes a name away.
	Tag(ctx context.Context, image, name string) error
	Untag(ctx context.Context, name string) error
	// Digest returns the digest of the image's manifest.
	Digest(ctx context.Context, image string) (string, error)
	// RemoveImage takes an image away with all of its names. The returned function
	// brings it back under the one that was given. Specs that use it have the label
	// own-machine: on a shared node other pods may start from the image.
	RemoveImage(ctx context.Context, image string) (restore func(context.Context) error, err error)
	// StartOther starts a second runtime beside this one, with images and without
	// containers. Specs that use it have the label own-machine.
	StartOther(ctx context.Context) (OtherRuntime, error)
}

// OtherRuntime is a container runtime that knows nothing of the node's pods.
type OtherRuntime interface {
	// Endpoint is what the kubelet's containerRuntimeEndpoint is for it.
	Endpoint() string
	// Containers lists its running containers, without sandboxes.
	Containers(ctx context.Context) ([]Container, error)
	// Stop ends it. The caller of StartOther must call it.
	Stop(ctx context.Context) error
}

// Storage is the etcd of the control plane. Keys are absolute, for instance
// "/registry/pods/default/web".
type Storage interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	// Snapshot writes the whole storage to a file.
	Snapshot(ctx context.Context, file string) error
	// Wipe replaces the storage by an empty one, Restore by what a snapshot holds.
	// Both return when the API server and the controllers, but not the kubelet,
	// work with the new content.
	Wipe(ctx context.Context) error
	Restore(ctx context.Context, file string) error
}

// ControlPlane controls the rest of the control plane.
type ControlPlane interface {
	StopAPIServer(ctx context.Context) error
	// StartAPIServer returns when the API server is ready and the controllers work.
	StartAPIServer(ctx context.Context) error
	// StartOther starts a second API server on the same storage.
	StartOther(ctx context.Context) (OtherAPIServer, error)
}

// OtherAPIServer is an API server that can be cut off from the storage: from then on it
// answers from what it remembers, and hears of no change.
type OtherAPIServer interface {
	Cut() error
	Mend() error
	// Stop ends it. The caller of StartOther must call it.
	Stop(ctx context.Context) error
}

// parseNames reads the names of the image with a digest from the table of
// `ctr images list`.
func parseNames(table, digest string) (names []string) {
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == digest {
			names = append(names, fields[0])
		}
	}
	return names
}

// parseDigest reads the digest of an image from the table of `ctr images list`.
func parseDigest(table, image string) (string, error) {
	for line := range strings.Lines(table) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[0] == image {
			return fields[2], nil
		}
	}
	return "", fmt.Errorf("image %s is not in the runtime's list: %s", image, table)
}

// RemoveCluster removes what is left of a cluster whose suite ended without
// cleaning up. None left is no error.
func RemoveCluster(ctx context.Context, providerName string, options Options) error {
	p, err := NewProvider(providerName, options)
	if err != nil {
		return err
	}
	return p.Remove(ctx)
}

// NewProvider returns the provider with the given name.
func NewProvider(name string, options Options) (Provider, error) {
	switch name {
	case "local":
		return newLocalProvider(options), nil
	case "kind":
		return newKindProvider(options), nil
	}
	return nil, fmt.Errorf("provider %q is not known: use local or kind", name)
}
