package node

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"path/filepath"

	"k8s.io/client-go/rest"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// localProvider runs the cluster's parts as processes of this machine.
type localProvider struct {
	config  embedded.Config
	cluster *embedded.Cluster
}

func newLocalProvider(o Options) *localProvider {
	return &localProvider{config: embedded.Config{
		Name:    o.ClusterName,
		Dir:     filepath.Join(o.OutputDir, "clusters", o.ClusterName),
		KubeDir: filepath.Join(o.OutputDir, cmp.Or(o.ControlPlaneVersion, build.KubeVersion)),
		NodeDir: filepath.Join(o.OutputDir, "node", "bin"),
		Kubelet: o.KubeletBinary,
		Log:     o.Log,

		APIServerFlags: o.APIServerFlags,
	}}
}

func (p *localProvider) Start(ctx context.Context) error {
	cluster, err := embedded.Start(ctx, p.config)
	if err != nil {
		return fmt.Errorf("cluster %s: %w", p.config.Name, err)
	}
	p.cluster = cluster
	return nil
}

func (p *localProvider) Stop(ctx context.Context) error {
	if p.cluster == nil {
		return nil
	}
	return p.cluster.Stop(ctx)
}

func (p *localProvider) Remove(ctx context.Context) error {
	return embedded.Remove(ctx, p.config.Dir)
}

func (p *localProvider) Keep(context.Context) error { return p.cluster.Detach() }

func (p *localProvider) RESTConfig() *rest.Config { return p.cluster.RESTConfig() }

func (p *localProvider) Kubectl() string {
	kubectl := filepath.Join(p.config.KubeDir, "kubectl")
	return kubectl + " --kubeconfig " + p.cluster.Kubeconfig()
}

func (p *localProvider) Kubeconfig() string { return p.cluster.Kubeconfig() }

func (p *localProvider) Down() string {
	return filepath.Join(filepath.Dir(p.config.KubeDir), "bin", "guard-e2e") + " down " + p.config.Name
}

func (p *localProvider) Node() testnode.Node { return localNode{p.cluster} }

// localNode is the cluster under the names of testnode.Node.
type localNode struct{ *embedded.Cluster }

func (n localNode) Name() string                    { return n.NodeName() }
func (n localNode) Kubelet() testnode.Kubelet       { return n.Cluster.Kubelet() }
func (n localNode) Runtime() testnode.Runtime       { return n.Containerd() }
func (n localNode) Storage() testnode.Storage       { return n.Etcd() }
func (n localNode) APIServer() testnode.Component   { return n.Cluster.APIServer() }
func (n localNode) KubeletDir() string              { return n.HostPath("/var/lib/kubelet") }
func (n localNode) NewLink() (testnode.Link, error) { return n.Cluster.NewLink() }

func (n localNode) StartOtherAPIServer(ctx context.Context) (testnode.OtherAPIServer, error) {
	return n.Cluster.StartOtherAPIServer(ctx)
}

func (n localNode) Run(ctx context.Context, command ...string) (string, error) {
	return n.RunOnNode(ctx, command...)
}

func (n localNode) Fetch(ctx context.Context, url string) (string, error) {
	body, err := testnode.Get(ctx, http.DefaultClient, url)
	return string(body), err
}
