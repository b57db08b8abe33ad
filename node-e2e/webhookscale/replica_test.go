package webhookscale

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/pki"
	"kubelet-guard.io/node-e2e/framework"
)

// callerName is in the client certificate of the load generator, as in that of an API server.
const callerName = "kube-apiserver-kubelet-client"

// replica is a running guard-webhook.
type replica struct {
	process              procfs.Proc
	log                  string
	url, metrics, health string
	// tls is for connections of a caller.
	tls *tls.Config
}

// startReplica starts the program with the environment of its Deployment, as one that leads,
// and waits until it is ready.
func startReplica(ctx context.Context, t *testing.T, program, manifests string, s *server) *replica {
	t.Helper()
	dir := t.TempDir()
	certificates := pki.Dir(dir)
	authority, err := certificates.NewAuthority("ca")
	require.NoError(t, err)
	require.NoError(t, authority.Sign(pki.Request{Name: "tls", CommonName: "guard-webhook", Server: true, Addresses: []net.IP{net.IPv4(127, 0, 0, 1)}}))
	require.NoError(t, authority.Sign(pki.Request{Name: "caller", CommonName: callerName, Client: true}))
	r := &replica{}
	r.tls, err = rest.TLSConfigFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{
		CAFile: certificates.Cert("ca"), CertFile: certificates.Cert("caller"), KeyFile: certificates.Key("caller"),
	}})
	require.NoError(t, err)
	kubeconfig := filepath.Join(dir, "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q}}]
contexts: [{name: test, context: {cluster: test}}]
current-context: test
`, s.URL), 0o600))
	ports := freePorts(t, 3)
	r.url = fmt.Sprintf("https://127.0.0.1:%d", ports[0])
	r.metrics, r.health = fmt.Sprintf("http://127.0.0.1:%d/metrics", ports[1]), fmt.Sprintf("http://127.0.0.1:%d/readyz", ports[2])

	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	command := exec.Command(program, "--kubeconfig="+kubeconfig, "--cert-dir="+dir, "--leader-elect=false", "--shutdown-delay=0s",
		"--caller-ca-file="+certificates.Cert("ca"), "--caller-names="+callerName, "--port="+strconv.Itoa(ports[0]),
		fmt.Sprintf("--metrics-address=127.0.0.1:%d", ports[1]), fmt.Sprintf("--health-address=127.0.0.1:%d", ports[2]))
	command.Env = append(append(os.Environ(), "GODEBUG=gctrace=1"), environmentOf(t, manifests)...)
	r.log = log.Name()
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, command.Start())
	r.process, err = procfs.NewProc(command.Process.Pid)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		_ = command.Process.Kill()
		<-ended
		if t.Failed() {
			content, _ := os.ReadFile(log.Name())
			t.Logf("the log of the replica ends:\n%s", content[max(0, len(content)-4000):])
		}
	})
	for {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the replica has ended: %v", err)
		case <-ctx.Done():
			t.Fatal("the replica is not ready in time")
		case <-time.After(100 * time.Millisecond):
		}
		if response, err := http.Get(r.health); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return r
			}
		}
	}
}

// environmentOf returns the variables that the Deployment sets by value.
func environmentOf(t *testing.T, manifests string) []string {
	t.Helper()
	var variables []string
	for _, e := range deploymentOf(t, manifests).Spec.Template.Spec.Containers[0].Env {
		if e.Value != "" {
			variables = append(variables, e.Name+"="+e.Value)
		}
	}
	return variables
}

func deploymentOf(t *testing.T, manifests string) *appsv1.Deployment {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(manifests, "control-plane", "webhook", "deployment.yaml"))
	require.NoError(t, err)
	for document := range strings.SplitSeq(string(content), "\n---\n") {
		deployment := &appsv1.Deployment{}
		require.NoError(t, yaml.Unmarshal([]byte(document), deployment))
		if deployment.Kind == "Deployment" {
			return deployment
		}
	}
	t.Fatal("the manifest has no Deployment")
	return nil
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// memory is that of a process in MiB: now, the most since its start or the last reset, and
// what was alive on Go's heap at its last collection.
type memory struct{ resident, peak, live float64 }

func (r *replica) memory(t *testing.T) memory {
	t.Helper()
	status, err := r.process.NewStatus()
	require.NoError(t, err)
	m := memory{resident: float64(status.VmRSS) / (1 << 20), peak: float64(status.VmHWM) / (1 << 20)}
	// gc 12 @3.4s 2%: ... 46->47->30 MB, ...
	content, err := os.ReadFile(r.log)
	require.NoError(t, err)
	collections := regexp.MustCompile(`(?m)^gc .*->(\d+) MB,`).FindAllSubmatch(content, -1)
	if n := len(collections); n > 0 {
		m.live, err = strconv.ParseFloat(string(collections[n-1][1]), 64)
		require.NoError(t, err)
	}
	return m
}

// resetPeak makes the peak what is resident now.
func (r *replica) resetPeak(t *testing.T) {
	t.Helper()
	require.NoError(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.process.PID), []byte("5"), 0o200))
}

// cpu is the processor time that the replica has used.
func (r *replica) cpu(t *testing.T) time.Duration {
	t.Helper()
	stat, err := r.process.Stat()
	require.NoError(t, err)
	return time.Duration(stat.CPUTime() * float64(time.Second))
}

// readMetrics reads the replica's metrics.
func (r *replica) readMetrics(t *testing.T) framework.Metrics {
	t.Helper()
	response, err := http.Get(r.metrics)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	metrics, err := framework.ParseMetrics(content)
	require.NoError(t, err)
	return metrics
}
