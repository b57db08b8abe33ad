// Package kubelet queries the kubelet of the node.
package kubelet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	timeout = 8 * time.Second
	// protectedTimeout bounds the query for protected pods alone, which a rollback waits for.
	protectedTimeout = 4 * time.Second
	// maxAnswer bounds what is read; the metrics of a node with many pods are a few MB.
	maxAnswer = 64 << 20
)

// Answer is what a kubelet says about itself.
type Answer struct {
	// Version of the kubelet.
	Version string
	// Guarded: it has the guard.
	Guarded bool
	// Mode of the guard; empty for a kubelet without.
	Mode guard.Mode
	// Pods are the protected pods; nil for a kubelet without the guard.
	Pods *guard.PodList
	// Stops is how many containers the process of the kubelet has stopped, NotCounted when
	// it does not say.
	Stops int
}

// NotCounted is the number of stops of a kubelet that does not count them.
const NotCounted = -1

// Pods are the pods of a kubelet.
type Pods struct {
	// Items are the pods as the kubelet has them, static ones included. The status of one
	// from the API server is the one that the kubelet has read there.
	Items []corev1.Pod
	// FailedProbes are the containers whose liveness or startup probe has failed since the
	// kubelet was started.
	FailedProbes map[containers.Key]bool
}

// ForbiddenError means that a right is missing.
type ForbiddenError struct{ Path, Message string }

func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("the kubelet refuses GET %s: %s; apply manifests/rollout, and see that the kubelet takes tokens (authentication.webhook) and asks the API server (authorization.mode Webhook)", e.Path, e.Message)
}

// ErrNotListening means that nothing listens at the port of the kubelet. It opens the
// port when it starts to work, and ends when it cannot.
var ErrNotListening = errors.New("nothing listens at the port of the kubelet")

// ErrOtherCertificate means that what listens shows another certificate than the pinned one.
var ErrOtherCertificate = errors.New("another certificate than before the change: it gets no token")

// Client asks one kubelet at its authenticated port.
type Client struct {
	// Address is host:port.
	Address string
	// TokenFile has the token of the service account. It is read for each request.
	TokenFile string
	// Pin is the SHA-256 checksum of the certificate that the kubelet must show before it
	// gets the token, unless Identity knows it. After an answer it is that of the answer.
	Pin string
	// Identity is the kubelet. Nil: without a pin the first one that responds is taken.
	Identity *Identity
}

// Ask returns what the kubelet reports. An error means that it is not healthy, or that
// this is unknown.
func (c *Client) Ask(ctx context.Context) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, shown := c.client()
	health, err := c.get(ctx, client, "/healthz")
	if err != nil {
		return Answer{}, err
	}
	if strings.TrimSpace(string(health)) != "ok" {
		return Answer{}, fmt.Errorf("the kubelet answers GET /healthz with %.100q", health)
	}
	metrics, err := c.get(ctx, client, "/metrics")
	if err != nil {
		return Answer{}, err
	}
	answer, err := parseMetrics(metrics)
	if err != nil {
		return Answer{}, fmt.Errorf("GET /metrics of the kubelet: %w", err)
	}
	if answer.Guarded {
		answer.Pods = &guard.PodList{}
		if err := c.getJSON(ctx, client, guard.PodsPath, answer.Pods); err != nil {
			return Answer{}, err
		}
	}
	c.Pin = *shown
	return answer, nil
}

// Protected returns the protected pods and the mode of the guard, and nil for a kubelet
// that has no guard. It does not ask whether the kubelet is healthy.
func (c *Client) Protected(ctx context.Context) (*guard.PodList, error) {
	ctx, cancel := context.WithTimeout(ctx, protectedTimeout)
	defer cancel()
	client, _ := c.client()
	data, err := c.get(ctx, client, guard.PodsPath)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNotListening
	}
	if err != nil {
		// A kubelet without the guard refuses a path that it does not know. Its metrics say
		// that it is one.
		metrics, metricsErr := c.get(ctx, client, "/metrics")
		if metricsErr != nil {
			return nil, err
		}
		if answer, metricsErr := parseMetrics(metrics); metricsErr != nil || answer.Guarded {
			return nil, err
		}
		return nil, nil
	}
	list := &guard.PodList{}
	if err := json.Unmarshal(data, list); err != nil {
		return nil, fmt.Errorf("GET %s of the kubelet: %w", guard.PodsPath, err)
	}
	return list, nil
}

