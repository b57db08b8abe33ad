package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/embedded"
)

// kubeletPort is the kubelet's authenticated port.
const kubeletPort = "10250"

// localProvider runs the cluster's parts as processes of this machine.
type localProvider struct {
	config  embedded.Config
	cluster *embedded.Cluster
}

func newLocalProvider(o Options) *localProvider {
	return &localProvider{config: embedded.Config{
		Name:    o.ClusterName,
		Dir:     filepath.Join(o.OutputDir, "clusters", o.ClusterName),
		KubeDir: filepath.Join(o.OutputDir, build.KubeVersion),
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

func (p *localProvider) Node() Node { return localNode{p.cluster} }

type localNode struct{ cluster *embedded.Cluster }

func (n localNode) Name() string               { return n.cluster.NodeName() }
func (n localNode) Kubelet() Kubelet           { return localKubelet(n) }
func (n localNode) Runtime() Runtime           { return localRuntime(n) }
func (n localNode) Storage() Storage           { return localStorage{n.cluster.Etcd()} }
func (n localNode) ControlPlane() ControlPlane { return localControlPlane(n) }

func (n localNode) KubeletDir() string { return n.cluster.HostPath("/var/lib/kubelet") }

func (n localNode) RuntimeSocket() string { return n.cluster.RuntimeSocket() }

func (n localNode) WriteStaticPod(name string, manifest []byte) error {
	return writeStaticPod(n.cluster.StaticPodDir(), name, manifest)
}

func writeStaticPod(folder, name string, manifest []byte) error {
	// The kubelet ignores names that begin with a dot, so it never reads half a
	// manifest.
	partial := filepath.Join(folder, "."+name)
	if err := os.WriteFile(partial, manifest, 0o600); err != nil {
		return err
	}
	return os.Rename(partial, filepath.Join(folder, name+".yaml"))
}

func (n localNode) RemoveStaticPod(name string) error {
	return removeStaticPod(n.cluster.StaticPodDir(), name)
}

func removeStaticPod(folder, name string) error {
	err := os.Remove(filepath.Join(folder, name+".yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (n localNode) Run(ctx context.Context, command ...string) (string, error) {
	return n.cluster.RunOnNode(ctx, command...)
}

func (n localNode) Fetch(ctx context.Context, url string) (string, error) {
	body, err := get(ctx, http.DefaultClient, url)
	return string(body), err
}

func (n localNode) NewLink() (Link, error) {
	link, err := n.cluster.NewLink()
	return localLink{link}, err
}

type localLink struct{ *embedded.Link }

func (l localLink) Cut() error {
	l.Link.Cut()
	return nil
}

func (l localLink) Mend() error {
	l.Link.Mend()
	return nil
}

type localKubelet struct{ cluster *embedded.Cluster }

func (k localKubelet) Start(ctx context.Context, change KubeletChange) error {
	var options []embedded.KubeletOption
	if change.Configure != nil {
		options = append(options, embedded.WithConfiguration(change.Configure))
	}
	if change.GuardConfig != "" {
		options = append(options, embedded.WithGuardConfig(change.GuardConfig))
	}
	if change.Binary != "" {
		options = append(options, embedded.WithBinary(change.Binary))
	}
	if change.NodeName != "" {
		options = append(options, embedded.WithNodeName(change.NodeName))
	}
	if change.Link != nil {
		options = append(options, embedded.WithLink(change.Link.(localLink).Link))
	}
	if change.APIServer != nil {
		options = append(options, embedded.WithAPIServer(change.APIServer.(localOtherAPIServer).OtherAPIServer))
	}
	if change.HostnameOverride != "" {
		options = append(options, embedded.WithFlags("--hostname-override="+change.HostnameOverride))
	}
	if change.Standalone {
		options = append(options, embedded.WithoutAPIServer())
	}
	err := k.cluster.Kubelet().Start(ctx, options...)
	var exit *embedded.ExitError
	if errors.As(err, &exit) {
		return &ExitError{Code: exit.Code, Output: exit.LogTail}
	}
	return err
}

func (k localKubelet) Stop(ctx context.Context) error { return k.cluster.Kubelet().Stop(ctx) }
func (k localKubelet) Kill(ctx context.Context) error { return k.cluster.Kubelet().Kill(ctx) }
func (k localKubelet) LogPath() string                { return k.cluster.Kubelet().LogPath() }

func (k localKubelet) Get(ctx context.Context, path string) ([]byte, error) {
	return getFromKubelet(ctx, k.cluster.RESTConfig(), k.cluster.NodeIP(), path)
}

// getFromKubelet reads a path of the authenticated port of the kubelet at an address.
func getFromKubelet(ctx context.Context, config *rest.Config, address, path string) ([]byte, error) {
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	return get(ctx, httpClient, "https://"+net.JoinHostPort(address, kubeletPort)+path)
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %.500s", url, answer.Status, body)
	}
	return body, nil
}

type localRuntime struct{ cluster *embedded.Cluster }

func (r localRuntime) Containers(ctx context.Context) ([]Container, error) {
	running, err := r.cluster.Containers(ctx)
	return localContainers(running), err
}

func localContainers(running []embedded.Container) []Container {
	containers := make([]Container, 0, len(running))
	for _, c := range running {
		container := Container{
			PodUID:       c.PodUID,
			PodNamespace: c.PodNamespace,
			PodName:      c.PodName,
			Name:         c.Name,
			ID:           c.ID,
			Process:      Process{PID: c.PID, StartTime: c.StartTime},
			StartedAt:    c.StartedAt,
		}
		if c.SandboxPID != 0 {
			// A sandbox that ended since the listing has no identity any more.
			if sandbox, err := FindProcess(c.SandboxPID); err == nil {
				container.Sandbox = sandbox
			}
		}
		containers = append(containers, container)
	}
	return containers
}

func (r localRuntime) Restart(ctx context.Context) error { return r.cluster.Containerd().Restart(ctx) }
func (r localRuntime) Stop(ctx context.Context) error    { return r.cluster.Containerd().Stop(ctx) }
func (r localRuntime) Start(ctx context.Context) error   { return r.cluster.Containerd().Start(ctx) }

func (r localRuntime) Dir() string { return r.cluster.HostPath("/var/lib/containerd") }

func (r localRuntime) Tag(ctx context.Context, image, name string) error {
	_, err := r.ctr(ctx, "images", "tag", "--force", image, name)
	return err
}

func (r localRuntime) Untag(ctx context.Context, name string) error {
	_, err := r.ctr(ctx, "images", "remove", name)
	return err
}

func (r localRuntime) Digest(ctx context.Context, image string) (string, error) {
	table, err := r.ctr(ctx, "images", "list", "name=="+image)
	if err != nil {
		return "", err
	}
	return parseDigest(table, image)
}

// savedImage is where an image is while the runtime does not have it: a path of the node.
const savedImage = "/var/lib/containerd/e2e-image.tar"

func (r localRuntime) RemoveImage(ctx context.Context, image string) (func(context.Context) error, error) {
	digest, err := r.Digest(ctx, image)
	if err != nil {
		return nil, err
	}
	table, err := r.ctr(ctx, "images", "list")
	if err != nil {
		return nil, err
	}
	if _, err := r.ctr(ctx, "images", "export", savedImage, image); err != nil {
		return nil, err
	}
	restore := func(ctx context.Context) error {
		_, err := r.ctr(ctx, "images", "import", savedImage)
		return err
	}
	_, err = r.ctr(ctx, append([]string{"images", "remove", "--sync"}, parseNames(table, digest)...)...)
	return restore, err
}

func (r localRuntime) ctr(ctx context.Context, args ...string) (string, error) {
	return r.cluster.RunOnNode(ctx, append([]string{filepath.Join(r.cluster.NodeDir(), "ctr"), "--namespace=k8s.io"}, args...)...)
}

func (r localRuntime) StartOther(ctx context.Context) (OtherRuntime, error) {
	other := r.cluster.OtherRuntime()
	return localOtherRuntime{other}, other.Start(ctx)
}

type localOtherRuntime struct{ *embedded.OtherRuntime }

func (r localOtherRuntime) Containers(ctx context.Context) ([]Container, error) {
	running, err := r.OtherRuntime.Containers(ctx)
	return localContainers(running), err
}

type localStorage struct{ etcd *embedded.Etcd }

func (s localStorage) Get(ctx context.Context, key string) ([]byte, error) {
	return s.etcd.Get(ctx, key)
}

func (s localStorage) Put(ctx context.Context, key string, value []byte) error {
	return s.etcd.PutRaw(ctx, key, value)
}

func (s localStorage) Delete(ctx context.Context, key string) error {
	return s.etcd.DeleteKey(ctx, key)
}

func (s localStorage) Snapshot(ctx context.Context, file string) error {
	return s.etcd.Snapshot(ctx, file)
}

func (s localStorage) Wipe(ctx context.Context) error { return s.etcd.Wipe(ctx) }

func (s localStorage) Restore(ctx context.Context, file string) error {
	return s.etcd.Restore(ctx, file)
}

type localControlPlane struct{ cluster *embedded.Cluster }

func (c localControlPlane) StopAPIServer(ctx context.Context) error {
	return c.cluster.APIServer().Stop(ctx)
}

func (c localControlPlane) StartAPIServer(ctx context.Context) error {
	return c.cluster.APIServer().Start(ctx)
}

func (c localControlPlane) StartOther(ctx context.Context) (OtherAPIServer, error) {
	other, err := c.cluster.StartOtherAPIServer(ctx)
	return localOtherAPIServer{other}, err
}

type localOtherAPIServer struct{ *embedded.OtherAPIServer }

func (s localOtherAPIServer) Cut() error {
	s.OtherAPIServer.Cut()
	return nil
}

func (s localOtherAPIServer) Mend() error {
	s.OtherAPIServer.Mend()
	return nil
}
