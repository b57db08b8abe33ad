package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kubelet-guard.io/node-e2e/cluster/pki"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/images"
)

// Names of images that every cluster has. They name no registry, so pods must
// use them with imagePullPolicy Never or IfNotPresent.
const (
	// PauseImage is the sandbox image.
	PauseImage = images.Pause
	// WorkloadImage runs node-e2e/images/workload; `workload --help` lists what
	// it can do.
	WorkloadImage = images.Workload
)

// kubeconfigFile is the administrator's kubeconfig in the cluster's folder.
const kubeconfigFile = "kubeconfig"

// Config says what a cluster is made of. Paths may be relative to the working
// directory; Start makes them absolute.
type Config struct {
	// Name identifies the cluster and is part of its node's name. Required; a
	// DNS label of at most 40 characters.
	Name string
	// Dir is the cluster's folder, by default _output/clusters/<Name>.
	Dir string
	// KubeDir holds kube-apiserver, kube-controller-manager and kube-scheduler.
	KubeDir string
	// NodeDir holds etcd, etcdutl, containerd, containerd-shim-runc-v2, ctr, runc,
	// the CNI plugins and the programs of the images: the parts that
	// build/third_party/node/binaries.yaml lists.
	NodeDir string
	// Kubelet is the path of the kubelet binary.
	Kubelet string
	// GuardConfig is passed as --guard-config. Empty leaves the flag out, which
	// is what the stock kubelet needs.
	GuardConfig string
	// APIServerFlags are appended to the API server's command line; a repeated
	// flag's last value counts. They hold for every start.
	APIServerFlags []string
	// Images are known to the runtime in addition to PauseImage and WorkloadImage.
	Images []images.Image
	// Log receives progress lines. Nil discards them.
	Log io.Writer
}

// complete fills in defaults, makes paths absolute, and is an error that names
// what is missing.
func (config Config) complete() (Config, error) {
	if problems := validation.IsDNS1123Label(config.Name); len(problems) > 0 {
		return config, fmt.Errorf("field Config.Name, %q: %s", config.Name, strings.Join(problems, "; "))
	}
	if len(config.Name) > 40 {
		return config, fmt.Errorf("field Config.Name, %q: must have at most 40 characters", config.Name)
	}
	if config.Dir == "" {
		config.Dir = filepath.Join("_output", "clusters", config.Name)
	}
	if config.Log == nil {
		config.Log = io.Discard
	}
	for _, path := range []*string{&config.Dir, &config.KubeDir, &config.NodeDir, &config.Kubelet, &config.GuardConfig} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return config, err
		}
		*path = absolute
	}
	required := map[string][]string{
		"KubeDir": {
			filepath.Join(config.KubeDir, programAPIServer),
			filepath.Join(config.KubeDir, programControllerManager),
			filepath.Join(config.KubeDir, programScheduler),
		},
		"Kubelet": {config.Kubelet},
	}
	for _, name := range []string{programEtcd, programContainerd, "etcdutl", "containerd-shim-runc-v2", "ctr", "runc", "runc-unfiltered", "bridge", "host-local", "loopback", "pause", "workload"} {
		required["NodeDir"] = append(required["NodeDir"], filepath.Join(config.NodeDir, name))
	}
	for i, extra := range config.Images {
		if extra.Name == "" {
			return config, fmt.Errorf("field Config.Images[%d].Name: must not be empty", i)
		}
		for _, file := range extra.Files {
			field := fmt.Sprintf("Images[%d].Files", i)
			required[field] = append(required[field], file.Source)
		}
	}
	var missing []error
	for field, paths := range required {
		for _, path := range paths {
			info, err := os.Stat(path)
			if err != nil {
				missing = append(missing, fmt.Errorf("field Config.%s: %w", field, err))
			} else if info.IsDir() || info.Mode()&0o111 == 0 {
				missing = append(missing, fmt.Errorf("field Config.%s: %s is not a program", field, path))
			}
		}
	}
	return config, errors.Join(missing...)
}

// Cluster is a running cluster. Its methods may be called concurrently, but
// stopping and starting the same part from two goroutines at a time is the
// caller's to avoid.
type Cluster struct {
	config     Config
	pki        pki.Dir
	started    time.Time
	lock       *os.File
	mounts     *mountNamespace
	health     *http.Client
	restConfig *rest.Config

	etcd              *Etcd
	apiServer         *Component
	controllerManager *Component
	scheduler         *Component
	containerd        *Runtime
	otherRuntime      *OtherRuntime
	kubelet           *Kubelet

	// mu guards state, which is on disk at all times.
	mu    sync.Mutex
	state *state
}

