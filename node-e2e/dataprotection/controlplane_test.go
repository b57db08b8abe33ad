package dataprotection

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/pki"
	"kubelet-guard.io/node-e2e/framework"
)

const (
	// startTimeout is long: the suite runs next to others on two processors.
	startTimeout   = 10 * time.Minute
	requestTimeout = time.Minute
	pollInterval   = 250 * time.Millisecond
	prefix         = "/registry/"
)

// controlPlane is etcd with TLS and authentication, an API server with encryption at rest, and
// the controller manager, on free ports of the loopback address.
type controlPlane struct {
	t    *testing.T
	dir  string
	pki  pki.Dir
	etcd string // URL
	api  string // URL
	peer string // URL

	etcdProcess, apiProcess, controllerProcess *process
	// etcdFlags are further ones of etcd.
	etcdFlags []string

	root    *clientv3.Client
	config  *rest.Config
	kube    kubernetes.Interface
	dynamic dynamic.Interface
}

// process is a program of the control plane.
type process struct {
	command *exec.Cmd
	done    chan struct{}
	log     string
}

// stop ends the process with a signal and waits for it.
func (p *process) stop(signal os.Signal) {
	if p == nil {
		return
	}
	_ = p.command.Process.Signal(signal)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.command.Process.Kill()
		<-p.done
	}
}

func (c *controlPlane) start(program string, arguments ...string) *process {
	c.t.Helper()
	log := filepath.Join(c.dir, filepath.Base(program)+".log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	require.NoError(c.t, err)
	defer out.Close()
	if filepath.Base(program) == "etcd" {
		arguments = append(arguments, c.etcdFlags...)
	}
	command := exec.Command(program, arguments...)
	command.Dir, command.Stdout, command.Stderr = c.dir, out, out
	// A session of its own: Ctrl-C reaches the test alone, which stops it.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(c.t, command.Start())
	p := &process{command: command, done: make(chan struct{}), log: log}
	go func() {
		_ = command.Wait()
		close(p.done)
	}()
	c.t.Cleanup(func() { p.stop(syscall.SIGKILL) })
	return p
}

// newControlPlane starts all three. The API server never compacts, unless flags say so: tests
// compact when they need it.
func newControlPlane(t *testing.T, output string) *controlPlane {
	c := newFiles(t)
	c.startEtcd(output)
	c.enableAuth()
	c.writeEncryption("key1", "key1")
	c.startAPIServer(output)
	c.startControllers(output)
	c.awaitControllers()
	return c
}

// newFiles makes the certificates of a control plane, and chooses its ports.
func newFiles(t *testing.T) *controlPlane {
	c := &controlPlane{t: t, dir: t.TempDir()}
	c.pki = pki.Dir(c.dir)
	ca, err := c.pki.NewAuthority("ca")
	require.NoError(t, err)
	for _, name := range []string{"etcd", "root", "kube-apiserver-etcd-client", "reader", "stranger", "admin", "apiserver"} {
		request := pki.Request{Name: name, CommonName: name, Server: true, Client: true, Hosts: []string{"localhost"}, Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
		if name == "admin" {
			request.Organizations = []string{"system:masters"}
		}
		require.NoError(t, ca.Sign(request))
	}
	c.etcd, c.peer, c.api = loopbackURL(t), loopbackURL(t), loopbackURL(t)
	return c
}

func (c *controlPlane) awaitControllers() {
	c.await("the controller manager to run", func(ctx context.Context) error {
		_, err := c.kube.CoordinationV1().Leases("kube-system").Get(ctx, "kube-controller-manager", metav1.GetOptions{})
		if err == nil {
			_, err = c.kube.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		}
		return err
	})
}

// restartControllers starts the controller manager again, and returns when it leads: the lease of the
// one before has to end.
func (c *controlPlane) restartControllers() {
	holder := func(ctx context.Context) string {
		lease, err := c.kube.CoordinationV1().Leases("kube-system").Get(ctx, "kube-controller-manager", metav1.GetOptions{})
		require.NoError(c.t, err)
		return ptr.Deref(lease.Spec.HolderIdentity, "")
	}
	before := holder(context.Background())
	c.startControllers(*output)
	c.await("the controller manager to lead", func(ctx context.Context) error {
		if holder(ctx) == before {
			return errors.New("the lease is that of the one before")
		}
		return nil
	})
}

func (c *controlPlane) startEtcd(output string) {
	c.startEtcdIn(output, filepath.Join(c.dir, "etcd.data"))
}

// startEtcdIn starts etcd with a data directory, and returns when it responds.
func (c *controlPlane) startEtcdIn(output, dataDir string) {
	c.etcdProcess = c.start(filepath.Join(output, "node/bin/etcd"),
		"--name=drill", "--data-dir="+dataDir,
		"--listen-client-urls="+c.etcd, "--advertise-client-urls="+c.etcd,
		"--listen-peer-urls="+c.peer, "--initial-advertise-peer-urls="+c.peer, "--initial-cluster=drill="+c.peer,
		"--client-cert-auth", "--trusted-ca-file="+c.pki.Cert("ca"), "--cert-file="+c.pki.Cert("etcd"), "--key-file="+c.pki.Key("etcd"),
		"--peer-client-cert-auth", "--peer-trusted-ca-file="+c.pki.Cert("ca"), "--peer-cert-file="+c.pki.Cert("etcd"), "--peer-key-file="+c.pki.Key("etcd"),
		"--unsafe-no-fsync", "--quota-backend-bytes=8589934592", "--log-level=warn")
	c.root = c.etcdClient("root")
	c.await("etcd to respond", func(ctx context.Context) error {
		_, err := c.root.Status(ctx, c.etcd)
		return err
	})
}

// enableAuth makes the users that etcd's authentication knows: root, the API server, which may
// do what it needs and no more, and one that may only read.
func (c *controlPlane) enableAuth() {
	ctx := context.Background()
	step := func(_ any, err error) { require.NoError(c.t, err) }
	grant := func(role, key, end string, permission clientv3.PermissionType) {
		step(c.root.RoleGrantPermission(ctx, role, key, end, permission))
	}
	user := func(name, role string) {
		step(c.root.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true}))
		step(c.root.UserGrantRole(ctx, name, role))
	}
	end := clientv3.GetPrefixRangeEnd(prefix)
	step(c.root.RoleAdd(ctx, "apiserver"))
	grant("apiserver", prefix, end, clientv3.PermissionType(clientv3.PermReadWrite))
	grant("apiserver", "compact_rev_key", "", clientv3.PermissionType(clientv3.PermReadWrite))
	step(c.root.RoleAdd(ctx, "reader"))
	grant("reader", prefix, end, clientv3.PermissionType(clientv3.PermRead))
	user("root", "root")
	user("kube-apiserver-etcd-client", "apiserver")
	user("reader", "reader")
	step(c.root.AuthEnable(ctx))
}

