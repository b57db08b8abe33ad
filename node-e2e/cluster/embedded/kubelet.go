package embedded

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfigv1beta1 "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework/unixsocket"
)

const (
	kubeletPort       = 10250
	kubeletHealthPort = 10248
)

// deviceManagerSocket is a path of the node. The kubelet makes it at each
// start.
const deviceManagerSocket = "/var/lib/kubelet/device-plugins/kubelet.sock"

// Kubelet controls the node's kubelet. Containers keep running while it is
// stopped. The methods of Component that it does not redefine apply.
type Kubelet struct {
	*Component
}

// Start implements testnode.Kubelet.
func (k *Kubelet) Start(ctx context.Context, change testnode.KubeletChange) error {
	return k.startWith(ctx, func() (launch, error) { return k.cluster.prepareKubelet(change) })
}

// Restart is Stop (SIGTERM) and Start.
func (k *Kubelet) Restart(ctx context.Context, change testnode.KubeletChange) error {
	if err := k.Stop(ctx); err != nil {
		return err
	}
	return k.Start(ctx, change)
}

// Get implements testnode.Kubelet.
func (k *Kubelet) Get(ctx context.Context, path string) ([]byte, error) {
	return testnode.GetFromKubelet(ctx, k.cluster.restConfig, k.cluster.NodeIP(), path)
}

func (c *Cluster) prepareKubelet(change testnode.KubeletChange) (launch, error) {
	nodeName := cmp.Or(change.NodeName, c.NodeName())
	if _, err := os.Stat(c.pki.Cert(nodeClientCertificate(nodeName))); os.IsNotExist(err) {
		if err := createNodeCertificates(c.pki, nodeName, net.ParseIP(c.NodeIP())); err != nil {
			return launch{}, err
		}
	}
	server := c.url("https", apiServerPort)
	if change.Link != nil {
		server = change.Link.(*Link).URL()
	}
	if change.APIServer != nil {
		server = c.url("https", otherAPIServerPort)
	}
	kubeconfig, err := c.nodeKubeconfig(nodeName, server)
	if err != nil {
		return launch{}, err
	}

	config := c.newKubeletConfig()
	config.TLSCertFile = c.pki.Cert(nodeServingCertificate(nodeName))
	config.TLSPrivateKeyFile = c.pki.Key(nodeServingCertificate(nodeName))
	if change.Configure != nil {
		change.Configure(config)
	}
	path := filepath.Join(c.config.Dir, "config", "kubelet.yaml")
	args := []string{
		"--config=" + path,
		"--kubeconfig=" + kubeconfig,
		"--hostname-override=" + cmp.Or(change.HostnameOverride, nodeName),
		"--node-ip=" + c.NodeIP(),
	}
	if guardConfig := cmp.Or(change.GuardConfig, c.config.GuardConfig); guardConfig != "" {
		args = append(args, "--guard-config="+guardConfig)
	}
	if change.Standalone {
		testnode.AuthorizeWithoutAPIServer(config)
		args = append(args, "--kubeconfig=")
	}
	content, err := yaml.Marshal(config)
	if err != nil {
		return launch{}, err
	}
	return launch{path: cmp.Or(change.Binary, c.config.Kubelet), args: args}, os.WriteFile(path, content, 0o644)
}

// nodeKubeconfig writes the kubeconfig of a node that has certificates.
func (c *Cluster) nodeKubeconfig(nodeName, server string) (string, error) {
	path := filepath.Join(c.config.Dir, "config", "kubelet-"+nodeName+".kubeconfig")
	return path, writeKubeconfig(path, c.pki, server, "system:node:"+nodeName, nodeClientCertificate(nodeName))
}

// kubeletHealthy checks more than /healthz, which responds before the resource
// managers have started. When one of them cannot, because a reservation is too
// large or a policy changed under its state file, the kubelet exits a moment
// later. The last of them is the device manager: when its socket accepts connections, all
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
			X509:      kubeletconfigv1beta1.KubeletX509Authentication{ClientCAFile: c.pki.Cert("ca")},
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
		// Nothing listens there; without an address, every pod gets a warning event.
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