// Start starts a cluster and returns when its node is Ready and pods can be
// created in the default namespace. It first cleans up what an earlier, crashed
// cluster of the same folder left; a cluster that is still in use by another
// live program, or that was left running on purpose, is an error. When Start
// fails or ctx ends, nothing is left behind but the logs.
//
// The node outlives the calling program: that must call Stop, or Detach when
// the cluster shall stay.
func Start(ctx context.Context, config Config) (*Cluster, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a node makes network links, cgroups and mounts: run this as root")
	}
	c := &Cluster{config: config, started: time.Now()}
	if err := os.MkdirAll(config.Dir, 0o755); err != nil {
		return nil, err
	}
	if c.lock, err = lockDir(config.Dir); err != nil {
		return nil, err
	}
	if left, err := readState(config.Dir); err == nil && left.Detached {
		return nil, errors.Join(fmt.Errorf("a detached cluster is in %s; remove it first (guard-e2e down %s), or choose another name", config.Dir, config.Name), c.lock.Close())
	}
	if err := c.start(ctx); err != nil {
		c.logf("Start failed, cleaning up; the logs stay in %s", c.LogDir())
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return nil, errors.Join(err, Remove(cleanup, config.Dir), c.lock.Close())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.claim(ctx); err != nil {
		return err
	}
	ip := net.ParseIP(c.NodeIP())
	if err := createPKI(c.pki, ip); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	c.logf("Claimed %s with node address %s, made certificates", bridgeName(c.state.Index), c.NodeIP())
	apiReady, runtimeReady := make(chan struct{}), make(chan struct{})
	after := func(ready <-chan struct{}, f func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-ready:
				return f(ctx)
			case <-ctx.Done():
				return nil // the cause is another part's error
			}
		}
	}
	err := inParallel(ctx,
		func(ctx context.Context) error {
			if err := c.timed(ctx, c.etcd.Component); err != nil {
				return err
			}
			if err := c.timed(ctx, c.apiServer); err != nil {
				return err
			}
			close(apiReady)
			return nil
		},
		func(ctx context.Context) error {
			if err := c.startNode(); err != nil {
				return err
			}
			if err := c.timed(ctx, c.containerd.Component); err != nil {
				return err
			}
			close(runtimeReady)
			return nil
		},
		after(apiReady, func(ctx context.Context) error { return c.timed(ctx, c.controllerManager) }),
		after(apiReady, func(ctx context.Context) error { return c.timed(ctx, c.scheduler) }),
		after(runtimeReady, func(ctx context.Context) error {
			if err := c.importImages(ctx, containerdSocket); err != nil {
				return err
			}
			c.logf("Images imported")
			return nil
		}),
		after(apiReady, after(runtimeReady, func(ctx context.Context) error {
			if err := c.kubelet.Start(ctx, testnode.KubeletChange{}); err != nil {
				return err
			}
			c.logf("kubelet healthy")
			return nil
		})),
	)
	if err != nil {
		return err
	}
	if err := c.awaitUsable(ctx); err != nil {
		return err
	}
	c.logf("Node %s is Ready", c.NodeName())
	return c.update(func(s *state) { s.Ready = true })
}

// claim removes what an earlier run left and takes what belongs to this cluster
// alone.
func (c *Cluster) claim(ctx context.Context) error {
	dir := c.config.Dir
	if err := Remove(ctx, dir); err != nil {
		return fmt.Errorf("cleaning up the cluster that an earlier run left: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, logsFolder)); err != nil {
		return err
	}
	for _, folder := range []string{logsFolder, "config", "manifests"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return err
		}
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	index, err := claimIndex(dir)
	if err != nil {
		return err
	}
	c.state = &state{
		Name: c.config.Name, Index: index, Created: c.started.UTC(), BootID: boot,
		Kubelet: c.config.Kubelet, Processes: map[string]testnode.Process{},
	}
	if err := c.update(func(*state) {}); err != nil {
		return err
	}
	c.define()
	return createCgroup(cgroupName(index))
}

// define describes the parts.
func (c *Cluster) define() {
	c.pki = pki.Dir(filepath.Join(c.config.Dir, "pki"))
	part := func(name string, prepare func() (launch, error), healthy func(context.Context) error) *Component {
		return &Component{cluster: c, name: name, prepare: prepare, healthy: healthy, patience: termPatience}
	}
	c.etcd = &Etcd{part(programEtcd, c.prepareEtcd, c.etcdHealthy), testnode.Etcd{
		Endpoint: c.url("https", etcdClientPort),
		TLS:      rest.TLSClientConfig{CAFile: c.pki.Cert("etcd/ca"), CertFile: c.pki.Cert("apiserver-etcd-client"), KeyFile: c.pki.Key("apiserver-etcd-client")},
	}}
	c.apiServer = part(programAPIServer, func() (launch, error) {
		return c.prepareAPIServer(apiServerPort, c.url("https", etcdClientPort))
	}, c.apiServerHealthy)
	c.apiServer.patience = apiServerTermPatience
	c.apiServer.afterStart = c.restartControllers
	c.controllerManager = part(programControllerManager, c.prepareControllerManager, c.controllerManagerHealthy)
	c.scheduler = part(programScheduler, c.prepareScheduler, c.schedulerHealthy)
	c.containerd = c.newRuntime(part(programContainerd, func() (launch, error) { return c.prepareContainerd(nodeContainerd) },
		func(ctx context.Context) error { return c.containerdHealthy(ctx, containerdSocket) }))
	c.containerd.inNode = true
	c.otherRuntime = c.newOtherRuntime()
	c.kubelet = &Kubelet{part(programKubelet, nil, c.kubeletHealthy)}
	c.kubelet.inNode = true
}

// connect makes the administrator's clients.
func (c *Cluster) connect() error {
	if err := writeKubeconfig(c.Kubeconfig(), c.pki, c.url("https", apiServerPort), "kubernetes-admin", "admin"); err != nil {
		return err
	}
	var err error
	if c.restConfig, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig()); err != nil {
		return err
	}
	c.restConfig.QPS = -1
	c.health, err = newHealthClient(c.restConfig)
	return err
}