// writeEncryption writes the API server's encryption configuration: Secrets are written with the
// first key, and read with all.
func (c *controlPlane) writeEncryption(names ...string) {
	require.NoError(c.t, os.WriteFile(c.encryption(), []byte(encryptionOf(names...)), 0o600))
}

func (c *controlPlane) encryption() string { return filepath.Join(c.dir, "encryption.yaml") }

// encryptionOf is a configuration whose keys are made of their names.
func encryptionOf(names ...string) string {
	keys := ""
	seen := map[string]bool{}
	for _, name := range names {
		if !seen[name] {
			keys += fmt.Sprintf("      - name: %s\n        secret: %s\n", name, secretOf(name))
		}
		seen[name] = true
	}
	return "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" +
		"- resources: [secrets]\n  providers:\n  - aesgcm:\n      keys:\n" + keys + "  - identity: {}\n" +
		"- resources: [gadgets.example.com]\n  providers:\n  - secretbox:\n      keys:\n" + keys + "  - identity: {}\n"
}

func (c *controlPlane) startAPIServer(output string, flags ...string) {
	_, port, err := net.SplitHostPort(strings.TrimPrefix(c.api, "https://"))
	require.NoError(c.t, err)
	c.apiProcess = c.start(filepath.Join(output, framework.KubeVersion, "kube-apiserver"), append(c.apiServerFlags(port), flags...)...)
	config := &rest.Config{Host: c.api, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAFile: c.pki.Cert("ca"), CertFile: c.pki.Cert("admin"), KeyFile: c.pki.Key("admin")}}
	c.config = config
	c.kube = kubernetes.NewForConfigOrDie(config)
	c.dynamic = dynamic.NewForConfigOrDie(config)
	c.awaitAPI()
	c.writeKubeconfig()
	c.writeManifest(port)
}

