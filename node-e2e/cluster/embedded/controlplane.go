package embedded

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"kubelet-guard.io/node-e2e/cluster/testnode"
)

// The ports of a node are the usual ones: each cluster has its own address.
const (
	apiServerPort         = "6443"
	otherAPIServerPort    = "6444"
	etcdClientPort        = "2379"
	etcdPeerPort          = "2380"
	etcdMetricsPort       = "2381"
	controllerManagerPort = "10257"
	schedulerPort         = "10259"
)

// serviceNetwork is only ever allocated from, never routed: there is no service
// proxy, and each cluster has an allocator of its own.
const serviceNetwork = "10.96.0.0/16"

// clusterDNS is the address at which a cluster usually has its name server.
const clusterDNS = "10.96.0.10"

var firstServiceIP = net.IPv4(10, 96, 0, 1)

// programEtcd and the others are the names of components, of their program
// files and of their logs.
const (
	programEtcd              = "etcd"
	programAPIServer         = "kube-apiserver"
	programControllerManager = "kube-controller-manager"
	programScheduler         = "kube-scheduler"
	programContainerd        = "containerd"
	programKubelet           = "kubelet"
)

func (c *Cluster) url(scheme, port string) string {
	return scheme + "://" + net.JoinHostPort(c.NodeIP(), port)
}

func (c *Cluster) etcdDataDir() string { return filepath.Join(c.config.Dir, "etcd") }

func (c *Cluster) prepareEtcd() (launch, error) {
	return launch{
		path: filepath.Join(c.config.NodeDir, programEtcd),
		args: []string{
			"--name=" + etcdMember,
			"--data-dir=" + c.etcdDataDir(),
			"--listen-client-urls=" + c.url("https", etcdClientPort),
			"--advertise-client-urls=" + c.url("https", etcdClientPort),
			"--listen-peer-urls=" + c.url("https", etcdPeerPort),
			"--initial-advertise-peer-urls=" + c.url("https", etcdPeerPort),
			"--initial-cluster=" + etcdMember + "=" + c.url("https", etcdPeerPort),
			"--listen-metrics-urls=" + c.url("http", etcdMetricsPort),
			"--cert-file=" + c.pki.Cert("etcd/server"),
			"--key-file=" + c.pki.Key("etcd/server"),
			"--trusted-ca-file=" + c.pki.Cert("etcd/ca"),
			"--client-cert-auth",
			"--peer-cert-file=" + c.pki.Cert("etcd/peer"),
			"--peer-key-file=" + c.pki.Key("etcd/peer"),
			"--peer-trusted-ca-file=" + c.pki.Cert("etcd/ca"),
			"--peer-client-cert-auth",
			// The data need not outlive a power cut, only the process.
			"--unsafe-no-fsync",
			"--log-level=warn",
		},
	}, nil
}

func (c *Cluster) etcdHealthy(ctx context.Context) error {
	return c.getOK(ctx, c.url("http", etcdMetricsPort)+"/health")
}

