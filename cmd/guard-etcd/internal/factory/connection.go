package factory

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
)

const (
	// DefaultSnapshotDir is where snapshots are saved.
	DefaultSnapshotDir = "/var/backups/guard-etcd"
	// kubeadm's places.
	defaultManifest   = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	defaultKubeconfig = "/etc/kubernetes/admin.conf"
	// Defaults of the API server.
	defaultPrefix             = "/registry"
	defaultCompactionInterval = 5 * time.Minute
	dialTimeout               = 5 * time.Second
)

// Connection is how etcd and the API server are reached: by the API server's own flags, from
// its manifest or from this command's flags of the same names.
type Connection struct {
	manifest      string
	kubeconfig    string
	skipHashCheck bool
	settings
	flags *pflag.FlagSet
}

// settings are the flags of the API server that matter here.
type settings struct {
	servers            []string
	caFile             string
	certFile           string
	keyFile            string
	prefix             string
	encryptionConfig   string
	compactionInterval time.Duration

	// How the API server reaches kubelets.
	kubeletCAFile, kubeletCertFile, kubeletKeyFile string
}

func (s *settings) addFlags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&s.servers, "etcd-servers", nil, "URLs of etcd")
	flags.StringVar(&s.caFile, "etcd-cafile", "", "CA of etcd's certificates")
	flags.StringVar(&s.certFile, "etcd-certfile", "", "Client certificate for etcd")
	flags.StringVar(&s.keyFile, "etcd-keyfile", "", "Key of the client certificate")
	flags.StringVar(&s.prefix, "etcd-prefix", defaultPrefix, "Prefix of the API server's keys")
	flags.StringVar(&s.encryptionConfig, "encryption-provider-config", "", "The API server's encryption configuration")
	flags.DurationVar(&s.compactionInterval, "etcd-compaction-interval", defaultCompactionInterval, "How often the API server compacts etcd; 0: it does not")
}

func (s *settings) addKubeletFlags(flags *pflag.FlagSet) {
	flags.StringVar(&s.kubeletCAFile, "kubelet-certificate-authority", "", "CA of the kubelets' certificates")
	flags.StringVar(&s.kubeletCertFile, "kubelet-client-certificate", "", "Client certificate for kubelets")
	flags.StringVar(&s.kubeletKeyFile, "kubelet-client-key", "", "Key of the client certificate")
}

// AddKubeletFlags adds the flags of direct connections to kubelets to a command.
func (c *Connection) AddKubeletFlags(command *cobra.Command) {
	c.addKubeletFlags(command.Flags())
}

// KubeletTLS returns how kubelets are reached as by the API server.
func (c *Connection) KubeletTLS() rest.TLSClientConfig {
	return rest.TLSClientConfig{CAFile: c.kubeletCAFile, CertFile: c.kubeletCertFile, KeyFile: c.kubeletKeyFile}
}

// AddFlags adds the flags to the root command.
func (c *Connection) AddFlags(command *cobra.Command) {
	c.flags = command.PersistentFlags()
	c.flags.StringVar(&c.manifest, "apiserver-manifest", defaultManifest, "The API server's static pod, whose flags are the defaults of those below")
	c.addFlags(c.flags)
	c.flags.StringVar(&c.kubeconfig, "kubeconfig", "", "Kubeconfig of an administrator (default "+defaultKubeconfig+" if it is there, else as kubectl)")
	c.flags.BoolVar(&c.skipHashCheck, "skip-hash-check", false, "Read a file without a checksum, as a copy of a member's db file")
}

