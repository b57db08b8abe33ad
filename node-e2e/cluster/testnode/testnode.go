// Package testnode is what the suites see of a node, whichever cluster it is in: its parts
// (kubelet, container runtime, the control plane behind it) can be stopped, replaced and
// broken. cluster/embedded has such a node; the node suite makes one of a worker of
// cluster/kind. What both need for that is here, too: the identity of processes, a client
// of etcd, the containers and images of a runtime.
//
// The methods of the interfaces are not meant for concurrent use.
package testnode

import (
	"context"
	"fmt"
	"time"

	kubeletconfig "k8s.io/kubelet/config/v1beta1"
)

// Node is a node, with the parts of the control plane that the incidents damage.
type Node interface {
	Name() string
	Kubelet() Kubelet
	Runtime() Runtime
	Storage() Storage
	// APIServer is the cluster's API server. Its Start returns when it is ready and the
	// controllers work.
	APIServer() Component
	// StartOtherAPIServer starts a second API server on the same storage.
	StartOtherAPIServer(ctx context.Context) (OtherAPIServer, error)
	// KubeletDir is the kubelet's root directory, StaticPodDir the folder that it reads
	// static pods from, and RuntimeSocket the container runtime's socket, as this process
	// sees them.
	KubeletDir() string
	StaticPodDir() string
	RuntimeSocket() string
	// Run runs a program on the node, as root and among the node's own mounts, and
	// returns what it printed.
	Run(ctx context.Context, command ...string) (string, error)
	// Fetch returns what a server in the cluster's network responds to a GET, without the
	// API server. A status other than 200 is an error.
	Fetch(ctx context.Context, url string) (string, error)
	// NewLink makes a connection to the API server that can be cut, for a kubelet to
	// be started with. Its creator closes it.
	NewLink() (Link, error)
}

// Component is a process that can be stopped and started.
type Component interface {
	Stop(ctx context.Context) error
	Start(ctx context.Context) error
}

// Link is a connection that can be cut. While it is cut, nothing passes in either
// direction and no end is notified, as on a network that drops packets; once it is
// restored, what was on the way arrives.
type Link interface {
	Cut() error
	Restore() error
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
	// GuardConfig is the value of --guard-config; empty leaves the flag as it is.
	GuardConfig string
	// Binary is the path of another kubelet; empty is the node's own.
	Binary string
	// NodeName registers the kubelet under another name, with credentials for it, as a
	// node does that bootstraps again; empty is the node's own name.
	NodeName string
	// Link is how the kubelet reaches the API server; nil is directly.
	Link Link
	// APIServer is another API server than the cluster's own; nil is that one.
	APIServer OtherAPIServer
	// HostnameOverride is the value of the flag when it alone is changed: the credentials
	// are those of the node's own name, and may not read the other node's pods. Empty
	// leaves it as it is.
	HostnameOverride string
	// Standalone starts the kubelet without a kubeconfig, as when the flag is lost.
	Standalone bool
}

// AuthorizeWithoutAPIServer changes a configuration so that a standalone kubelet starts
// with it. No API server can say who a client is then: every client with a certificate may
// do everything.
func AuthorizeWithoutAPIServer(c *kubeletconfig.KubeletConfiguration) {
	c.Authentication.Webhook.Enabled = new(false)
	c.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeAlwaysAllow
}

// Kubelet controls the kubelet's process. Containers keep running while it is stopped.
type Kubelet interface {
	// Start starts the kubelet and returns when it is healthy and its resource managers
	// have started. The change holds for this start only. A kubelet that refuses to start
	// gives an *ExitError.
	Start(ctx context.Context, change KubeletChange) error
	// Stop ends the kubelet with SIGTERM, Kill with SIGKILL.
	Stop(ctx context.Context) error
	Kill(ctx context.Context) error
	// Get reads a path of the kubelet's authenticated port. It does not go through
	// the API server, so that it works for a node that the API has lost.
	Get(ctx context.Context, path string) ([]byte, error)
	// LogPath is the file that receives the kubelet's output.
	LogPath() string
}

// ExitError is a process that ended before it was healthy.
type ExitError struct {
	// Name is the component, such as kubelet.
	Name string
	// Code is the exit code, or -1 if a signal ended the process.
	Code int
	// Output is the end of what this start wrote to the log.
	Output string
}

// Error includes the end of the log: it names the reason.
func (e *ExitError) Error() string {
	return fmt.Sprintf("%s exited with code %d before it was healthy; the end of its log:\n%s", e.Name, e.Code, e.Output)
}

// Container is a running container of a pod.
type Container struct {
	PodUID, PodNamespace, PodName string
	// Name is the container's name in the pod, ID the runtime's name for it.
	Name, ID string
	// Process is the container's first process.
	Process Process
	// StartedAt is when the runtime started the process, by its own account.
	StartedAt time.Time
	// Sandbox is the pod's pause process, empty if that has ended.
	Sandbox Process
}

// Runtime is the node's container runtime. Containers keep running while it is stopped or
// restarted.
type Runtime interface {
	Component
	Restart(ctx context.Context) error
	// Containers lists the running containers, without sandboxes, as the runtime sees them,
	// whatever the API says.
	Containers(ctx context.Context) ([]Container, error)
	// Dir is containerd's root directory, as this process sees it.
	Dir() string
	// Tag gives an image of the runtime one more name, and Untag removes a name.
	Tag(ctx context.Context, image, name string) error
	Untag(ctx context.Context, name string) error
	// Digest returns the digest of the image's manifest.
	Digest(ctx context.Context, image string) (string, error)
	// RemoveImage removes an image with all of its names. The returned function
	// restores it under the name that was given. Specs that use it have the label
	// own-machine: on a shared node other pods may start from the image.
	RemoveImage(ctx context.Context, image string) (restore func(context.Context) error, err error)
	// StartOther starts a second runtime next to this one, with images and without
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
// "/registry/pods/default/web"; one that does not exist is an error, also for Delete, so
// that a spec does not pass on a mistyped one.
type Storage interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, value []byte) error
	Delete(ctx context.Context, key string) error
	// Snapshot writes the whole storage to a new file.
	Snapshot(ctx context.Context, file string) error
	// Wipe replaces the storage by an empty one, Restore by what a snapshot holds.
	// Both return when the API server and the controllers, but not the kubelet,
	// work with the new content.
	Wipe(ctx context.Context) error
	Restore(ctx context.Context, file string) error
}

// OtherAPIServer is an API server that can be cut off from the storage: from then on it
// responds from its cache, which sees no change.
type OtherAPIServer interface {
	Cut() error
	Restore() error
	// Stop ends it. The caller of StartOtherAPIServer must call it.
	Stop(ctx context.Context) error
}
