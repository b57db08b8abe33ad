package kind

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/kind/pkg/log"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// clusterReady is how long nodes and cluster DNS may take to be ready after kubeadm has
// joined the last node. It takes about 20 seconds with two cores.
const clusterReady = 4 * time.Minute

// Cluster is a kind cluster that is up. Its methods may be called concurrently, except
// Down.
type Cluster struct {
	state      state
	dir        string
	nodes      []*Node
	restConfig *rest.Config
	client     kubernetes.Interface
}

// state is what a folder of a cluster records about it, in cluster.json.
type state struct {
	Name    string      `json:"name"`
	Engine  engine      `json:"engine"`
	Version string      `json:"version"`
	Images  nodeImages  `json:"images"`
	Pools   []Pool      `json:"pools"`
	Nodes   []nodeState `json:"nodes"`
}

type nodeState struct {
	Name    string `json:"name"`
	Pool    string `json:"pool,omitempty"`
	Guarded bool   `json:"guarded,omitempty"`
}

// Up brings a cluster up: it finds or starts Docker Engine, makes the images of the
// nodes unless they are there, and has kind make the cluster. A cluster of the same
// name with the same pools that is up is used as it is. On an error, no cluster is
// left, and the logs of its nodes are in _output/kind/logs.
func Up(ctx context.Context, config Config) (*Cluster, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	// Without its file, a cluster of that name is not ours.
	_, err = read(config.Output, config.Name)
	unknown := errors.Is(err, fs.ErrNotExist)
	existing, err := Attach(ctx, config.Output, config.Name)
	switch {
	case err == nil && !slices.Equal(existing.state.Pools, config.Pools):
		return nil, fmt.Errorf("cluster %s is up with the pools %v: take it down first, or choose another name", config.Name, existing.state.Pools)
	case err == nil:
		fmt.Fprintf(config.Log, "Cluster %s is up\n", config.Name)
		if existing.outdated(ctx, config) {
			fmt.Fprintf(config.Log, "Its node images are of other programs than those in %s now: take it down to have these\n", config.Output)
		}
		return existing, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case !unknown:
		fmt.Fprintf(config.Log, "Creating the cluster again: %v\n", err)
	}
	p, err := findPrograms(ctx, config.Output, config.KubeVersion)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(config.Output, "kind"), 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, config.Output)
	if err != nil {
		return nil, err
	}
	e, images, err := prepare(ctx, config, p)
	unlock()
	if err != nil {
		return nil, err
	}
	if unknown {
		taken, err := e.hasCluster(ctx, config.Name)
		if err != nil {
			return nil, err
		}
		if taken {
			return nil, fmt.Errorf("the engine has a kind cluster %s that was not made from %s: choose another name, or remove it with kind delete cluster --name %s", config.Name, config.Output, config.Name)
		}
	}
	c := &Cluster{
		dir: filepath.Join(config.Output, "kind", config.Name),
		state: state{
			Name: config.Name, Engine: e, Version: p.version, Images: images, Pools: config.Pools,
			Nodes: nodeNames(config.Name, config.Pools),
		},
	}
	if err := c.create(ctx, config.Log); err != nil {
		logs := filepath.Join(config.Output, "kind", "logs", config.Name)
		always, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		if collected := c.collectNodeLogs(always, logs); collected == nil {
			err = fmt.Errorf("%w; the logs of the nodes are in %s", err, logs)
		}
		return nil, errors.Join(fmt.Errorf("cluster %s: %w", config.Name, err), c.Down(always))
	}
	return c, nil
}

// outdated reports whether the programs that are built now make other images than those of
// the cluster. Programs that are not there make none.
func (c *Cluster) outdated(ctx context.Context, config Config) bool {
	p, err := findPrograms(ctx, config.Output, config.KubeVersion)
	if err != nil {
		return false
	}
	root, _, err := findRoot(ctx, config.Output)
	if err != nil {
		return false
	}
	plan, err := planImages(ctx, p, root)
	return err == nil && plan.images != c.state.Images
}

