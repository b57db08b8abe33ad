// Package nodes queries the kubelets of a cluster for what their guards know, through
// the API server's proxy to them. A kubelet that does not respond costs its own
// timeout and nothing else: every node gets a Response.
package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/paging"
)

const (
	// DefaultTimeout is how long one kubelet may take to respond.
	DefaultTimeout = 5 * time.Second
	// parallel bounds how many kubelets are queried at a time. Each request is a
	// connection from the API server to a kubelet, and a list of its pods.
	parallel = 32
)

// State is the outcome of a query. The zero value is invalid.
type State string

const (
	// Guarded: the kubelet has the guard and responded.
	Guarded State = "Guarded"
	// Unguarded: the kubelet does not know the path, as the stock kubelet.
	Unguarded State = "Unguarded"
	// NoAnswer: no usable response came within the timeout.
	NoAnswer State = "NoAnswer"
	// Forbidden: the user may not use the proxy to this node.
	Forbidden State = "Forbidden"
)

// Response is what is known about one node.
type Response struct {
	Node  corev1.Node
	State State
	// Detail is why there is no list; empty when the state is Guarded.
	Detail string
	// Pods is nil unless the state is Guarded.
	Pods *guard.PodList
}

// Querier queries kubelets. It is safe for concurrent use.
type Querier struct {
	Client kubernetes.Interface
	// Timeout of one kubelet; DefaultTimeout when zero.
	Timeout time.Duration
}

// All queries every node of the cluster, in the order of their names. The error is
// about the list of nodes.
func (a Querier) All(ctx context.Context) ([]Response, error) {
	var list []corev1.Node
	_, err := paging.Each(ctx, metav1.ListOptions{}, a.Client.CoreV1().Nodes().List, func(page *corev1.NodeList) bool {
		list = append(list, page.Items...)
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	return a.Each(ctx, list), nil
}

// Named queries the nodes with the given names. A node that does not exist is an
// error.
func (a Querier) Named(ctx context.Context, names ...string) ([]Response, error) {
	list := make([]corev1.Node, len(names))
	for i, name := range names {
		node, err := a.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("get node %s: %w", name, err)
		}
		list[i] = *node
	}
	return a.Each(ctx, list), nil
}

// Query queries the named nodes, or all. An empty name does not count.
func (a Querier) Query(ctx context.Context, names ...string) ([]Response, error) {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "" })
	if len(names) > 0 {
		return a.Named(ctx, names...)
	}
	return a.All(ctx)
}

// Each returns one response per node, in the same order.
func (a Querier) Each(ctx context.Context, list []corev1.Node) []Response {
	responses := make([]Response, len(list))
	// Not ctx, with which each query ends by itself: every node gets a response.
	workqueue.ParallelizeUntil(context.Background(), parallel, len(list), func(i int) { responses[i] = a.queryOne(ctx, list[i]) })
	return responses
}

func (a Querier) queryOne(ctx context.Context, node corev1.Node) Response {
	response := Response{Node: node}
	timeout := a.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	result := a.Client.CoreV1().RESTClient().Get().
		Resource("nodes").Name(node.Name).SubResource("proxy").
		Suffix(strings.TrimPrefix(guard.PodsPath, "/")).
		// The user retries when the API server is busy.
		MaxRetries(0).
		Do(ctx)
	var list guard.PodList
	// Error, unlike Raw, has the message of the API server.
	err := result.Error()
	if err == nil {
		err = decode(result, &list)
	}
	switch {
	case err == nil:
		response.State, response.Pods = Guarded, &list
	case apierrors.IsNotFound(err):
		response.State, response.Detail = Unguarded, "the kubelet has no guard"
	case apierrors.IsForbidden(err):
		response.State, response.Detail = Forbidden, err.Error()
	case errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		response.State, response.Detail = NoAnswer, fmt.Sprintf("no response within %s", timeout)
	default:
		response.State, response.Detail = NoAnswer, strings.TrimSpace(serverMessage(err))
	}
	return response
}

func decode(result rest.Result, into any) error {
	body, err := result.Raw()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("the response to GET %s is not understood: %w", guard.PodsPath, err)
	}
	return nil
}

// serverMessage prefers the message of the proxy over what client-go makes of its
// status code.
func serverMessage(err error) string {
	if cause, ok := apierrors.StatusCause(err, metav1.CauseTypeUnexpectedServerResponse); ok && cause.Message != "" {
		return cause.Message
	}
	return err.Error()
}
