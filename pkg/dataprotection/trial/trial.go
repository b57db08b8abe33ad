// Package trial starts etcd and kube-apiserver on a restored snapshot, apart from the cluster, and
// lists through them all that the snapshot has: what decoding alone does not show, as a version
// that the API server no longer serves. Both listen on the loopback address only, to clients with a
// certificate that is made for the trial, and end with it.
package trial

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/pager"

	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

const (
	// readyTimeout is how long an API server may take to be ready: seconds, longer with a full etcd on
	// a busy host, and a minute if it cannot decode an object, for which its caches wait.
	readyTimeout  = 3 * time.Minute
	readyInterval = 250 * time.Millisecond
	// stopTimeout is how long a program may take to end.
	stopTimeout = 10 * time.Second
	// logTail is how much of a program's log is part of an error, in bytes.
	logTail = 2000
)

// unserved are folders of etcd that are no resources of the API, and resources of which the objects
// have a lease of etcd, which ends.
var unserved = []string{"masterleases", "ranges", "peerserverleases", "events", "events.events.k8s.io"}

// Options of a trial.
type Options struct {
	// Etcd and APIServer are programs: paths, or names that are found in PATH.
	Etcd, APIServer string
	// APIServerFlags come after those of the trial, as --feature-gates=… .
	APIServerFlags []string
	// DataDir has a restored snapshot, and is written.
	DataDir string
	// Prefix of the API server's keys, as "/registry/".
	Prefix string
	// EncryptionConfig is the file of --encryption-provider-config; empty for none.
	EncryptionConfig string
	// Progress is called with the number of objects listed.
	Progress func(int)
}

// Report is the result of a trial.
type Report struct {
	// Version is that of the API server.
	Version string `json:"version"`
	// Resources and Objects are how many were listed.
	Resources int `json:"resources"`
	Objects   int `json:"objects"`
	// Problems are resources that cannot be listed, or of which objects are missing, sorted.
	Problems []string `json:"problems,omitempty"`
}

// FindPrograms returns the options with the paths of both programs, or an error that names the
// flag.
func (o Options) FindPrograms() (Options, error) {
	for flag, program := range map[string]*string{"--etcd": &o.Etcd, "--kube-apiserver": &o.APIServer} {
		path, err := exec.LookPath(*program)
		if err != nil {
			return o, fmt.Errorf("%s: --start needs the program itself, of the cluster's version, not a container image: %w", flag, err)
		}
		if path, err = filepath.Abs(path); err != nil {
			return o, err
		}
		*program = path
	}
	return o, nil
}

// Run starts both programs, lists everything and compares it with the content of the snapshot.
func Run(ctx context.Context, o Options, content *snapshots.Content) (*Report, error) {
	dir, err := os.MkdirTemp(filepath.Dir(o.DataDir), "trial-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	t := &trial{Options: o, dir: dir}
	if t.files, err = writeCertificates(dir); err != nil {
		return nil, err
	}
	defer t.stop()
	if err := t.start(ctx); err != nil {
		return nil, err
	}
	return t.list(ctx, content)
}

type trial struct {
	Options
	dir      string
	files    certificates
	api      *rest.Config
	programs []*program
}

// start starts both programs, and returns when the API server is ready.
func (t *trial) start(ctx context.Context) error {
	addresses, err := freeAddresses(3)
	if err != nil {
		return err
	}
	client, peer, api := "https://"+addresses[0], "https://"+addresses[1], "https://"+addresses[2]
	f := t.files
	etcd, err := t.run("etcd", t.Etcd,
		"--name=verify", "--data-dir="+t.DataDir, "--listen-client-urls="+client, "--advertise-client-urls="+client, "--listen-peer-urls="+peer,
		"--client-cert-auth", "--trusted-ca-file="+f.ca, "--cert-file="+f.cert, "--key-file="+f.key,
		"--peer-client-cert-auth", "--peer-trusted-ca-file="+f.ca, "--peer-cert-file="+f.cert, "--peer-key-file="+f.key,
		"--unsafe-no-fsync", "--log-level=warn")
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addresses[2])
	if err != nil {
		return err
	}
	flags := []string{
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + port, "--endpoint-reconciler-type=none",
		"--etcd-servers=" + client, "--etcd-prefix=" + strings.TrimSuffix(t.Prefix, "/"), "--etcd-cafile=" + f.ca, "--etcd-certfile=" + f.cert, "--etcd-keyfile=" + f.key,
		"--etcd-compaction-interval=0", "--authorization-mode=RBAC", "--anonymous-auth=false", "--client-ca-file=" + f.ca,
		"--tls-cert-file=" + f.cert, "--tls-private-key-file=" + f.key, "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + f.key, "--service-account-signing-key-file=" + f.key, "--service-cluster-ip-range=10.96.0.0/12", "--profiling=false",
	}
	if t.EncryptionConfig != "" {
		flags = append(flags, "--encryption-provider-config="+t.EncryptionConfig)
	}
	apiServer, err := t.run("kube-apiserver", t.APIServer, append(flags, t.APIServerFlags...)...)
	if err != nil {
		return err
	}
	t.api = &rest.Config{Host: api, QPS: -1, UserAgent: "guard-etcd", TLSClientConfig: rest.TLSClientConfig{CAFile: f.ca, CertFile: f.cert, KeyFile: f.key}}
	return t.awaitReady(ctx, etcd, apiServer)
}

