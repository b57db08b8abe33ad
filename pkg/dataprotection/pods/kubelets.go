package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// parallelNodes are queried at a time.
	parallelNodes = 16
	// nodeTimeout is how long one kubelet may take.
	nodeTimeout = 30 * time.Second
	// maxResponse bounds the response of one kubelet, in bytes: 500 pods with claims have a
	// few MiB.
	maxResponse = 256 << 20
	// kubeletPort is the default of a kubelet.
	kubeletPort = "10250"
)

// errUnguarded says that a kubelet has no guard.
var errUnguarded = errors.New("the kubelet has no guard")

// Response is what a node responded.
type Response struct {
	Node string `json:"node"`
	// Version of the kubelet, as v1.37.2+guard.0.1.0.
	Version string `json:"version,omitempty"`
	// Unguarded: the kubelet has no guard.
	Unguarded bool `json:"unguarded,omitempty"`
	// Error says why there is no response; empty with one.
	Error string `json:"error,omitempty"`
	// Protected is how many protected pods the node has, Gone how many of them have no object and
	// run on. Those that end by their deletion, or have, are Ending.
	Protected int `json:"protected"`
	Gone      int `json:"gone"`
	Ending    int `json:"ending,omitempty"`

	// gone are the pods without an object that run on.
	gone []guard.PodState
}

// Kubelets is how kubelets are queried.
type Kubelets struct {
	// Client is that of the API server, whose proxy is used for nodes without an address.
	Client kubernetes.Interface
	// Addresses of nodes, as host or host:port, by name: these kubelets are queried directly,
	// and no others.
	Addresses map[string]string
	// TLS of direct queries: a client certificate, and the CA of the kubelets' certificates.
	TLS rest.TLSClientConfig
}

// Query returns one response per node, sorted by name. The error is about the list of nodes.
func (k Kubelets) Query(ctx context.Context) ([]Response, error) {
	var names []string
	for name := range k.Addresses {
		names = append(names, name)
	}
	query := k.direct
	if len(names) == 0 {
		list, err := k.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, fmt.Errorf("listing nodes: %w", err)
		}
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		query = k.proxied
	}
	slices.Sort(names)
	responses := make([]Response, len(names))
	group := errgroup.Group{}
	group.SetLimit(parallelNodes)
	for i, name := range names {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
			defer cancel()
			body, err := query(ctx, name)
			responses[i] = newResponse(name, body, err)
			return nil
		})
	}
	return responses, group.Wait()
}

// proxied queries a kubelet through the API server.
func (k Kubelets) proxied(ctx context.Context, name string) ([]byte, error) {
	result := k.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(name).SubResource("proxy").
		Suffix(strings.TrimPrefix(guard.PodsPath, "/")).Param(guard.ObjectsQuery, "true").MaxRetries(0).Do(ctx)
	// Error, unlike Raw, has the message of the API server.
	if err := result.Error(); apierrors.IsNotFound(err) {
		return nil, errUnguarded
	} else if cause, ok := apierrors.StatusCause(err, metav1.CauseTypeUnexpectedServerResponse); ok && cause.Message != "" {
		return nil, errors.New(strings.TrimSpace(cause.Message))
	}
	return result.Raw()
}

// direct queries a kubelet at its own port.
func (k Kubelets) direct(ctx context.Context, name string) ([]byte, error) {
	address := k.Addresses[name]
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), kubeletPort)
	}
	transport, err := rest.TransportFor(&rest.Config{Host: "https://" + address, TLSClientConfig: k.TLS})
	if err != nil {
		return nil, err
	}
	target := url.URL{Scheme: "https", Host: address, Path: guard.PodsPath, RawQuery: guard.ObjectsQuery + "=true"}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxResponse:
		return nil, fmt.Errorf("its response has more than %d bytes", maxResponse)
	case response.StatusCode == http.StatusNotFound:
		return nil, errUnguarded
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body[:min(len(body), 500)])))
	}
	return body, nil
}

func newResponse(name string, body []byte, err error) Response {
	r := Response{Node: name}
	if errors.Is(err, errUnguarded) {
		r.Unguarded = true
		return r
	}
	var list guard.PodList
	if err == nil {
		if err = json.Unmarshal(body, &list); err != nil {
			err = fmt.Errorf("its response to GET %s is not understood: %w", guard.PodsPath, err)
		}
	}
	if err != nil {
		r.Error = err.Error()
		return r
	}
	r.Version, r.Protected = list.Version, len(list.Items)
	for _, pod := range list.Items {
		switch {
		case pod.ObjectPresent:
		case pod.State == guard.Terminating:
			r.Ending++
		default:
			r.gone = append(r.gone, pod)
		}
	}
	r.Gone = len(r.gone)
	return r
}
