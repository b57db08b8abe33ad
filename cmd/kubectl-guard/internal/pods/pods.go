// Package pods joins what kubelets report about pods with the pods' objects in the API.
package pods

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// ObjectState is what the API has under the name of a pod that a kubelet
// knows. The zero value is invalid.
type ObjectState string

const (
	// Present: the pod's own object.
	Present ObjectState = "Present"
	// Gone: nothing.
	Gone ObjectState = "Gone"
	// Replaced: another pod of the same name, its successor.
	Replaced ObjectState = "Replaced"
	// Unknown: it could not be read.
	Unknown ObjectState = "Unknown"
)

// Successor is the pod that now has the name of a pod whose object is gone.
type Successor struct {
	UID   types.UID       `json:"uid"`
	Node  string          `json:"node,omitempty"`
	Phase corev1.PodPhase `json:"phase,omitempty"`
}

// Pod is a pod as its kubelet knows it, with what the API has under its
// name.
type Pod struct {
	Node           string `json:"node"`
	guard.PodState `json:",inline"`
	Object         ObjectState `json:"object"`
	// ObjectError is why Object is Unknown.
	ObjectError string     `json:"objectError,omitempty"`
	Successor   *Successor `json:"successor,omitempty"`
	// Waiting is the pod that does not start on the node before this one has ended.
	Waiting *guard.WaitingState `json:"waiting,omitempty"`

	// Own is the pod's own object, nil unless Object is Present.
	Own *corev1.Pod `json:"-"`
}

// Key is NAMESPACE/NAME.
func (p Pod) Key() string { return p.Namespace + "/" + p.Name }

// BoundTo is the node that the pod was bound to, which the kubelet that runs it knows
// best: its own name may have changed since. Empty when nobody knows.
func (p Pod) BoundTo() string {
	if p.NodeName == "" && p.Own != nil {
		return p.Own.Spec.NodeName
	}
	return cmp.Or(p.NodeName, p.Node)
}

// Select returns the pods that match, in the order of the nodes and then of the
// kubelet, and the nodes that have no list although they might be guarded.
func Select(responses []nodes.Response, match func(guard.PodState) bool) (found []Pod, silent []nodes.Response) {
	for _, response := range responses {
		if response.Pods == nil {
			if response.State != nodes.Unguarded {
				silent = append(silent, response)
			}
			continue
		}
		for _, pod := range response.Pods.Items {
			if match(pod) {
				found = append(found, Pod{Node: response.Node.Name, PodState: pod, Object: Unknown, Waiting: successorThatWaits(response.Pods, pod.UID)})
			}
		}
	}
	return found, silent
}

// successorThatWaits returns the pod that waits for the held one, or nil.
func successorThatWaits(list *guard.PodList, held types.UID) *guard.WaitingState {
	if i := slices.IndexFunc(list.Waiting, func(w guard.WaitingState) bool { return w.HeldUID == held }); i >= 0 {
		return &list.Waiting[i]
	}
	return nil
}

// ObjectText is what the table has in its column OBJECT.
func (p Pod) ObjectText() string {
	if p.Waiting != nil && p.Object == Replaced {
		return string(p.Object) + ", waits"
	}
	return string(p.Object)
}

// LookUpObjects fills in what the API has.
func LookUpObjects(ctx context.Context, kube kubernetes.Interface, pods []Pod) {
	factory.InParallel(len(pods), func(i int) { LookUpObject(ctx, kube, &pods[i]) })
}

// LookUpObject fills in what the API has about one pod.
func LookUpObject(ctx context.Context, kube kubernetes.Interface, pod *Pod) {
	object, err := kube.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		pod.Object = Gone
	case err != nil:
		pod.Object, pod.ObjectError = Unknown, err.Error()
	case object.UID == pod.UID:
		pod.Object, pod.Own = Present, object
	default:
		pod.Object = Replaced
		pod.Successor = &Successor{UID: object.UID, Node: object.Spec.NodeName, Phase: object.Status.Phase}
	}
}

// ParseArgument accepts NAME and pod/NAME.
func ParseArgument(argument string) (string, error) {
	kind, name, found := strings.Cut(argument, "/")
	if !found {
		kind, name = "pod", argument
	}
	switch kind {
	case "pod", "pods", "po":
	default:
		return "", fmt.Errorf("%q is not a pod; give NAME or pod/NAME", argument)
	}
	if name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("%q has no pod name; give NAME or pod/NAME", argument)
	}
	return name, nil
}