// prepare provides the engine and the images.
func prepare(ctx context.Context, config Config, p programs) (engine, nodeImages, error) {
	if err := installPackages(ctx, config.Log, map[string]string{"docker": "docker.io"}); err != nil {
		return engine{}, nodeImages{}, err
	}
	e, err := findEngine(ctx, config.Output, config.Log)
	if err != nil {
		return engine{}, nodeImages{}, err
	}
	images, err := buildImages(ctx, e, p, config.Log)
	return e, images, err
}

// lock keeps other processes from making the same things in an output folder.
func lock(ctx context.Context, output string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(output, "kind", "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, 15*time.Minute, 500*time.Millisecond, func(context.Context) error {
		return unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("waiting for another process that makes node images (%s): %w", file.Name(), err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}

// nodeNames are the nodes as kind will name them.
func nodeNames(name string, pools []Pool) []nodeState {
	nodes := []nodeState{{Name: name + "-control-plane"}}
	workers := 0
	for _, pool := range pools {
		for range pool.Nodes {
			workers++
			node := nodeState{Name: name + "-worker", Pool: pool.Name, Guarded: pool.Guarded}
			if workers > 1 {
				node.Name += fmt.Sprint(workers)
			}
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// kindConfig is the cluster in kind's terms.
func kindConfig(s state) *v1alpha4.Cluster {
	config := &v1alpha4.Cluster{
		Name: s.Name,
		// Kubelets refuse cgroup v1 by default.
		KubeadmConfigPatches: []string{"kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nfailCgroupV1: false\n"},
		ContainerdConfigPatches: []string{
			// Containers start where the machine denies CAP_SYS_RESOURCE.
			"[plugins.\"io.containerd.grpc.v1.cri\"]\n  restrict_oom_score_adj = true\n",
			// containerd 2.3 collects the CPU time of every sandbox once a second, which nobody
			// reads here. The key belongs into this section: in the one above, of the older
			// format, it has another meaning.
			"[plugins.\"io.containerd.cri.v1.runtime\"]\n  stats_collect_period = \"1m\"\n  stats_retention_period = \"5m\"\n",
		},
	}
	for _, node := range s.Nodes {
		n := v1alpha4.Node{Role: v1alpha4.WorkerRole, Image: s.Images.Stock}
		switch {
		case node.Pool == "":
			n.Role = v1alpha4.ControlPlaneRole
		default:
			n.Labels = map[string]string{PoolLabel: node.Pool}
		}
		if node.Guarded {
			n.Image = s.Images.Guarded
		}
		config.Nodes = append(config.Nodes, n)
	}
	return config
}

// create makes the cluster and waits until it is ready.
func (c *Cluster) create(ctx context.Context, log io.Writer) error {
	// What an interrupted run may have left.
	if err := c.remove(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	if err := raiseInotify(log); err != nil {
		return err
	}
	content, err := json.MarshalIndent(c.state, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.stateFile(), append(content, '\n'), 0o644); err != nil {
		return err
	}
	started := time.Now()
	fmt.Fprintf(log, "Making cluster %s with the pools %v and a control plane node\n", c.state.Name, c.state.Pools)
	err = c.provider(log).Create(c.state.Name,
		cluster.CreateWithV1Alpha4Config(kindConfig(c.state)),
		cluster.CreateWithKubeconfigPath(c.Kubeconfig()),
		cluster.CreateWithRetain(true),
	)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if err := c.attach(ctx); err != nil {
		return err
	}
	if err := poll(ctx, clusterReady, 500*time.Millisecond, c.ready); err != nil {
		return err
	}
	fmt.Fprintf(log, "Cluster %s is up after %s\n", c.state.Name, time.Since(started).Round(time.Second))
	return nil
}

// provider is kind's entry. kind runs the docker command with this process'
// environment.
func (c *Cluster) provider(log io.Writer) *cluster.Provider {
	os.Setenv("DOCKER_HOST", c.state.Engine.host())
	return cluster.NewProvider(cluster.ProviderWithDocker(), cluster.ProviderWithLogger(logger{log}))
}

// ready is an error that says what is not.
func (c *Cluster) ready(ctx context.Context) error {
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var waiting []string
	for _, node := range c.nodes {
		i := slices.IndexFunc(nodes.Items, func(n corev1.Node) bool { return n.Name == node.name })
		if i < 0 {
			waiting = append(waiting, "node "+node.name+" is not registered")
			continue
		}
		if found := nodes.Items[i]; !testnode.NodeReady(&found) {
			waiting = append(waiting, fmt.Sprintf("node %s is not ready: %v", node.name, found.Status.Conditions))
		}
	}
	// Everything else that a cluster starts with runs on the nodes.
	for _, app := range []string{"kube-dns", "kube-proxy", "podnet"} {
		pods, err := c.client.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: "k8s-app=" + app})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			waiting = append(waiting, "no pod of "+app)
		}
		for _, pod := range pods.Items {
			if !testnode.PodReady(&pod) {
				waiting = append(waiting, fmt.Sprintf("pod %s on %s is %s and not ready", pod.Name, pod.Spec.NodeName, pod.Status.Phase))
			}
		}
	}
	if _, err := c.client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{}); err != nil {
		waiting = append(waiting, err.Error())
	}
	if len(waiting) > 0 {
		return errors.New(strings.Join(waiting, "; "))
	}
	return nil
}

// Attach returns a cluster that Up brought up, in this or another process.
func Attach(ctx context.Context, output, name string) (*Cluster, error) {
	c, err := read(output, name)
	if err != nil {
		return nil, err
	}
	if err := c.attach(ctx); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	if _, err := c.client.Discovery().ServerVersion(); err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	return c, nil
}

// Remove takes a cluster down that may be in any state, or not there. An engine of our
// own that has no cluster any more, since kind's own command removed the last one, is
// stopped in either case.
func Remove(ctx context.Context, output, name string) error {
	c, err := read(output, name)
	if errors.Is(err, fs.ErrNotExist) {
		if output, err = filepath.Abs(output); err != nil {
			return err
		}
		gone := &Cluster{dir: filepath.Join(output, "kind", name), state: state{Engine: ownEngine(output)}}
		if gone.state.Engine.responds(ctx) != nil {
			return nil
		}
		return gone.leave(ctx)
	}
	if err != nil {
		return err
	}
	return c.Down(ctx)
}

// read reads what Up wrote about a cluster.
func read(output, name string) (*Cluster, error) {
	output, err := filepath.Abs(output)
	if err != nil {
		return nil, err
	}
	c := &Cluster{dir: filepath.Join(output, "kind", name)}
	content, err := os.ReadFile(c.stateFile())
	if err != nil {
		return nil, fmt.Errorf("cluster %s is not up: %w", name, err)
	}
	if err := json.Unmarshal(content, &c.state); err != nil {
		return nil, fmt.Errorf("%s: %w", c.stateFile(), err)
	}
	return c, nil
}

// attach finds the nodes and makes the clients.
func (c *Cluster) attach(ctx context.Context) error {
	c.nodes = nil
	for _, node := range c.state.Nodes {
		output, err := c.state.Engine.docker(ctx, nil, "inspect", "--format={{.State.Running}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", node.Name)
		if err != nil {
			return err
		}
		running, address, _ := strings.Cut(strings.TrimSpace(output), " ")
		if running != "true" {
			return fmt.Errorf("node %s does not run", node.Name)
		}
		c.nodes = append(c.nodes, &Node{name: node.Name, pool: node.Pool, guarded: node.Guarded, address: address, engine: c.state.Engine})
	}
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return err
	}
	// Tests make many requests, and wait for each.
	config.QPS, config.Burst = 200, 400
	c.restConfig = config
	c.client, err = kubernetes.NewForConfig(config)
	return err
}

// Down removes the cluster and its folder. When it was the engine's last one, an engine
// of our own is stopped, and the machine's limits are what they were.
func (c *Cluster) Down(ctx context.Context) error {
	e := c.state.Engine
	if e.Own && e.responds(ctx) != nil {
		// Without the engine there are no nodes. Its next start would bring them up.
		if err := e.start(ctx, c.outputDir(), io.Discard); err != nil {
			return fmt.Errorf("removing the nodes of %s: %w", c.state.Name, err)
		}
	}
	if err := c.remove(); err != nil {
		return err
	}
	return c.leave(ctx)
}

// leave stops an engine of our own and restores the machine's limits, unless another
// cluster needs them.
func (c *Cluster) leave(ctx context.Context) error {
	e := c.state.Engine
	if used, err := e.hasCluster(ctx, ""); err != nil || used {
		return err
	}
	if err := e.stop(ctx); err != nil {
		return err
	}
	for _, other := range append(ownEngines(runDir), engine{}) {
		// One that does not respond has none.
		if used, err := other.hasCluster(ctx, ""); err == nil && used {
			return nil
		}
	}
	return restoreInotify()
}

// remove removes the nodes, whatever state they are in, and the cluster's folder.
func (c *Cluster) remove() error {
	for _, node := range c.state.Nodes {
		if id, err := c.state.Engine.docker(context.Background(), nil, "inspect", "--format={{.Id}}", node.Name); err == nil {
			thaw(freezerRoot, id)
		}
	}
	if err := c.provider(io.Discard).Delete(c.state.Name, c.Kubeconfig()); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

// freezerRoot is the freezer of cgroup v1 on this machine.
const freezerRoot = "/sys/fs/cgroup/freezer"

// thaw lets the processes of a container end: those in a frozen cgroup of v1 cannot even
// be killed. runc freezes a container while it changes its devices, and leaves it frozen
// when the runtime kills it at that moment, after a timeout. The engine may be on another
// machine; then there is nothing to thaw here.
func thaw(root, id string) {
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Name() != "freezer.state" || id == "" || !strings.Contains(path, id) {
			return nil
		}
		if state, err := os.ReadFile(path); err == nil && string(bytes.TrimSpace(state)) != "THAWED" {
			_ = os.WriteFile(path, []byte("THAWED"), 0o644)
		}
		return nil
	})
}

