package embedded

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfigv1beta1 "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/framework/unixsocket"
)

const (
	kubeletPort       = 10250
	kubeletHealthPort = 10248
)

// deviceManagerSocket is a path of the node. The kubelet makes it anew at each
// start.
const deviceManagerSocket = "/var/lib/kubelet/device-plugins/kubelet.sock"

// Kubelet controls the node's kubelet. Containers keep running while it is
// stopped. The methods of Component that it does not redefine apply.
type Kubelet struct {
	*Component
}

// kubeletSpec is what one start of the kubelet is made of.
type kubeletSpec struct {
	binary      string
	nodeName    string
	guardConfig string
	server      string
	flags       []string
	configure   []func(*kubeletconfigv1beta1.KubeletConfiguration)
}

// KubeletOption changes how one start of the kubelet differs from Config.
type KubeletOption func(*kubeletSpec)

// WithBinary runs another kubelet binary.
func WithBinary(path string) KubeletOption {
	return func(s *kubeletSpec) { s.binary = path }
}

// WithFlags appends command line flags; a repeated flag's last value counts.
func WithFlags(flags ...string) KubeletOption {
	return func(s *kubeletSpec) { s.flags = append(s.flags, flags...) }
}

// WithGuardConfig passes another guard configuration; the empty path leaves the
// flag out.
func WithGuardConfig(path string) KubeletOption {
	return func(s *kubeletSpec) { s.guardConfig = path }
}

// WithConfiguration changes the kubelet configuration.
func WithConfiguration(change func(*kubeletconfigv1beta1.KubeletConfiguration)) KubeletOption {
	return func(s *kubeletSpec) { s.configure = append(s.configure, change) }
}

// WithNodeName registers under another node name, with certificates for it, as a
// node does that bootstraps again. The flag --hostname-override alone
// (WithFlags) would leave the kubelet with credentials that may not read the
// other node's pods.
func WithNodeName(name string) KubeletOption {
	return func(s *kubeletSpec) { s.nodeName = name }
}

// WithLink lets the kubelet reach the API server through the link only.
func WithLink(link *Link) KubeletOption {
	return func(s *kubeletSpec) { s.server = link.URL() }
}

// WithAPIServer lets the kubelet ask another API server than the cluster's own.
func WithAPIServer(other *OtherAPIServer) KubeletOption {
	return func(s *kubeletSpec) { s.server = other.cluster.url("https", otherAPIServerPort) }
}

// WithoutAPIServer runs the kubelet standalone, without a kubeconfig. Nobody can ask an
// API server who a client is then: every client with a certificate may do everything.
func WithoutAPIServer() KubeletOption {
	return func(s *kubeletSpec) {
		s.flags = append(s.flags, "--kubeconfig=")
		s.configure = append(s.configure, AuthorizeWithoutAPIServer)
	}
}

// AuthorizeWithoutAPIServer changes a configuration so that a standalone kubelet
// starts with it.
func AuthorizeWithoutAPIServer(c *kubeletconfigv1beta1.KubeletConfiguration) {
	c.Authentication.Webhook.Enabled = new(false)
	c.Authorization.Mode = kubeletconfigv1beta1.KubeletAuthorizationModeAlwaysAllow
}

// Start starts the kubelet as Config says, changed by the options, and returns
// when it is healthy and its resource managers have started. The options hold for this start only: a later start
// without options is as Config says again. A kubelet that exits before it is
// healthy, as one with an invalid configuration must, gives an *ExitError.
func (k *Kubelet) Start(ctx context.Context, options ...KubeletOption) error {
	c := k.cluster
	spec := c.kubeletSpec(options)
	return k.startWith(ctx, func() (launch, error) {
		return c.prepareKubelet(spec)
	})
}

// Restart is Stop (SIGTERM) and Start.
func (k *Kubelet) Restart(ctx context.Context, options ...KubeletOption) error {
	if err := k.Stop(ctx); err != nil {
		return err
	}
	return k.Start(ctx, options...)
}

// kubeletSpec is Config changed by the options.
func (c *Cluster) kubeletSpec(options []KubeletOption) kubeletSpec {
	spec := kubeletSpec{binary: c.config.Kubelet, nodeName: c.NodeName(), guardConfig: c.config.GuardConfig, server: c.url("https", apiServerPort)}
	for _, option := range options {
		option(&spec)
	}
	return spec
}

