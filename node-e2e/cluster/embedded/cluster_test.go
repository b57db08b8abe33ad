package embedded

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/procfs"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	kubeletconfigv1beta1 "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/pki"
	"kubelet-guard.io/node-e2e/cluster/testnode"
)

func TestConfigNamesWhatIsWrong(t *testing.T) {
	programs := t.TempDir()
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "etcd", "etcdutl", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "runc-unfiltered", "bridge", "host-local", "loopback", "pause", "workload"} {
		require.NoError(t, os.WriteFile(filepath.Join(programs, name), nil, 0o755))
	}
	valid := Config{Name: "test", KubeDir: programs, NodeDir: programs, Kubelet: filepath.Join(programs, "kubelet")}
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"no name":          {func(c *Config) { c.Name = "" }, []string{"Config.Name"}},
		"long name":        {func(c *Config) { c.Name = strings.Repeat("a", 41) }, []string{"Config.Name", "40"}},
		"missing kubelet":  {func(c *Config) { c.Kubelet = "/none" }, []string{"Config.Kubelet", "/none"}},
		"missing programs": {func(c *Config) { c.KubeDir, c.NodeDir = "/none", "/none" }, []string{"Config.KubeDir", "/none/kube-apiserver", "Config.NodeDir", "/none/workload"}},
		"not a program":    {func(c *Config) { c.Kubelet = programs }, []string{"Config.Kubelet", "not a program"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := valid
			test.change(&config)
			_, err := config.complete()
			for _, want := range test.want {
				require.ErrorContains(t, err, want)
			}
		})
	}
	t.Run("valid", func(t *testing.T) {
		config, err := valid.complete()
		require.NoError(t, err)
		require.True(t, filepath.IsAbs(config.Dir))
		require.Equal(t, "test", filepath.Base(config.Dir))
	})
}

func TestHostPath(t *testing.T) {
	for nodePath, want := range map[string]string{
		"/var/lib/kubelet":                "/c/node/var/lib/kubelet",
		"/var/lib/kubelet/guard/release":  "/c/node/var/lib/kubelet/guard/release",
		"/var/lib/kubelet/../kubelet/a":   "/c/node/var/lib/kubelet/a",
		"/var/lib/kubelet-of-someone":     "/var/lib/kubelet-of-someone",
		"/run/containerd/containerd.sock": "/c/node/run/containerd/containerd.sock",
		"/etc/hosts":                      "/etc/hosts",
	} {
		require.Equal(t, want, hostPath("/c", nodePath), nodePath)
	}
}

func TestNetworksOfIndexesAreApart(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for index := range maxClusters {
		network := podNetwork(index)
		require.True(t, network.IsValid())
		require.True(t, network.Contains(nodeIP(index)))
		require.False(t, seen[network])
		seen[network] = true
		require.Less(t, len(bridgeName(index)), 16, "the kernel's limit for link names")
	}
}

func TestHasCgroupV1(t *testing.T) {
	v2, memory := cgroupMount{path: "/sys/fs/cgroup", v2: true}, cgroupMount{path: "/sys/fs/cgroup/memory"}
	require.True(t, hasCgroupV1([]cgroupMount{v2, memory}), "hybrid")
	require.False(t, hasCgroupV1([]cgroupMount{v2}))
	mounts, err := cgroupMounts()
	require.NoError(t, err)
	require.NotEmpty(t, mounts, "hierarchies of this machine")
}

func TestIsIn(t *testing.T) {
	v1 := []procfs.Cgroup{{Path: "/kg-1/kubepods/pod1"}, {Path: "/"}}
	require.True(t, isIn(v1, "kg-1"))
	require.True(t, isIn([]procfs.Cgroup{{Path: "/kg-1"}}, "kg-1"))
	require.False(t, isIn(v1, "kg-11"))
	require.False(t, isIn([]procfs.Cgroup{{Path: "/kg-11/kubepods"}}, "kg-1"))
	require.False(t, isIn([]procfs.Cgroup{{Path: "/user/kg-1/x"}}, "kg-1"))
}

func TestCertificates(t *testing.T) {
	d := pki.Dir(t.TempDir())
	ip := net.IPv4(10, 88, 3, 1)
	require.NoError(t, createPKI(d, ip))
	require.NoError(t, createNodeCertificates(d, "a-node", ip))

	verify := func(authority, name string, usage x509.ExtKeyUsage, host string) *x509.Certificate {
		t.Helper()
		roots, err := cert.NewPool(d.Cert(authority))
		require.NoError(t, err)
		certificates, err := cert.CertsFromFile(d.Cert(name))
		require.NoError(t, err)
		certificate := certificates[0]
		_, err = certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage}})
		require.NoError(t, err, name)
		return certificate
	}
	verify("ca", "apiserver", x509.ExtKeyUsageServerAuth, "10.88.3.1")
	verify("ca", "apiserver", x509.ExtKeyUsageServerAuth, "kubernetes.default.svc")
	verify("etcd/ca", "etcd/server", x509.ExtKeyUsageServerAuth, "10.88.3.1")
	verify("etcd/ca", "apiserver-etcd-client", x509.ExtKeyUsageClientAuth, "")
	verify("front-proxy-ca", "front-proxy-client", x509.ExtKeyUsageClientAuth, "")
	verify("ca", nodeServingCertificate("a-node"), x509.ExtKeyUsageServerAuth, "10.88.3.1")
	node := verify("ca", nodeClientCertificate("a-node"), x509.ExtKeyUsageClientAuth, "")
	require.Equal(t, "system:node:a-node", node.Subject.CommonName)
	require.Equal(t, []string{"system:nodes"}, node.Subject.Organization)

	for _, key := range []string{"ca", "sa", "apiserver"} {
		info, err := os.Stat(d.Key(key))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), key)
	}

	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, writeKubeconfig(path, d, "https://10.88.3.1:6443", "kubernetes-admin", "admin"))
	config, err := clientcmd.BuildConfigFromFlags("", path)
	require.NoError(t, err)
	require.Equal(t, "https://10.88.3.1:6443", config.Host)
	require.NotEmpty(t, config.CertData)
}