// outputDir is the folder that the cluster was made from.
func (c *Cluster) outputDir() string { return filepath.Dir(filepath.Dir(c.dir)) }

func (c *Cluster) stateFile() string { return filepath.Join(c.dir, "cluster.json") }

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.state.Name }

// Version is the version of Kubernetes, such as v1.36.3.
func (c *Cluster) Version() string { return c.state.Version }

// Kubeconfig is the path of a kubeconfig with all rights.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// DockerHost is what DOCKER_HOST must be for the docker command to reach the nodes; ""
// is the command's own choice.
func (c *Cluster) DockerHost() string { return c.state.Engine.Host }

// RESTConfig returns a copy of the configuration of the cluster's clients.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.restConfig) }

// Client has all rights.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Nodes are all nodes, the control plane first, then pool by pool.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// Node returns the node of that name, nil if there is none.
func (c *Cluster) Node(name string) *Node {
	for _, node := range c.nodes {
		if node.name == name {
			return node
		}
	}
	return nil
}

// Pool returns the nodes of a pool.
func (c *Cluster) Pool(name string) []*Node {
	var nodes []*Node
	for _, node := range c.nodes {
		if node.pool == name && name != "" {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// ControlPlane is the control plane node.
func (c *Cluster) ControlPlane() *Node { return c.nodes[0] }

// LoadImage makes the images in an archive (from `docker save`, or OCI) known to the
// runtimes of the nodes; without nodes, of all.
func (c *Cluster) LoadImage(ctx context.Context, archive string, nodes ...*Node) error {
	if len(nodes) == 0 {
		nodes = c.nodes
	}
	return onEach(ctx, nodes, func(ctx context.Context, node *Node) error {
		return importArchive(ctx, c.state.Engine, node.name, archive)
	})
}

// onEach calls f for nodes at the same time. The error names the node.
func onEach(ctx context.Context, nodes []*Node, f func(context.Context, *Node) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range nodes {
		group.Go(func() error {
			if err := f(ctx, node); err != nil {
				return fmt.Errorf("node %s: %w", node.name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// CollectLogs writes the logs of the nodes and the objects of the cluster into a
// folder. It collects what it can; the error says what it could not.
func (c *Cluster) CollectLogs(ctx context.Context, dir string) error {
	return errors.Join(c.collectNodeLogs(ctx, dir), c.collectObjects(ctx, dir))
}

// collectNodeLogs writes a folder for each node: what its units logged, what its
// containers logged, and what runs.
func (c *Cluster) collectNodeLogs(ctx context.Context, dir string) error {
	errs := make([]error, len(c.state.Nodes))
	group := errgroup.Group{}
	group.SetLimit(3)
	for i, node := range c.state.Nodes {
		group.Go(func() error {
			errs[i] = c.collectNode(ctx, node.Name, filepath.Join(dir, node.Name))
			return nil
		})
	}
	_ = group.Wait()
	return errors.Join(errs...)
}

func (c *Cluster) collectNode(ctx context.Context, node, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for file, args := range map[string][]string{
		"serial.log":     {"logs", node},
		"inspect.json":   {"inspect", node},
		"kubelet.log":    {"exec", node, "journalctl", "--no-pager", "--output=short-precise", "--unit=kubelet"},
		"containerd.log": {"exec", node, "journalctl", "--no-pager", "--output=short-precise", "--unit=containerd"},
		"journal.log":    {"exec", node, "journalctl", "--no-pager", "--output=short-precise", "--lines=2000"},
		"processes.txt":  {"exec", node, "ps", "-eo", "pid,ppid,lstart,args"},
		// Standard output of every container, with what a link leads to.
		"pods.tar":     {"exec", node, "tar", "--create", "--ignore-failed-read", "--directory=/var/log", "pods"},
		"kubelet.yaml": {"exec", node, "cat", "/var/lib/kubelet/config.yaml"},
	} {
		output, err := c.state.Engine.docker(ctx, nil, args...)
		if err != nil {
			errs = append(errs, err)
		}
		if len(output) > 0 {
			errs = append(errs, os.WriteFile(filepath.Join(dir, file), []byte(output), 0o644))
		}
	}
	return errors.Join(errs...)
}

// collectObjects writes the objects that show what happened.
func (c *Cluster) collectObjects(ctx context.Context, dir string) error {
	core := c.client.CoreV1()
	var errs []error
	for name, list := range map[string]func() (any, error){
		"nodes":  func() (any, error) { return core.Nodes().List(ctx, metav1.ListOptions{}) },
		"pods":   func() (any, error) { return core.Pods("").List(ctx, metav1.ListOptions{}) },
		"events": func() (any, error) { return core.Events("").List(ctx, metav1.ListOptions{}) },
	} {
		objects, err := list()
		if err == nil {
			var content []byte
			if content, err = yaml.Marshal(objects); err == nil {
				err = os.WriteFile(filepath.Join(dir, name+".yaml"), content, 0o644)
			}
		}
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// logger passes kind's messages on, without its details.
type logger struct{ to io.Writer }

var _ log.Logger = logger{}

func (l logger) line(message string) {
	if message = strings.TrimSpace(message); message != "" {
		fmt.Fprintln(l.to, message)
	}
}

func (l logger) Warn(message string)               { l.line(message) }
func (l logger) Warnf(format string, args ...any)  { l.line(fmt.Sprintf(format, args...)) }
func (l logger) Error(message string)              { l.line(message) }
func (l logger) Errorf(format string, args ...any) { l.line(fmt.Sprintf(format, args...)) }

// V implements log.Logger.
func (l logger) V(level log.Level) log.InfoLogger {
	if level > 0 {
		return log.NoopInfoLogger{}
	}
	return infoLogger{l}
}

type infoLogger struct{ logger }

func (l infoLogger) Info(message string)              { l.line(message) }
func (l infoLogger) Infof(format string, args ...any) { l.line(fmt.Sprintf(format, args...)) }

// Enabled implements log.InfoLogger.
func (l infoLogger) Enabled() bool { return true }
