package node

import (
	"context"
	"fmt"
	"io"

	"k8s.io/client-go/rest"

	"kubelet-guard.io/node-e2e/cluster/testnode"
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
	// ControlPlaneVersion is the version of Kubernetes whose control plane runs, a folder below
	// OutputDir, for providers that make it. Empty means build.KubeVersion.
	ControlPlaneVersion string
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
	// Node is the one node of the cluster.
	Node() testnode.Node
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
