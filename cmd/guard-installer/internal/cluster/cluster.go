// Package cluster is what an installer reads from the API server and writes to it.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/rollout"
)

// Cluster is the cluster, as an installer of a pool on a node sees it. It is not safe for
// concurrent use.
type Cluster struct {
	// Client bounds each request.
	Client kubernetes.Interface
	Pool   rollout.Pool
	// NodeName is the node of the installer.
	NodeName string

	version   string
	versionAt time.Time
}

// Node returns the Node.
func (c *Cluster) Node(ctx context.Context) (*corev1.Node, error) {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, c.NodeName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", c.NodeName, err)
	}
	return node, nil
}

// Pod returns a pod, nil when there is none of that name.
func (c *Cluster) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod, err := c.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get pod %s/%s: %w", namespace, name, err)
	}
	return pod, nil
}

// Heartbeat returns when the kubelet last renewed the lease of its node.
func (c *Cluster) Heartbeat(ctx context.Context) (time.Time, error) {
	lease, err := c.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, c.NodeName, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, fmt.Errorf("get the lease of node %s: %w", c.NodeName, err)
	}
	return ptr.Deref(lease.Spec.RenewTime, metav1.MicroTime{}).Time, nil
}

// versionFor is how long the version of the API server is remembered: each
// inspection of a node needs it.
const versionFor = 10 * time.Minute

// ServerVersion returns the version of the API server, at most 10 minutes old.
func (c *Cluster) ServerVersion(context.Context) (string, error) {
	if c.version != "" && time.Since(c.versionAt) < versionFor {
		return c.version, nil
	}
	info, err := c.Client.Discovery().ServerVersion()
	if err != nil {
		return "", fmt.Errorf("the version of the API server: %w", err)
	}
	c.version, c.versionAt = info.GitVersion, time.Now()
	return c.version, nil
}

// Report writes the report to the Node. mark sets the label of a node where the roll-out
// failed, or removes it; nil leaves it.
func (c *Cluster) Report(ctx context.Context, report rollout.Report, mark *bool) error {
	metadata := map[string]any{"annotations": map[string]any{rollout.ReportAnnotation: report.Annotation()}}
	if mark != nil {
		var value any // null removes
		if *mark {
			value = rollout.StateFailed
		}
		metadata["labels"] = map[string]any{rollout.StateLabel: value}
	}
	if err := c.patch(ctx, types.MergePatchType, map[string]any{"metadata": metadata}); err != nil {
		return fmt.Errorf("write the report to node %s: %w", c.NodeName, err)
	}
	return nil
}

func (c *Cluster) patch(ctx context.Context, kind types.PatchType, patch any) error {
	data, err := json.Marshal(patch)
	if err == nil {
		_, err = c.Client.CoreV1().Nodes().Patch(ctx, c.NodeName, kind, data, metav1.PatchOptions{FieldManager: rollout.Name})
	}
	return err
}

// Untaint removes the taint of a node that is not guarded yet. When the taints are not those
// of the node that was read it is an error.
func (c *Cluster) Untaint(ctx context.Context, node *corev1.Node) error {
	taints := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool { return t.Key == rollout.UnguardedTaint })
	if len(taints) == len(node.Spec.Taints) {
		return nil
	}
	if err := c.patch(ctx, types.JSONPatchType, []map[string]any{
		{"op": "test", "path": "/spec/taints", "value": node.Spec.Taints},
		{"op": "replace", "path": "/spec/taints", "value": taints},
	}); err != nil {
		return fmt.Errorf("remove the taint %s of node %s: %w", rollout.UnguardedTaint, c.NodeName, err)
	}
	return nil
}

// Event writes an event about the Node.
func (c *Cluster) Event(ctx context.Context, kind, reason, message string) error {
	now := metav1.Now()
	_, err := c.Client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: c.NodeName + ".rollout-", Namespace: metav1.NamespaceDefault},
		// The kubelet names its node like that, and kubectl describe looks for it.
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: c.NodeName, UID: types.UID(c.NodeName)},
		Type:           kind, Reason: reason, Message: message[:min(len(message), 1000)],
		Source:         corev1.EventSource{Component: rollout.Name, Host: c.NodeName},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("write an event about node %s: %w", c.NodeName, err)
	}
	return nil
}