func (c *controlPlane) awaitAPI() {
	c.await("the API server to be ready", func(ctx context.Context) error {
		select {
		case <-c.apiProcess.done:
			content, _ := os.ReadFile(c.apiProcess.log)
			require.FailNow(c.t, "the API server ended", string(content[max(0, len(content)-4000):]))
		default:
		}
		return c.kube.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

func (c *controlPlane) apiServerFlags(port string) []string {
	return []string{
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--secure-port=" + port,
		"--etcd-servers=" + c.etcd, "--etcd-cafile=" + c.pki.Cert("ca"),
		"--etcd-certfile=" + c.pki.Cert("kube-apiserver-etcd-client"), "--etcd-keyfile=" + c.pki.Key("kube-apiserver-etcd-client"),
		// On a busy machine etcd is slow, not dead.
		"--etcd-healthcheck-timeout=30s", "--etcd-readycheck-timeout=30s",
		"--etcd-compaction-interval=0", "--encryption-provider-config=" + c.encryption(),
		"--authorization-mode=RBAC", "--anonymous-auth=false", "--client-ca-file=" + c.pki.Cert("ca"),
		"--tls-cert-file=" + c.pki.Cert("apiserver"), "--tls-private-key-file=" + c.pki.Key("apiserver"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.pki.Key("apiserver"), "--service-account-signing-key-file=" + c.pki.Key("apiserver"),
		"--service-cluster-ip-range=10.96.0.0/16", "--profiling=false",
		"--audit-log-path=" + filepath.Join(c.dir, "audit.log"), "--audit-policy-file=" + c.auditPolicy(),
	}
}

// auditPolicy records deletions.
func (c *controlPlane) auditPolicy() string {
	path := filepath.Join(c.dir, "audit-policy.yaml")
	require.NoError(c.t, os.WriteFile(path, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n  verbs: [delete, deletecollection]\n"), 0o600))
	return path
}

func (c *controlPlane) kubeconfig() string { return filepath.Join(c.dir, "admin.conf") }

func (c *controlPlane) writeKubeconfig() {
	config := clientcmdapi.NewConfig()
	config.Clusters["drill"] = &clientcmdapi.Cluster{Server: c.api, CertificateAuthority: c.pki.Cert("ca")}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificate: c.pki.Cert("admin"), ClientKey: c.pki.Key("admin")}
	config.Contexts["drill"] = &clientcmdapi.Context{Cluster: "drill", AuthInfo: "admin"}
	config.CurrentContext = "drill"
	require.NoError(c.t, clientcmd.WriteToFile(*config, c.kubeconfig()))
}

func (c *controlPlane) manifest() string { return filepath.Join(c.dir, "kube-apiserver.yaml") }

// writeManifest writes the static pod as kubeadm would. The certificates are mounted elsewhere, so
// that their paths on the host must be found.
func (c *controlPlane) writeManifest(port string) { c.writeManifestOf(c.apiServerFlags(port)) }

func (c *controlPlane) writeManifestOf(flags []string) {
	var lines strings.Builder
	lines.WriteString("apiVersion: v1\nkind: Pod\nmetadata: {name: kube-apiserver, namespace: kube-system}\nspec:\n  hostNetwork: true\n  containers:\n" +
		"  - name: kube-apiserver\n    image: registry.example.com/kube-apiserver\n    command:\n    - kube-apiserver\n")
	for _, flag := range flags {
		fmt.Fprintf(&lines, "    - %s\n", strings.ReplaceAll(flag, c.dir+"/", "/in/the/container/"))
	}
	fmt.Fprintf(&lines, "    volumeMounts:\n    - {name: files, mountPath: /in/the/container, readOnly: true}\n  volumes:\n  - name: files\n    hostPath: {path: %s}\n", c.dir)
	require.NoError(c.t, os.WriteFile(c.manifest(), []byte(lines.String()), 0o600))
}

func (c *controlPlane) startControllers(output string) {
	c.controllerProcess = c.start(filepath.Join(output, framework.KubeVersion, "kube-controller-manager"),
		"--kubeconfig="+c.kubeconfig(), "--leader-elect=true", "--leader-elect-lease-duration=60s", "--leader-elect-renew-deadline=50s",
		// Those that act on what the accidents delete and restore.
		"--controllers=namespace-controller,garbage-collector-controller,deployment-controller,replicaset-controller,statefulset-controller,serviceaccount-controller,"+
			"root-ca-certificate-publisher-controller,persistentvolumeclaim-protection-controller,endpointslice-controller",
		"--bind-address=127.0.0.1", "--secure-port=0", "--use-service-account-credentials", "--kube-api-qps=500", "--kube-api-burst=1000",
		"--service-account-private-key-file="+c.pki.Key("apiserver"), "--root-ca-file="+c.pki.Cert("ca"), "--profiling=false")
}

// etcdClient connects as the user of a certificate.
func (c *controlPlane) etcdClient(name string) *clientv3.Client {
	return c.etcdClientOf(c.certificateOf(name), "ca")
}

// certificateOf is the path of a user's certificate and key, without .crt and .key.
func (c *controlPlane) certificateOf(name string) string {
	return strings.TrimSuffix(c.pki.Cert(name), ".crt")
}

// etcdClientOf connects with a certificate and its key, by their path without .crt and .key, to an
// etcd whose certificates are of an authority.
func (c *controlPlane) etcdClientOf(path, authority string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{c.etcd}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		TLS: c.tlsOf(path, authority),
	})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = client.Close() })
	return client
}

// await calls probe until it succeeds, and says what it saw last when that takes too long.
func (c *controlPlane) await(what string, probe func(context.Context) error) {
	c.t.Helper()
	start := time.Now()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
		err := probe(ctx)
		cancel()
		if err == nil {
			return
		}
		require.Less(c.t, time.Since(start), startTimeout, "waited for %s; last seen: %v", what, err)
		time.Sleep(pollInterval)
	}
}

// loopbackURL is one with a port that was free a moment ago.
func loopbackURL(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return "https://" + listener.Addr().String()
}

// tls has the certificate of a user.
func (c *controlPlane) tls(name string) *tls.Config { return c.tlsOf(c.certificateOf(name), "ca") }

func (c *controlPlane) tlsOf(path, authority string) *tls.Config {
	certificate, err := tls.LoadX509KeyPair(path+".crt", path+".key")
	require.NoError(c.t, err)
	ca, err := os.ReadFile(c.pki.Cert(authority))
	require.NoError(c.t, err)
	pool := x509.NewCertPool()
	require.True(c.t, pool.AppendCertsFromPEM(ca))
	return &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: pool, MinVersion: tls.VersionTLS12}
}