// Complete takes over what the manifest has and the flags do not. A manifest that was not
// requested need not be there.
func (c *Connection) Complete() error {
	content, err := os.ReadFile(c.manifest)
	if errors.Is(err, os.ErrNotExist) && !c.flags.Changed("apiserver-manifest") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--apiserver-manifest: %w", err)
	}
	found, err := readManifest(content)
	if err != nil {
		return fmt.Errorf("--apiserver-manifest: %s: %w", c.manifest, err)
	}
	for flag, take := range map[string]func(){
		"etcd-servers":               func() { c.servers = found.servers },
		"etcd-cafile":                func() { c.caFile = found.caFile },
		"etcd-certfile":              func() { c.certFile = found.certFile },
		"etcd-keyfile":               func() { c.keyFile = found.keyFile },
		"etcd-prefix":                func() { c.prefix = found.prefix },
		"encryption-provider-config": func() { c.encryptionConfig = found.encryptionConfig },
		"etcd-compaction-interval":   func() { c.compactionInterval = found.compactionInterval },
	} {
		if !c.flags.Changed(flag) {
			take()
		}
	}
	for file, inManifest := range map[*string]string{
		&c.kubeletCAFile: found.kubeletCAFile, &c.kubeletCertFile: found.kubeletCertFile, &c.kubeletKeyFile: found.kubeletKeyFile,
	} {
		if *file == "" {
			*file = inManifest
		}
	}
	return nil
}

// readManifest returns the settings of the API server in a static pod. Files are named as on the
// host: the pod mounts them.
func readManifest(content []byte) (settings, error) {
	var s settings
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	s.addFlags(flags)
	s.addKubeletFlags(flags)
	pod, container, err := parseStaticPod(content, "kube-apiserver", flags)
	if err != nil {
		return s, err
	}
	if len(s.servers) == 0 {
		return s, fmt.Errorf("the container %s has no --etcd-servers", container.Name)
	}
	for _, file := range []*string{&s.caFile, &s.certFile, &s.keyFile, &s.encryptionConfig, &s.kubeletCAFile, &s.kubeletCertFile, &s.kubeletKeyFile} {
		*file = hostPath(pod, container, *file)
	}
	return s, nil
}

// parseStaticPod parses the flags of the container that runs a program, and returns both.
func parseStaticPod(content []byte, program string, flags *pflag.FlagSet) (*corev1.Pod, *corev1.Container, error) {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(content, nil, nil)
	if err != nil {
		return nil, nil, err
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return nil, nil, fmt.Errorf("it holds a %T, not a Pod", object)
	}
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.SetOutput(io.Discard)
	for i := range pod.Spec.Containers {
		container := &pod.Spec.Containers[i]
		command := append(append([]string(nil), container.Command...), container.Args...)
		if !slices.ContainsFunc(command, func(word string) bool { return !strings.HasPrefix(word, "-") && filepath.Base(word) == program }) {
			continue
		}
		if err := flags.Parse(command); err != nil {
			return nil, nil, fmt.Errorf("the flags of the container %s: %w", container.Name, err)
		}
		return pod, container, nil
	}
	return nil, nil, fmt.Errorf("no container runs %s", program)
}

// hostPath returns where a file of a container is on the host.
func hostPath(pod *corev1.Pod, container *corev1.Container, file string) string {
	best := ""
	result := file
	for _, mount := range container.VolumeMounts {
		rest, below := strings.CutPrefix(file, strings.TrimSuffix(mount.MountPath, "/"))
		if file == "" || !below || (rest != "" && !strings.HasPrefix(rest, "/")) || len(mount.MountPath) <= len(best) {
			continue
		}
		for _, volume := range pod.Spec.Volumes {
			if volume.Name == mount.Name && volume.HostPath != nil {
				best, result = mount.MountPath, filepath.Join(volume.HostPath.Path, mount.SubPath, rest)
			}
		}
	}
	return result
}

// Prefix returns the prefix of the API server's keys, with a slash at both ends.
func (c *Connection) Prefix() string { return "/" + strings.Trim(c.prefix, "/") + "/" }

// CompactionInterval returns how often the API server compacts; 0: it does not.
func (c *Connection) CompactionInterval() time.Duration { return c.compactionInterval }

// Decoder returns a decoder with the API server's encryption.
func (c *Connection) Decoder(ctx context.Context) (*objects.Decoder, error) {
	return objects.NewDecoder(ctx, c.Prefix(), c.encryptionConfig)
}

// OpenFile opens a snapshot.
func (c *Connection) OpenFile(path string) (*history.File, error) {
	return history.OpenFile(path, c.skipHashCheck)
}

// EncryptionConfig returns the file of the API server's encryption configuration, or "".
func (c *Connection) EncryptionConfig() string { return c.encryptionConfig }