func (t *trial) awaitReady(ctx context.Context, programs ...*program) error {
	client, err := discovery.NewDiscoveryClientForConfig(t.api)
	if err != nil {
		return err
	}
	var last error
	err = wait.PollUntilContextTimeout(ctx, readyInterval, readyTimeout, true, func(ctx context.Context) (bool, error) {
		for _, p := range programs {
			if p.ended() {
				return false, fmt.Errorf("%s ended: %s", p.name, p.tail())
			}
		}
		body, err := client.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if last = err; err != nil && len(body) > 0 {
			last = fmt.Errorf("%w: %s", err, body)
		}
		return err == nil, nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		return fmt.Errorf("kube-apiserver is not ready after %s: %w; its log ends with: %s", readyTimeout, last, programs[len(programs)-1].tail())
	}
	return err
}

// list lists every resource through the API. The API server decodes each object for it, in its
// storage version, and converts it.
func (t *trial) list(ctx context.Context, content *snapshots.Content) (*Report, error) {
	discoveryClient, err := discovery.NewDiscoveryClientForConfig(t.api)
	if err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(t.api)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	version, err := discoveryClient.ServerVersion()
	if err != nil {
		return nil, err
	}
	r.Version = version.GitVersion
	lists, err := discoveryClient.ServerPreferredResources()
	// The servers of aggregated APIs are not part of the trial.
	if err != nil && !discovery.IsGroupDiscoveryFailedError(err) {
		return nil, err
	}
	served := map[string]int{}
	for _, list := range lists {
		groupVersion, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, resource := range list.APIResources {
			name := schema.GroupResource{Group: groupVersion.Group, Resource: resource.Name}.String()
			if content.Resources[name].Objects == 0 || slices.Contains(unserved, name) || !slices.Contains(resource.Verbs, "list") {
				continue
			}
			objects, err := t.count(ctx, metadataClient, groupVersion.WithResource(resource.Name), r.Objects)
			if err := ctx.Err(); err != nil {
				return nil, context.Cause(ctx)
			}
			served[name] = objects
			r.Objects += objects
			switch {
			case err != nil:
				r.Problems = append(r.Problems, fmt.Sprintf("%s: its list fails: %v", name, err))
			case objects < content.Resources[name].Objects:
				r.Problems = append(r.Problems, fmt.Sprintf("%s: the list has %d of %d objects", name, objects, content.Resources[name].Objects))
			}
		}
	}
	r.Resources = len(served)
	for name, resource := range content.Resources {
		if _, known := served[name]; !known && !slices.Contains(unserved, name) {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: kube-apiserver %s does not serve it; objects: %d", name, r.Version, resource.Objects))
		}
	}
	slices.Sort(r.Problems)
	return r, nil
}

func (t *trial) count(ctx context.Context, client metadata.Interface, resource schema.GroupVersionResource, before int) (int, error) {
	count := 0
	p := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return client.Resource(resource).List(ctx, options)
	})
	err := p.EachListItem(ctx, metav1.ListOptions{}, func(runtime.Object) error {
		count++
		t.Progress(before + count)
		return nil
	})
	return count, err
}

// program runs.
type program struct {
	name, log string
	command   *exec.Cmd
	done      chan struct{}
}

func (t *trial) run(name, path string, arguments ...string) (*program, error) {
	p := &program{name: name, log: filepath.Join(t.dir, name+".log"), command: exec.Command(path, arguments...), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.command.Dir, p.command.Stdout, p.command.Stderr = t.dir, log, log
	// A signal from the terminal reaches this program alone, which stops it; and it ends if this one
	// is killed.
	p.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		_ = p.command.Wait()
		close(p.done)
	}()
	t.programs = append(t.programs, p)
	return p, nil
}

func (p *program) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// tail is the end of its log.
func (p *program) tail() string {
	content, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(content[max(0, len(content)-logTail):]))
}

// stop ends the programs, the last one first.
func (t *trial) stop() {
	for _, p := range slices.Backward(t.programs) {
		_ = p.command.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(stopTimeout):
			_ = p.command.Process.Kill()
			<-p.done
		}
	}
}

// freeAddresses of the loopback were free a moment ago. All are held until each is known, so that
// they differ.
func freeAddresses(count int) (addresses []string, err error) {
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses, nil
}
