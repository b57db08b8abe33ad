// Package nodes asks the kubelets of a cluster what their guards know, through
// the API server's proxy to them. A kubelet that does not answer costs its own
// timeout and nothing else: every node gets an Answer.
package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/pager"

	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// DefaultTimeout is how long one kubelet may take to answer.
	DefaultTimeout = 5 * time.Second
	// parallel bounds how many kubelets are asked at a time. Each request is a
	// connection from the API server to a kubelet, and a list of its pods.
	parallel = 32
)

// State says what came of asking a node. The zero value is invalid.
type State string

const (
	// Guarded: the kubelet has the guard and answered.
	Guarded State = "Guarded"
	// Unguarded: the kubelet answered that it does not know the question, as the
	// stock kubelet does.
	Unguarded State = "Unguarded"
	// NoAnswer: no usable answer came within the timeout.
	NoAnswer State = "NoAnswer"
	// Forbidden: the user may not use the proxy to this node.
	Forbidden State = "Forbidden"
)

// Answer is what is known about one node.
type Answer struct {
	Node  corev1.Node
	State State
	// Detail says why there is no list; empty when the state is Guarded.
	Detail string
	// Pods is nil unless the state is Guarded.
	Pods *guard.PodList
	// Waiting are the pods of the node whose start waits for a held pod.
	Waiting []WaitingPod
}

// WaitingPod is a pod that does not start on its node while a held pod of the same name
// runs there that uses what only one of them may use.
type WaitingPod struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	// HeldUID is the held pod.
	HeldUID types.UID `json:"heldUID"`
	// Shares is what both would use, for people.
	Shares []string  `json:"shares,omitempty"`
	Since  time.Time `json:"since"`
}

// Asker asks kubelets. It is safe for concurrent use.
type Asker struct {
	Client kubernetes.Interface
	// Timeout of one kubelet; DefaultTimeout when zero.
	Timeout time.Duration
}

// All asks every node of the cluster, in the order of their names. The error is
// about the list of nodes.
func (a Asker) All(ctx context.Context) ([]Answer, error) {
	var list []corev1.Node
	err := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return a.Client.CoreV1().Nodes().List(ctx, options)
	}).EachListItem(ctx, metav1.ListOptions{}, func(object runtime.Object) error {
		list = append(list, *object.(*corev1.Node))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	return a.Ask(ctx, list), nil
}

// Named asks the nodes with the given names. A node that does not exist is an
// error.
func (a Asker) Named(ctx context.Context, names ...string) ([]Answer, error) {
	list := make([]corev1.Node, len(names))
	for i, name := range names {
		node, err := a.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("get node %s: %w", name, err)
		}
		list[i] = *node
	}
	return a.Ask(ctx, list), nil
}

// Query asks the named nodes, or all. An empty name does not count.
func (a Asker) Query(ctx context.Context, names ...string) ([]Answer, error) {
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return name == "" })
	if len(names) > 0 {
		return a.Named(ctx, names...)
	}
	return a.All(ctx)
}

// Ask returns one answer per node, in the same order.
func (a Asker) Ask(ctx context.Context, list []corev1.Node) []Answer {
	answers := make([]Answer, len(list))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i := range list {
		group.Go(func() error {
			answers[i] = a.ask(ctx, list[i])
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	return answers
}

func (a Asker) ask(ctx context.Context, node corev1.Node) Answer {
	answer := Answer{Node: node}
	timeout := a.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	result := a.Client.CoreV1().RESTClient().Get().
		Resource("nodes").Name(node.Name).SubResource("proxy").
		Suffix(strings.TrimPrefix(guard.PodsPath, "/")).
		// A busy API server is asked again by who runs the command, not for as
		// long as it likes.
		MaxRetries(0).
		Do(ctx)
	// Error, unlike Raw, has the message of the API server.
	err := result.Error()
	switch {
	case err == nil:
	case apierrors.IsNotFound(err):
		answer.State, answer.Detail = Unguarded, "the kubelet has no guard"
		return answer
	case apierrors.IsForbidden(err):
		answer.State, answer.Detail = Forbidden, err.Error()
		return answer
	case errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		answer.State, answer.Detail = NoAnswer, fmt.Sprintf("no answer within %s", timeout)
		return answer
	default:
		answer.State, answer.Detail = NoAnswer, strings.TrimSpace(serverMessage(err))
		return answer
	}
	body, err := result.Raw()
	if err != nil {
		answer.State, answer.Detail = NoAnswer, err.Error()
		return answer
	}
	var pods guard.PodList
	if err := json.Unmarshal(body, &pods); err != nil {
		answer.State, answer.Detail = NoAnswer, fmt.Sprintf("the answer to GET %s is not understood: %v", guard.PodsPath, err)
		return answer
	}
	// A kubelet of an earlier release does not tell of them.
	var waiting struct {
		Waiting []WaitingPod `json:"waiting"`
	}
	if err := json.Unmarshal(body, &waiting); err != nil {
		answer.State, answer.Detail = NoAnswer, fmt.Sprintf("the answer to GET %s is not understood: %v", guard.PodsPath, err)
		return answer
	}
	answer.State, answer.Pods, answer.Waiting = Guarded, &pods, waiting.Waiting
	return answer
}

// serverMessage prefers what the proxy said over what client-go makes of its
// status code.
func serverMessage(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		if details := status.Status().Details; details != nil {
			for _, cause := range details.Causes {
				if cause.Type == metav1.CauseTypeUnexpectedServerResponse && cause.Message != "" {
					return cause.Message
				}
			}
		}
	}
	return err.Error()
}