// SkipHashCheck reports whether files without a checksum are read.
func (c *Connection) SkipHashCheck() bool { return c.skipHashCheck }

// Configured reports whether it is known where etcd is.
func (c *Connection) Configured() bool { return len(c.servers) > 0 }

// ClientConfig returns the configuration of a client of etcd. It has no context: a signal ends
// what a command does between two transactions, not in one.
func (c *Connection) ClientConfig() (clientv3.Config, error) {
	if !c.Configured() {
		return clientv3.Config{}, fmt.Errorf("where is etcd? There is no %s, and no --etcd-servers", c.manifest)
	}
	tlsConfig, err := c.tlsConfig()
	return clientv3.Config{Endpoints: c.servers, DialTimeout: dialTimeout, TLS: tlsConfig, Logger: zap.NewNop()}, err
}

// Etcd returns a client and a reader of etcd. The client must be closed.
func (c *Connection) Etcd(ctx context.Context) (*clientv3.Client, *history.Live, error) {
	config, err := c.ClientConfig()
	if err != nil {
		return nil, nil, err
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, nil, fmt.Errorf("--etcd-servers: %w", err)
	}
	live, err := history.OpenLive(ctx, client, c.Prefix())
	if err != nil {
		return nil, nil, errors.Join(err, client.Close())
	}
	return client, live, nil
}

func (c *Connection) tlsConfig() (*tls.Config, error) {
	if c.caFile == "" && c.certFile == "" && c.keyFile == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.caFile != "" {
		content, err := os.ReadFile(c.caFile)
		if err != nil {
			return nil, fmt.Errorf("--etcd-cafile: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("--etcd-cafile: %s holds no certificate", c.caFile)
		}
	}
	if c.certFile != "" || c.keyFile != "" {
		certificate, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
		if err != nil {
			return nil, fmt.Errorf("--etcd-certfile, --etcd-keyfile: %w", err)
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return config, nil
}

// RESTConfig returns the configuration of a client of the API server.
func (c *Connection) RESTConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	if c.kubeconfig == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		if _, err := os.Stat(defaultKubeconfig); err == nil {
			rules.ExplicitPath = defaultKubeconfig
		}
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	// Lists of 30,000 objects are decoded faster; custom resources fall back to JSON.
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return config, nil
}

// WithCertificate returns the configuration of a client of etcd with another certificate.
func (c *Connection) WithCertificate(certFile, keyFile string) (clientv3.Config, error) {
	other := *c
	other.certFile, other.keyFile = certFile, keyFile
	return other.ClientConfig()
}

// SecretFiles returns the files of the connection that only their owner may read.
func (c *Connection) SecretFiles() []string {
	return slices.DeleteFunc([]string{c.keyFile, c.encryptionConfig}, func(path string) bool { return path == "" })
}

// DefaultEtcdManifest is kubeadm's.
const DefaultEtcdManifest = "/etc/kubernetes/manifests/etcd.yaml"

// Etcd is what the static pod of etcd says.
type Etcd struct {
	MetricsURLs []string
	// SecretFiles on the host that only their owner may read.
	SecretFiles []string
}

// ReadEtcdManifest reads the static pod of etcd.
func ReadEtcdManifest(path string) (Etcd, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return Etcd{}, fmt.Errorf("--etcd-manifest: %w", err)
	}
	var e Etcd
	var keyFile, peerKeyFile, dataDir string
	flags := pflag.NewFlagSet("etcd", pflag.ContinueOnError)
	flags.StringSliceVar(&e.MetricsURLs, "listen-metrics-urls", nil, "")
	flags.StringVar(&keyFile, "key-file", "", "")
	flags.StringVar(&peerKeyFile, "peer-key-file", "", "")
	flags.StringVar(&dataDir, "data-dir", "", "")
	pod, container, err := parseStaticPod(content, "etcd", flags)
	if err != nil {
		return Etcd{}, fmt.Errorf("--etcd-manifest: %s: %w", path, err)
	}
	for _, file := range []string{keyFile, peerKeyFile, dataDir} {
		if file != "" {
			e.SecretFiles = append(e.SecretFiles, hostPath(pod, container, file))
		}
	}
	return e, nil
}
