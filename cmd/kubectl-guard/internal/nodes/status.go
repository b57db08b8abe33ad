package nodes

import (
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/pkg/kubelet/guard"
)

// Shared names what two pods would use, for humans.
func Shared(waiting *guard.WaitingState) string {
	if len(waiting.Shares) == 0 {
		return "what only one of them may use"
	}
	return strings.Join(waiting.Shares, ", ")
}

// WarnUnreachable lists the nodes whose pods are not shown.
func WarnUnreachable(warn func(string, ...any), silent []Response, queried int) {
	if len(silent) == 0 {
		return
	}
	const shown = 5
	var names []string
	for i, response := range silent {
		if i == shown {
			names = append(names, fmt.Sprintf("and %d more", len(silent)-shown))
			break
		}
		names = append(names, fmt.Sprintf("%s (%s)", response.Node.Name, response.State))
	}
	warn("nodes that did not report what they hold, %d of %d: %s; see kubectl guard status -o wide", len(silent), queried, strings.Join(names, ", "))
}

// Status is one item of kubectl guard status.
type Status struct {
	Node  string `json:"node"`
	State State  `json:"state"`
	// Detail is why a node has no further figures.
	Detail string `json:"detail,omitempty"`
	// Version of the kubelet.
	Version string     `json:"version"`
	Mode    guard.Mode `json:"mode,omitempty"`
	// Figures are nil unless the node is guarded and responded. Protected includes
	// Held, but not Terminating.
	Protected   *int64 `json:"protected,omitempty"`
	Held        *int64 `json:"held,omitempty"`
	Terminating *int64 `json:"terminating,omitempty"`
	// HeldByCause counts holds; a pod may be held for several causes.
	HeldByCause map[string]int64 `json:"heldByCause,omitempty"`
	OldestHold  *metav1.Time     `json:"oldestHold,omitempty"`
}

// StatusOf counts what a response has.
func StatusOf(response Response) Status {
	status := Status{
		Node: response.Node.Name, State: response.State, Detail: response.Detail,
		Version: response.Node.Status.NodeInfo.KubeletVersion,
	}
	if response.Pods == nil {
		return status
	}
	// The kubelet itself is newer than what it last wrote to the API.
	status.Version, status.Mode = response.Pods.Version, response.Pods.Mode
	var protected, held, terminating int64
	var oldest time.Time
	for _, pod := range response.Pods.Items {
		switch pod.State {
		case guard.Terminating:
			terminating++
		case guard.Held:
			held++
			protected++
		default:
			protected++
		}
		for _, hold := range pod.Holds {
			if status.HeldByCause == nil {
				status.HeldByCause = map[string]int64{}
			}
			status.HeldByCause[string(hold.Cause)]++
			if oldest.IsZero() || hold.Since.Before(oldest) {
				oldest = hold.Since
			}
		}
	}
	status.Protected, status.Held, status.Terminating = &protected, &held, &terminating
	if !oldest.IsZero() {
		status.OldestHold = &metav1.Time{Time: oldest}
	}
	return status
}