// holderName is the name, in the state file, of the process that holds the
// node's mount namespace.
const holderName = "node"

func (c *Cluster) startNode() error {
	var err error
	c.mounts, err = newMountNamespace(c.config.Dir, launch{
		path: filepath.Join(c.config.NodeDir, "pause"),
		log:  filepath.Join(c.LogDir(), holderName+".log"),
	})
	if err != nil {
		return err
	}
	return c.record(holderName, c.mounts.holder.Process)
}

// awaitUsable waits until a pod could be created and would run.
func (c *Cluster) awaitUsable(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.restConfig)
	if err != nil {
		return err
	}
	err = await(ctx, "node "+c.NodeName()+" to be Ready", func(ctx context.Context) error {
		node, err := client.CoreV1().Nodes().Get(ctx, c.NodeName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("it has taints: %v", node.Spec.Taints)
		}
		if testnode.NodeReady(node) {
			return nil
		}
		return fmt.Errorf("its conditions are %v", node.Status.Conditions)
	})
	if err != nil {
		return err
	}
	return c.awaitServiceAccount(ctx)
}

// awaitServiceAccount waits until pods may be created in the default namespace.
func (c *Cluster) awaitServiceAccount(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.restConfig)
	if err != nil {
		return err
	}
	return await(ctx, "the default service account", func(ctx context.Context) error {
		_, err := client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// Credentials are the files of a node that joins the cluster although the cluster did not
// start it.
type Credentials struct {
	// Kubeconfig has the node's client certificate inside.
	Kubeconfig string
	// Certificate and Key are for the kubelet's port.
	Certificate, Key string
	// Authority has signed all certificates.
	Authority string
}

// Join makes the credentials of a node with that name and address.
func (c *Cluster) Join(nodeName string, ip net.IP) (Credentials, error) {
	if err := createNodeCertificates(c.pki, nodeName, ip); err != nil {
		return Credentials{}, err
	}
	kubeconfig, err := c.nodeKubeconfig(nodeName, c.url("https", apiServerPort))
	return Credentials{
		Kubeconfig:  kubeconfig,
		Certificate: c.pki.Cert(nodeServingCertificate(nodeName)),
		Key:         c.pki.Key(nodeServingCertificate(nodeName)),
		Authority:   c.pki.Cert("ca"),
	}, err
}

// APIServerAddress is the host and port of the API server.
func (c *Cluster) APIServerAddress() string { return net.JoinHostPort(c.NodeIP(), apiServerPort) }

// ServiceAddress is the host and port at which pods look for the API server. Nothing
// listens there, since there is no service proxy.
func ServiceAddress() string { return net.JoinHostPort(firstServiceIP.String(), "443") }

// Bridge is the name of the cluster's network, which another machine may be connected to.
func (c *Cluster) Bridge() string { return bridgeName(c.state.Index) }

// MachineIP is an address in the cluster's network that no pod of its node has, for another
// machine.
func (c *Cluster) MachineIP() net.IP {
	address := nodeIP(c.state.Index).As4()
	address[3] = 254
	return net.IP(address[:])
}

// Stop ends every process of the cluster, containers included, and removes its
// mounts, cgroups, links and files. The logs stay in LogDir. Stop of a cluster
// that is already stopped does nothing. It completes although ctx has ended,
// because that is when it is needed most, and gives up after 30 s.
func (c *Cluster) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := Remove(ctx, c.config.Dir); err != nil {
		return err
	}
	return c.release()
}

// Detach leaves the cluster running when this program ends, until Remove.
func (c *Cluster) Detach() error {
	if err := c.update(func(s *state) { s.Detached = true }); err != nil {
		return err
	}
	return c.release()
}

// release gives up the lock.
func (c *Cluster) release() error {
	err := c.lock.Close()
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}

// Wait returns nil when another program has removed the cluster, and an error
// when ctx ends.
func (c *Cluster) Wait(ctx context.Context) error {
	for {
		if _, err := os.Stat(filepath.Join(c.config.Dir, stateFile)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
	}
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.config.Name }

// Kubeconfig returns the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.config.Dir, kubeconfigFile) }

// RESTConfig returns the administrator's client configuration, without client
// side rate limits. The caller owns the copy.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.restConfig) }

// NodeName returns the name under which the kubelet registers unless a start
// says otherwise (WithNodeName).
func (c *Cluster) NodeName() string { return c.config.Name + "-node" }

// NodeIP returns the node's address: the one of the bridge, 10.88.<index>.1.
func (c *Cluster) NodeIP() string { return nodeIP(c.state.Index).String() }

// LogDir returns the folder with one log file for each part. It outlives the
// cluster, until the next Start in the same folder.
func (c *Cluster) LogDir() string { return filepath.Join(c.config.Dir, logsFolder) }

// StaticPodDir returns the folder from which the kubelet reads static pods.
func (c *Cluster) StaticPodDir() string { return filepath.Join(c.config.Dir, "manifests") }

// HostPath returns where a path of the node, such as
// /var/lib/kubelet/guard/release, is found outside its mount namespace. Paths
// that are the same on both sides are returned unchanged. File systems that the
// node mounted, such as those of secrets, are not seen from outside.
func (c *Cluster) HostPath(nodePath string) string { return hostPath(c.config.Dir, nodePath) }

// Kubelet controls the kubelet.
func (c *Cluster) Kubelet() *Kubelet { return c.kubelet }

// Etcd controls the store and its content.
func (c *Cluster) Etcd() *Etcd { return c.etcd }

// APIServer controls kube-apiserver.
func (c *Cluster) APIServer() *Component { return c.apiServer }

// ControllerManager controls kube-controller-manager.
func (c *Cluster) ControllerManager() *Component { return c.controllerManager }

// Containerd controls the container runtime.
func (c *Cluster) Containerd() *Runtime { return c.containerd }

// NodeDir returns the folder with the programs of the node.
func (c *Cluster) NodeDir() string { return c.config.NodeDir }

// RunOnNode runs a program as root in the node's mount namespace and returns what
// it printed. What it mounts there ends with the cluster at the latest.
func (c *Cluster) RunOnNode(ctx context.Context, command ...string) (string, error) {
	var output []byte
	err := c.mounts.do(func() (err error) {
		run := exec.CommandContext(ctx, command[0], command[1:]...)
		run.Env = append(os.Environ(), markerEnv+"="+c.config.Dir)
		output, err = run.CombinedOutput()
		return err
	})
	if err != nil {
		return string(output), fmt.Errorf("running %q on the node: %w: %s", strings.Join(command, " "), err, lastLines(string(output), 10))
	}
	return string(output), nil
}

// timed starts a part and logs how long it took.
func (c *Cluster) timed(ctx context.Context, part *Component) error {
	start := time.Now()
	if err := part.Start(ctx); err != nil {
		return err
	}
	c.logf("%s healthy after %.1f s", part.name, time.Since(start).Seconds())
	return nil
}

// logf writes a line of the timeline.
func (c *Cluster) logf(format string, args ...any) {
	fmt.Fprintf(c.config.Log, "%s %5.1f s  %s\n", c.config.Name, time.Since(c.started).Seconds(), fmt.Sprintf(format, args...))
}

// update changes the state and saves it.
func (c *Cluster) update(change func(*state)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c.state)
	return c.state.write(c.config.Dir)
}

func (c *Cluster) record(name string, id testnode.Process) error {
	return c.update(func(s *state) { s.Processes[name] = id })
}

// forget takes a process that has ended out of the state: a cluster runs when all of its
// recorded processes do.
func (c *Cluster) forget(name string) error {
	return c.update(func(s *state) { delete(s.Processes, name) })
}

// inParallel calls the functions at the same time. The first error ends the
// context of the others, and is what is returned: the others' follow from it.
func inParallel(ctx context.Context, functions ...func(context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, f := range functions {
		group.Go(func() error { return f(ctx) })
	}
	return group.Wait()
}
