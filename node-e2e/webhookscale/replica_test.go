package webhookscale

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
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

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// callerName is in the client certificate of the load generator, as in that of an API server.
const callerName = "kube-apiserver-kubelet-client"

// replica is a running guard-webhook.
type replica struct {
	pid                    int
	log                    string
	url, metrics, health   string
	certificate, authority tls.Certificate
}

// startReplica starts the program with the environment of its Deployment, as one that leads,
// and waits until it is ready.
func startReplica(ctx context.Context, t *testing.T, program, manifests string, s *server) *replica {
	t.Helper()
	dir := t.TempDir()
	authority := issue(t, "authority", nil)
	r := &replica{certificate: issue(t, callerName, &authority), authority: authority}
	write := func(name string, blocks ...*pem.Block) string {
		path := filepath.Join(dir, name)
		var content []byte
		for _, block := range blocks {
			content = append(content, pem.EncodeToMemory(block)...)
		}
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	certificate := func(c tls.Certificate) *pem.Block { return &pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]} }
	serving := issue(t, "guard-webhook", &authority)
	key, err := x509.MarshalPKCS8PrivateKey(serving.PrivateKey)
	require.NoError(t, err)
	write("tls.crt", certificate(serving))
	write("tls.key", &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	authorities := write("ca.crt", certificate(authority))
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
		"--caller-ca-file="+authorities, "--caller-names="+callerName, "--port="+strconv.Itoa(ports[0]),
		fmt.Sprintf("--metrics-address=127.0.0.1:%d", ports[1]), fmt.Sprintf("--health-address=127.0.0.1:%d", ports[2]))
	command.Env = append(append(os.Environ(), "GODEBUG=gctrace=1"), environmentOf(t, manifests)...)
	r.log = log.Name()
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, command.Start())
	r.pid = command.Process.Pid
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

// issue returns a certificate for 127.0.0.1, signed by the authority, or by itself.
func issue(t *testing.T, name string, authority *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := template, any(key)
	if authority == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		parent, signer = authority.Leaf, authority.PrivateKey
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(raw)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}
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
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", r.pid))
	require.NoError(t, err)
	defer file.Close()
	var m memory
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		var kib float64
		if _, err := fmt.Sscanf(scanner.Text(), "VmRSS: %f kB", &kib); err == nil {
			m.resident = kib / 1024
		}
		if _, err := fmt.Sscanf(scanner.Text(), "VmHWM: %f kB", &kib); err == nil {
			m.peak = kib / 1024
		}
	}
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
	require.NoError(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.pid), []byte("5"), 0o200))
}

// cpu is the processor time that the replica has used.
func (r *replica) cpu(t *testing.T) time.Duration {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.pid))
	require.NoError(t, err)
	fields := strings.Fields(string(content[strings.LastIndexByte(string(content), ')')+2:]))
	// utime and stime in hundredths of a second, which is what Linux shows on every machine.
	user, err := strconv.Atoi(fields[11])
	require.NoError(t, err)
	system, err := strconv.Atoi(fields[12])
	require.NoError(t, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// gauge returns the sum of the series of a metric, false when there is none.
func (r *replica) gauge(t *testing.T, name string) (float64, bool) {
	t.Helper()
	response, err := http.Get(r.metrics)
	require.NoError(t, err)
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	sum, found := 0.0, false
	for line := range strings.SplitSeq(string(content), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok && (strings.HasPrefix(rest, "{") || strings.HasPrefix(rest, " ")) {
			value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
			require.NoError(t, err, line)
			sum, found = sum+value, true
		}
	}
	return sum, found
}