// prepareAPIServer prepares an API server that listens on the port and has its storage
// at the URL.
func (c *Cluster) prepareAPIServer(port, storage string) (launch, error) {
	return launch{
		path: filepath.Join(c.config.KubeDir, programAPIServer),
		args: append([]string{
			"--bind-address=" + c.NodeIP(),
			"--advertise-address=" + c.NodeIP(),
			"--secure-port=" + port,
			"--etcd-servers=" + storage,
			"--etcd-cafile=" + c.pki.Cert("etcd/ca"),
			"--etcd-certfile=" + c.pki.Cert("apiserver-etcd-client"),
			"--etcd-keyfile=" + c.pki.Key("apiserver-etcd-client"),
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged",
			"--anonymous-auth=false",
			"--client-ca-file=" + c.pki.Cert("ca"),
			"--tls-cert-file=" + c.pki.Cert("apiserver"),
			"--tls-private-key-file=" + c.pki.Key("apiserver"),
			"--kubelet-certificate-authority=" + c.pki.Cert("ca"),
			"--kubelet-client-certificate=" + c.pki.Cert("apiserver-kubelet-client"),
			"--kubelet-client-key=" + c.pki.Key("apiserver-kubelet-client"),
			"--kubelet-preferred-address-types=InternalIP",
			"--proxy-client-cert-file=" + c.pki.Cert("front-proxy-client"),
			"--proxy-client-key-file=" + c.pki.Key("front-proxy-client"),
			"--requestheader-client-ca-file=" + c.pki.Cert("front-proxy-ca"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + c.pki.Key("sa"),
			"--service-account-signing-key-file=" + c.pki.Key("sa"),
			"--service-cluster-ip-range=" + serviceNetwork,
			// There is no service proxy: webhooks are called at their pods' addresses.
			"--enable-aggregator-routing",
			"--profiling=false",
			"--v=1",
		}, c.config.APIServerFlags...),
	}, nil
}

func (c *Cluster) apiServerHealthy(ctx context.Context) error {
	return c.getOK(ctx, c.url("https", apiServerPort)+"/readyz")
}

// prepareController prepares a component that works through the API server, under the
// user system:<program>. The names of its certificates are those of kubeadm.
func (c *Cluster) prepareController(program, port string, args ...string) (launch, error) {
	certificate := strings.TrimPrefix(program, "kube-")
	kubeconfig := filepath.Join(c.config.Dir, "config", certificate+".kubeconfig")
	return launch{
		path: filepath.Join(c.config.KubeDir, program),
		args: append([]string{
			"--kubeconfig=" + kubeconfig,
			"--authentication-kubeconfig=" + kubeconfig,
			"--authorization-kubeconfig=" + kubeconfig,
			"--bind-address=" + c.NodeIP(),
			"--secure-port=" + port,
			"--tls-cert-file=" + c.pki.Cert(certificate+"-serving"),
			"--tls-private-key-file=" + c.pki.Key(certificate+"-serving"),
			"--client-ca-file=" + c.pki.Cert("ca"),
			"--requestheader-client-ca-file=" + c.pki.Cert("front-proxy-ca"),
			// There is only one, and a restarted one must not wait for the lease of
			// its predecessor.
			"--leader-elect=false",
			"--profiling=false",
			"--v=1",
		}, args...),
	}, writeKubeconfig(kubeconfig, c.pki, c.url("https", apiServerPort), "system:"+program, certificate)
}

func (c *Cluster) prepareControllerManager() (launch, error) {
	return c.prepareController(programControllerManager, controllerManagerPort,
		"--cluster-signing-cert-file="+c.pki.Cert("ca"),
		"--cluster-signing-key-file="+c.pki.Key("ca"),
		"--root-ca-file="+c.pki.Cert("ca"),
		"--service-account-private-key-file="+c.pki.Key("sa"),
		"--use-service-account-credentials",
		// Sooner than the default of 5 s removes a new node's taint. How long
		// a silent node is trusted is another setting, and as usual.
		"--node-monitor-period=1s",
		// Each controller fetches a token at the start, and the default limits
		// stretch that over five seconds.
		"--kube-api-qps=500",
		"--kube-api-burst=1000")
}

func (c *Cluster) controllerManagerHealthy(ctx context.Context) error {
	return c.getOK(ctx, c.url("https", controllerManagerPort)+"/healthz")
}

func (c *Cluster) prepareScheduler() (launch, error) {
	return c.prepareController(programScheduler, schedulerPort)
}

func (c *Cluster) schedulerHealthy(ctx context.Context) error {
	return c.getOK(ctx, c.url("https", schedulerPort)+"/readyz")
}

// restartControllers restarts what lists everything that the API server has, as far
// as it runs. In a usual cluster it loses its lease while the API server is away, ends,
// and is started again; these have no leases (--leader-elect=false). What runs on through
// an absence can be blind for up to a minute after it: client-go's reflectors double
// the time between attempts to 30 to 60 seconds, and forget that only after two minutes
// without an attempt (k8s.io/client-go/tools/cache/reflector.go), so that each further
// absence starts where the last one ended.
func (c *Cluster) restartControllers(ctx context.Context) error {
	var restarts []func(context.Context) error
	for _, component := range []*Component{c.controllerManager, c.scheduler} {
		if component.PID() != 0 {
			restarts = append(restarts, component.Restart)
		}
	}
	return inParallel(ctx, restarts...)
}

// newHealthClient returns a client with the administrator's certificate. It
// keeps no connections: the servers that it queries come and go.
func newHealthClient(config *rest.Config) (*http.Client, error) {
	tls, err := rest.TLSConfigFor(config)
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: tls},
	}, err
}

// getOK is an error unless the status of the response is 200.
func (c *Cluster) getOK(ctx context.Context, url string) error {
	_, err := testnode.Get(ctx, c.health, url)
	return err
}
