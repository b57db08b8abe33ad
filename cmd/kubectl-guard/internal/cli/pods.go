package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"k8s.io/client-go/kubernetes"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// lookups bounds how many objects are read at a time.
const lookups = 16

// objectState says what the API has under the name of a pod that a kubelet
// knows. The zero value is invalid.
type objectState string

const (
	// objectPresent: the pod's own object.
	objectPresent objectState = "Present"
	// objectGone: nothing.
	objectGone objectState = "Gone"
	// objectReplaced: another pod of the same name, its successor.
	objectReplaced objectState = "Replaced"
	// objectUnknown: it could not be read.
	objectUnknown objectState = "Unknown"
)

// successor is the pod that now has the name of a pod whose object is gone.
type successor struct {
	UID   types.UID       `json:"uid"`
	Node  string          `json:"node,omitempty"`
	Phase corev1.PodPhase `json:"phase,omitempty"`
}

// knownPod is a pod as its kubelet knows it, with what the API has under its
// name.
type knownPod struct {
	Node           string `json:"node"`
	guard.PodState `json:",inline"`
	Object         objectState `json:"object"`
	// ObjectError says why Object is Unknown.
	ObjectError string     `json:"objectError,omitempty"`
	Successor   *successor `json:"successor,omitempty"`
	// Waiting is the pod that does not start on the node before this one has ended.
	Waiting *nodes.WaitingPod `json:"waiting,omitempty"`

	// object is the pod's own one, nil unless Object is Present.
	object *corev1.Pod
}

func (p knownPod) key() string { return p.Namespace + "/" + p.Name }

// boundTo is the node that the pod was bound to, which the kubelet that runs it knows
// best: its own name may have changed since. Empty when nobody knows.
func (p knownPod) boundTo() string {
	if p.NodeName == "" && p.object != nil {
		return p.object.Spec.NodeName
	}
	return cmp.Or(p.NodeName, p.Node)
}

// podsOf returns the pods that match, in the order of the nodes and then of the
// kubelet, and the nodes that have no list although they might be guarded.
func podsOf(answers []nodes.Answer, match func(guard.PodState) bool) (found []knownPod, silent []nodes.Answer) {
	for _, answer := range answers {
		if answer.Pods == nil {
			if answer.State != nodes.Unguarded {
				silent = append(silent, answer)
			}
			continue
		}
		for _, pod := range answer.Pods.Items {
			if match(pod) {
				found = append(found, knownPod{Node: answer.Node.Name, PodState: pod, Object: objectUnknown, Waiting: successorThatWaits(answer, pod.UID)})
			}
		}
	}
	return found, silent
}

// successorThatWaits returns the pod that waits for the held one, or nil.
func successorThatWaits(answer nodes.Answer, held types.UID) *nodes.WaitingPod {
	for i := range answer.Waiting {
		if answer.Waiting[i].HeldUID == held {
			return &answer.Waiting[i]
		}
	}
	return nil
}

// objectText is what the table has in its column OBJECT.
func (p knownPod) objectText() string {
	if p.Waiting != nil && p.Object == objectReplaced {
		return string(p.Object) + ", waits"
	}
	return string(p.Object)
}

// shared names what two pods would use, for people.
func shared(waiting *nodes.WaitingPod) string {
	if len(waiting.Shares) == 0 {
		return "what only one of them may use"
	}
	return strings.Join(waiting.Shares, ", ")
}

// lookUpObjects fills in what the API has.
func lookUpObjects(ctx context.Context, kube kubernetes.Interface, pods []knownPod) {
	var group errgroup.Group
	group.SetLimit(lookups)
	for i := range pods {
		group.Go(func() error {
			lookUpObject(ctx, kube, &pods[i])
			return nil
		})
	}
	_ = group.Wait() // none of them fails
}

func lookUpObject(ctx context.Context, kube kubernetes.Interface, pod *knownPod) {
	object, err := kube.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		pod.Object = objectGone
	case err != nil:
		pod.Object, pod.ObjectError = objectUnknown, err.Error()
	case object.UID == pod.UID:
		pod.Object, pod.object = objectPresent, object
	default:
		pod.Object = objectReplaced
		pod.Successor = &successor{UID: object.UID, Node: object.Spec.NodeName, Phase: object.Status.Phase}
	}
}

// warnSilent says which nodes are missing from what is shown.
func warnSilent(warn func(string, ...any), silent []nodes.Answer, asked int) {
	if len(silent) == 0 {
		return
	}
	const shown = 5
	var names []string
	for i, answer := range silent {
		if i == shown {
			names = append(names, fmt.Sprintf("and %d more", len(silent)-shown))
			break
		}
		names = append(names, fmt.Sprintf("%s (%s)", answer.Node.Name, answer.State))
	}
	warn("%d of %d nodes did not say what they hold: %s; see kubectl guard status -o wide", len(silent), asked, strings.Join(names, ", "))
}

// podArgument accepts NAME and pod/NAME.
func podArgument(argument string) (string, error) {
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