func (c *Cluster) prepareKubelet(spec kubeletSpec) (launch, error) {
	if _, err := os.Stat(c.pki.cert(nodeClientCertificate(spec.nodeName))); os.IsNotExist(err) {
		if err := createNodeCertificates(c.pki, spec.nodeName, net.ParseIP(c.NodeIP())); err != nil {
			return launch{}, err
		}
	}
	kubeconfig, err := c.nodeKubeconfig(spec.nodeName, spec.server)
	if err != nil {
		return launch{}, err
	}

	config := c.newKubeletConfig()
	config.TLSCertFile = c.pki.cert(nodeServingCertificate(spec.nodeName))
	config.TLSPrivateKeyFile = c.pki.key(nodeServingCertificate(spec.nodeName))
	for _, change := range spec.configure {
		change(config)
	}
	path := filepath.Join(c.config.Dir, "config", "kubelet.yaml")
	if err := writeKubeletConfig(path, config); err != nil {
		return launch{}, err
	}

	args := []string{
		"--config=" + path,
		"--kubeconfig=" + kubeconfig,
		"--hostname-override=" + spec.nodeName,
		"--node-ip=" + c.NodeIP(),
	}
	if spec.guardConfig != "" {
		args = append(args, "--guard-config="+spec.guardConfig)
	}
	return launch{path: spec.binary, args: append(args, spec.flags...)}, nil
}

// nodeKubeconfig writes the kubeconfig of a node that has certificates.
func (c *Cluster) nodeKubeconfig(nodeName, server string) (string, error) {
	path := filepath.Join(c.config.Dir, "config", "kubelet-"+nodeName+".kubeconfig")
	return path, writeKubeconfig(path, c.pki, server, "system:node:"+nodeName, nodeClientCertificate(nodeName))
}

// kubeletHealthy asks for more than /healthz, which answers before the resource
// managers have started. When one of them cannot, because a reservation is too
// large or a policy changed under its state file, the kubelet exits a moment
// later. The last of them is the device manager: when its socket answers, all
// have started. The port with the complete health check is of no use here,
// because authorization there needs the API server.
func (c *Cluster) kubeletHealthy(ctx context.Context) error {
	if err := c.getOK(ctx, c.url("http", fmt.Sprint(kubeletHealthPort))+"/healthz"); err != nil {
		return err
	}
	connection, err := unixsocket.Dial(ctx, c.HostPath(deviceManagerSocket))
	if err != nil {
		return fmt.Errorf("the device manager has not started: %w", err)
	}
	return connection.Close()
}

// newKubeletConfig is the configuration of a node that is as real as this
// machine allows. What is not set here has the kubelet's own default.
func (c *Cluster) newKubeletConfig() *kubeletconfigv1beta1.KubeletConfiguration {
	return &kubeletconfigv1beta1.KubeletConfiguration{
		TypeMeta:           metav1.TypeMeta{APIVersion: kubeletconfigv1beta1.SchemeGroupVersion.String(), Kind: "KubeletConfiguration"},
		Address:            c.NodeIP(),
		Port:               kubeletPort,
		HealthzBindAddress: c.NodeIP(),
		HealthzPort:        new(int32(kubeletHealthPort)),
		StaticPodPath:      c.StaticPodDir(),
		Authentication: kubeletconfigv1beta1.KubeletAuthentication{
			X509:      kubeletconfigv1beta1.KubeletX509Authentication{ClientCAFile: c.pki.cert("ca")},
			Webhook:   kubeletconfigv1beta1.KubeletWebhookAuthentication{Enabled: new(true)},
			Anonymous: kubeletconfigv1beta1.KubeletAnonymousAuthentication{Enabled: new(false)},
		},
		Authorization:            kubeletconfigv1beta1.KubeletAuthorization{Mode: kubeletconfigv1beta1.KubeletAuthorizationModeWebhook},
		ContainerRuntimeEndpoint: "unix://" + containerdSocket,
		CgroupDriver:             "cgroupfs",
		CgroupRoot:               "/" + cgroupName(c.state.Index),
		FailCgroupV1:             new(false),
		FailSwapOn:               new(false),
		// Machines without CAP_SYS_RESOURCE refuse the default of -999.
		OOMScoreAdj: new(int32(0)),
		// Nothing answers there; without an address, every pod gets a warning event.
		ClusterDNS:    []string{clusterDNS},
		ClusterDomain: "cluster.local",
		// The machine's resolver is none of the pods' business.
		ResolverConfig: new(""),
		// The thresholds are those of a node with its own disk, scaled down: here
		// the disk is the machine's, and how full it is must not decide a test.
		EvictionHard: map[string]string{
			"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
			"imagefs.available": "1%", "imagefs.inodesFree": "1%",
		},
		// Off: there is no registry to bring back a collected image.
		ImageGCHighThresholdPercent: new(int32(100)),
		ImageGCLowThresholdPercent:  new(int32(99)),
	}
}

func writeKubeletConfig(path string, config *kubeletconfigv1beta1.KubeletConfiguration) error {
	content, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
