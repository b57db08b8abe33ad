package embedded

import (
	"context"
	"fmt"
	"os"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

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