func TestKubeletChange(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "config"), 0o755))
	c := &Cluster{config: Config{Name: "test", Dir: dir, Kubelet: "/stock", GuardConfig: "/guard.yaml"}, state: &state{Index: 3}}
	c.define()
	require.NoError(t, createPKI(c.pki, net.ParseIP(c.NodeIP())))

	prepare := func(change testnode.KubeletChange) (launch, string) {
		t.Helper()
		l, err := c.prepareKubelet(change)
		require.NoError(t, err)
		written, err := os.ReadFile(filepath.Join(dir, "config", "kubelet.yaml"))
		require.NoError(t, err)
		return l, string(written)
	}
	l, written := prepare(testnode.KubeletChange{})
	require.Equal(t, "/stock", l.path)
	require.Contains(t, l.args, "--hostname-override=test-node")
	require.Contains(t, l.args, "--guard-config=/guard.yaml")
	require.NotContains(t, written, "maxPods")

	l, written = prepare(testnode.KubeletChange{
		Binary: "/guarded", NodeName: "other", GuardConfig: "/other.yaml", Standalone: true,
		Configure: func(k *kubeletconfigv1beta1.KubeletConfiguration) { k.MaxPods = 1 },
	})
	require.Equal(t, "/guarded", l.path)
	require.Contains(t, l.args, "--hostname-override=other")
	require.Contains(t, l.args, "--guard-config=/other.yaml")
	require.Equal(t, "--kubeconfig=", l.args[len(l.args)-1], "the last value of a flag counts")
	require.Contains(t, written, "maxPods: 1\n")
	require.Contains(t, written, "mode: AlwaysAllow")
	require.FileExists(t, c.pki.Cert(nodeClientCertificate("other")))

	l, written = prepare(testnode.KubeletChange{HostnameOverride: "other"})
	require.Contains(t, l.args, "--hostname-override=other")
	require.Contains(t, l.args, "--kubeconfig="+filepath.Join(dir, "config", "kubelet-test-node.kubeconfig"))
	require.NotContains(t, written, "maxPods", "a change holds for one start")
}

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	want := &state{Name: "a", Index: 7, BootID: "b", Ready: true, Processes: map[string]testnode.Process{"etcd": {PID: 1, StartTime: 2}}}
	require.NoError(t, want.write(dir))
	got, err := readState(dir)
	require.NoError(t, err)
	require.Equal(t, want, got)

	require.NoError(t, os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o644))
	_, err = readState(dir)
	require.ErrorContains(t, err, filepath.Join(dir, stateFile))
}

func TestLockIsExclusive(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockDir(dir)
	require.NoError(t, err)
	_, err = lockDir(dir)
	require.ErrorContains(t, err, dir)
	require.NoError(t, lock.Close())
	lock, err = lockDir(dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

func TestListSkipsWhatIsOnlyLogs(t *testing.T) {
	parent := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(parent, "old", logsFolder), 0o755))
	crashed := filepath.Join(parent, "crashed")
	require.NoError(t, os.Mkdir(crashed, 0o755))
	require.NoError(t, (&state{Name: "crashed", Ready: true, BootID: "another", Processes: map[string]testnode.Process{"etcd": {PID: 1}}}).write(crashed))
	clusters, err := List(parent)
	require.NoError(t, err)
	require.Equal(t, []Summary{{Name: "crashed", Dir: crashed, Kubeconfig: filepath.Join(crashed, kubeconfigFile)}}, clusters)

	clusters, err = List(filepath.Join(parent, "none"))
	require.NoError(t, err)
	require.Empty(t, clusters)
}

func TestRemoveFilesKeepsLogs(t *testing.T) {
	dir := t.TempDir()
	for _, folder := range []string{logsFolder, "etcd/member"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, folder), 0o755))
	}
	for _, file := range []string{stateFile, lockFile, kubeconfigFile} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), nil, 0o644))
	}
	require.NoError(t, removeFiles(dir))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	require.Equal(t, []string{lockFile, logsFolder}, names)
	require.NoError(t, removeFiles(filepath.Join(dir, "none")))
}

func TestJoin(t *testing.T) {
	dir := t.TempDir()
	c := &Cluster{config: Config{Name: "test", Dir: dir}, state: &state{Index: 7}, pki: pki.Dir(filepath.Join(dir, "pki"))}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "config"), 0o755))
	require.NoError(t, createPKI(c.pki, net.ParseIP(c.NodeIP())))
	ip := net.ParseIP("192.0.2.10")

	credentials, err := c.Join("other", ip)
	require.NoError(t, err)
	config, err := clientcmd.BuildConfigFromFlags("", credentials.Kubeconfig)
	require.NoError(t, err)
	require.Equal(t, "https://"+c.APIServerAddress(), config.Host)
	client, err := tls.X509KeyPair(config.CertData, config.KeyData)
	require.NoError(t, err)
	require.Equal(t, "system:node:other", client.Leaf.Subject.CommonName)
	require.Equal(t, []string{"system:nodes"}, client.Leaf.Subject.Organization)

	serving, err := tls.LoadX509KeyPair(credentials.Certificate, credentials.Key)
	require.NoError(t, err)
	authority, err := os.ReadFile(credentials.Authority)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(authority))
	_, err = serving.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: ip.String()})
	require.NoError(t, err)
}
