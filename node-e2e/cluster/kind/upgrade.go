package kind

import (
	"context"
	"path/filepath"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// LoadVersion copies kubeadm of another version of Kubernetes, such as v1.37.2, to all nodes,
// and makes the images that it needs known to their runtimes. What runs stays as it is.
func (c *Cluster) LoadVersion(ctx context.Context, version string) error {
	output := c.outputDir()
	root, _, err := findRoot(ctx, output)
	if err != nil {
		return err
	}
	config := imagesConfig{Output: output, Version: version, Root: root.Tree, Dir: filepath.Join(c.dir, "images")}
	wanted, err := config.wantedByKubeadm(ctx)
	if err != nil {
		return err
	}
	for _, name := range wanted {
		image, err := config.image(name)
		if err != nil {
			return err
		}
		archive, err := config.write(image)
		if err != nil {
			return err
		}
		if err := c.LoadImage(ctx, archive, c.runningImage(name)...); err != nil {
			return err
		}
	}
	return onEach(ctx, c.nodes, func(ctx context.Context, node *Node) error {
		return node.CopyTo(ctx, filepath.Join(output, version, "kubeadm"), "/usr/bin/kubeadm", 0o755)
	})
}

// runningImage are the nodes where kubeadm has an image run.
func (c *Cluster) runningImage(name string) []*Node {
	switch program(name) {
	case "kube-proxy", "coredns", "pause":
		return c.nodes
	}
	return c.nodes[:1]
}

// UpgradeControlPlane upgrades the control plane node as kubeadm's documentation does: kubeadm
// upgrade apply, then the stock kubelet. LoadVersion comes before it.
func (c *Cluster) UpgradeControlPlane(ctx context.Context, version string) error {
	// kind makes nodes without that check, too: it is one of the machine's kernel.
	if _, err := c.ControlPlane().Exec(ctx, "kubeadm", "upgrade", "apply", "--yes", "--ignore-preflight-errors=SystemVerification", version); err != nil {
		return err
	}
	if err := c.installKubelet(ctx, c.ControlPlane(), version); err != nil {
		return err
	}
	return c.ControlPlane().RestartKubelet(ctx)
}

// UpgradeNodes does with workers what kubeadm's documentation does before their kubelets are
// restarted: kubeadm upgrade node, and the stock kubelet of the version as the file
// /usr/bin/kubelet. No kubelet is restarted. LoadVersion comes before it.
func (c *Cluster) UpgradeNodes(ctx context.Context, version string, nodes ...*Node) error {
	return onEach(ctx, nodes, func(ctx context.Context, node *Node) error {
		if _, err := node.Exec(ctx, "kubeadm", "upgrade", "node", "--ignore-preflight-errors=SystemVerification"); err != nil {
			return err
		}
		return c.installKubelet(ctx, node, version)
	})
}

// InstallKubelet replaces the file /usr/bin/kubelet of nodes by the stock kubelet of a version,
// as a package of the distribution does. No kubelet is restarted.
func (c *Cluster) InstallKubelet(ctx context.Context, version string, nodes ...*Node) error {
	return onEach(ctx, nodes, func(ctx context.Context, node *Node) error { return c.installKubelet(ctx, node, version) })
}

func (c *Cluster) installKubelet(ctx context.Context, node *Node, version string) error {
	return node.CopyTo(ctx, filepath.Join(c.outputDir(), version, "kubelet-stock"), "/usr/bin/kubelet", 0o755)
}

// Storage reads and writes keys of the cluster's etcd, with the API server's certificate.
func (c *Cluster) Storage(ctx context.Context) (testnode.Etcd, error) {
	const pki = "/etc/kubernetes/pki/"
	etcd := testnode.Etcd{Endpoint: "https://" + c.ControlPlane().Address() + ":2379"}
	for name, data := range map[string]*[]byte{
		"etcd/ca.crt": &etcd.TLS.CAData, "apiserver-etcd-client.crt": &etcd.TLS.CertData, "apiserver-etcd-client.key": &etcd.TLS.KeyData,
	} {
		content, err := c.ControlPlane().Exec(ctx, "cat", pki+name)
		if err != nil {
			return testnode.Etcd{}, err
		}
		*data = []byte(content)
	}
	return etcd, nil
}