// Pods returns the pods of the kubelet.
func (c *Client) Pods(ctx context.Context) (Pods, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, _ := c.client()
	list := corev1.PodList{}
	if err := c.getJSON(ctx, client, "/pods", &list); err != nil {
		return Pods{}, err
	}
	metrics, err := c.get(ctx, client, "/metrics/probes")
	if err != nil {
		return Pods{}, err
	}
	failed, err := failedProbes(metrics)
	if err != nil {
		return Pods{}, fmt.Errorf("GET /metrics/probes of the kubelet: %w", err)
	}
	return Pods{Items: list.Items, FailedProbes: failed}, nil
}

// client speaks to the kubelet only: to who shows the pinned certificate, or is known by
// Identity. shown is the checksum of the certificate that was shown.
func (c *Client) client() (client *http.Client, shown *string) {
	pin := c.Pin
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			raw, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// Most kubelets sign their certificates themselves: who it is is checked below.
			conn := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
			if err := conn.HandshakeContext(ctx); err != nil {
				return nil, errors.Join(err, raw.Close())
			}
			certificate := conn.ConnectionState().PeerCertificates[0].Raw
			sum := sha256.Sum256(certificate)
			got := hex.EncodeToString(sum[:])
			switch {
			case got == pin:
			case c.Identity != nil:
				err = c.Identity.Check(raw.LocalAddr(), certificate)
			case pin != "":
				err = ErrOtherCertificate
			}
			if err != nil {
				return nil, errors.Join(err, raw.Close())
			}
			pin = got
			return conn, nil
		},
	}
	return &http.Client{Transport: transport}, &pin
}

func (c *Client) get(ctx context.Context, client *http.Client, path string) ([]byte, error) {
	token, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("the token of the service account: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.Address+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("the kubelet does not answer: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("the kubelet's answer to GET %s: %w", path, err)
	}
	switch response.StatusCode {
	case http.StatusOK:
		return body, nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, &ForbiddenError{Path: path, Message: fmt.Sprintf("%.200s", strings.TrimSpace(string(body)))}
	default:
		return nil, fmt.Errorf("the kubelet answers GET %s with %s: %.200s", path, response.Status, strings.TrimSpace(string(body)))
	}
}

func (c *Client) getJSON(ctx context.Context, client *http.Client, path string, into any) error {
	data, err := c.get(ctx, client, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("GET %s of the kubelet: %w", path, err)
	}
	return nil
}

func parseText(metrics []byte) (map[string]*dto.MetricFamily, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	return parser.TextToMetricFamilies(bytes.NewReader(metrics))
}

func parseMetrics(text []byte) (Answer, error) {
	families, err := parseText(text)
	if err != nil {
		return Answer{}, err
	}
	var answer Answer
	if build := series(families["kubernetes_build_info"]); build != nil {
		answer.Version = build["git_version"]
	}
	if answer.Version == "" {
		return Answer{}, errors.New("no kubernetes_build_info: this does not look like a kubelet")
	}
	answer.Stops = stops(families)
	if info := series(families["kubelet_guard_info"]); info != nil {
		answer.Guarded, answer.Mode = true, guard.Mode(info["mode"])
	}
	return answer, nil
}

// stops returns how many containers a kubelet has stopped. It counts calls of the
// runtime; one that failed has stopped nothing. A kind of call has no series before its
// first one.
func stops(families map[string]*dto.MetricFamily) int {
	const calls, errors = "kubelet_runtime_operations_total", "kubelet_runtime_operations_errors_total"
	if len(families[calls].GetMetric()) == 0 {
		return NotCounted
	}
	sum := func(name string) (n int) {
		for _, metric := range families[name].GetMetric() {
			if labelsOf(metric)["operation_type"] == "stop_container" {
				n += int(metric.GetCounter().GetValue())
			}
		}
		return n
	}
	return sum(calls) - sum(errors)
}

func failedProbes(text []byte) (map[containers.Key]bool, error) {
	families, err := parseText(text)
	if err != nil {
		return nil, err
	}
	failed := map[containers.Key]bool{}
	for _, metric := range families["prober_probe_total"].GetMetric() {
		labels := labelsOf(metric)
		if metric.GetCounter().GetValue() > 0 && labels["result"] == "failed" && (labels["probe_type"] == "Liveness" || labels["probe_type"] == "Startup") {
			failed[containers.Key{Pod: types.UID(labels["pod_uid"]), Name: labels["container"]}] = true
		}
	}
	return failed, nil
}

// series returns the labels of the first series of a family with the value 1.
func series(family *dto.MetricFamily) map[string]string {
	for _, metric := range family.GetMetric() {
		if metric.GetGauge().GetValue() != 1 {
			continue
		}
		return labelsOf(metric)
	}
	return nil
}

func labelsOf(metric *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, pair := range metric.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	return labels
}
