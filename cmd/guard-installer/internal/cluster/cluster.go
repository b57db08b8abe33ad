// Package cluster is what an installer asks the API server and tells it.
package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/rollout"
)

// timeout bounds every call.
const timeout = 10 * time.Second

// Cluster is the cluster, as an installer of a pool on a node sees it.
type Cluster struct {
	Client kubernetes.Interface
	Pool   rollout.Pool
	// NodeName is the node of the installer.
	NodeName string
	// PodName is the installer's own.
	PodName string
}

// Node returns the Node.
func (c *Cluster) Node(ctx context.Context) (*corev1.Node, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	node, err := c.Client.CoreV1().Nodes().Get(ctx, c.NodeName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", c.NodeName, err)
	}
	return node, nil
}

// Pod returns a pod, nil when there is none of that name.
func (c *Cluster) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
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
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	lease, err := c.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, c.NodeName, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, fmt.Errorf("get the lease of node %s: %w", c.NodeName, err)
	}
	if lease.Spec.RenewTime == nil {
		return time.Time{}, nil
	}
	return lease.Spec.RenewTime.Time, nil
}

// ServerVersion returns the version of the API server.
func (c *Cluster) ServerVersion(context.Context) (string, error) {
	info, err := c.Client.Discovery().ServerVersion()
	if err != nil {
		return "", fmt.Errorf("the version of the API server: %w", err)
	}
	return info.GitVersion, nil
}

// MayBegin returns "" when the roll-out still asks for the request, is not paused and
// stands still at no other node, and otherwise why nothing may begin.
func (c *Cluster) MayBegin(ctx context.Context, requestID string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	name := rollout.DaemonSetName(c.Pool.Name)
	ds, err := c.Client.AppsV1().DaemonSets(rollout.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Sprintf("the DaemonSet %s/%s is gone", rollout.Namespace, name), nil
	}
	if err != nil {
		return "", fmt.Errorf("get the DaemonSet %s/%s: %w", rollout.Namespace, name, err)
	}
	if rollout.Paused(ds) {
		return "the roll-out is paused (kubectl guard rollout resume)", nil
	}
	request, err := rollout.RequestOf(ds)
	if err != nil {
		return "", err
	}
	if request.ID() != requestID {
		return "the roll-out asks for something else meanwhile; this pod will be replaced", nil
	}
	return c.stopped(ctx, requestID)
}

// stopped says at which other node the roll-out stands still. Without it, as many nodes
// could fail as there are slots. What failed with an earlier request stops nothing.
func (c *Cluster) stopped(ctx context.Context, requestID string) (string, error) {
	leases, err := c.Client.CoordinationV1().Leases(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + c.Pool.Name})
	if err != nil {
		return "", fmt.Errorf("list the slots of pool %s: %w", c.Pool.Name, err)
	}
	for i := range leases.Items {
		name := holder(&leases.Items[i])
		if name == "" || name == c.NodeName {
			continue
		}
		node, err := c.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("get node %s, which has a slot of pool %s: %w", name, c.Pool.Name, err)
		}
		report, err := rollout.ReportOf(node)
		if err != nil || report == nil || report.RequestID != requestID {
			continue // it says nothing about this request
		}
		if report.Phase == rollout.Refused || report.Phase.Stopped() && !rollout.Resumed(node, report.Attempt) {
			return fmt.Sprintf("the roll-out stands still at node %s (%s)", name, report.Phase), nil
		}
	}
	return "", nil
}

// TakeSlot takes one of the slots of the pool, or keeps the one that the node has. When
// it gets none it returns the nodes that have them.
func (c *Cluster) TakeSlot(ctx context.Context) (taken bool, holders []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	leases := make([]*coordinationv1.Lease, c.Pool.MaxUnavailable)
	for slot := range leases {
		lease, err := c.Client.CoordinationV1().Leases(rollout.Namespace).Get(ctx, rollout.SlotName(c.Pool.Name, slot), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return false, nil, fmt.Errorf("get slot %d of pool %s: %w", slot, c.Pool.Name, err)
		}
		if leases[slot] = lease; holder(lease) == c.NodeName {
			return true, nil, nil
		}
	}
	for slot, lease := range leases {
		if lease != nil && holder(lease) != "" {
			gone, err := c.gone(ctx, holder(lease))
			if err != nil {
				return false, nil, err
			}
			if !gone {
				holders = append(holders, holder(lease))
				continue
			}
		}
		err := c.hold(ctx, slot, lease)
		if err == nil {
			return true, nil, nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return false, nil, fmt.Errorf("take slot %d of pool %s: %w", slot, c.Pool.Name, err)
		}
	}
	return false, holders, nil
}

func (c *Cluster) hold(ctx context.Context, slot int, lease *coordinationv1.Lease) error {
	now := metav1.NowMicro()
	leases := c.Client.CoordinationV1().Leases(rollout.Namespace)
	if lease == nil {
		_, err := leases.Create(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: rollout.Namespace, Name: rollout.SlotName(c.Pool.Name, slot),
				Labels: map[string]string{rollout.NameLabel: rollout.Name, rollout.PoolLabel: c.Pool.Name},
			},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(c.NodeName), AcquireTime: &now},
		}, metav1.CreateOptions{})
		return err
	}
	lease = lease.DeepCopy()
	lease.Spec.HolderIdentity, lease.Spec.AcquireTime = ptr.To(c.NodeName), &now
	_, err := leases.Update(ctx, lease, metav1.UpdateOptions{})
	return err
}

// gone reports whether there is no such Node. A node that is only away keeps its slot.
func (c *Cluster) gone(ctx context.Context, node string) (bool, error) {
	_, err := c.Client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err == nil {
		return false, nil
	}
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	return false, fmt.Errorf("get node %s, which has a slot of pool %s: %w", node, c.Pool.Name, err)
}

// ReleaseSlot gives back what the node has of the slots of the pool, also of slots that
// a smaller MaxUnavailable no longer has.
func (c *Cluster) ReleaseSlot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	leases := c.Client.CoordinationV1().Leases(rollout.Namespace)
	list, err := leases.List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + c.Pool.Name})
	if err != nil {
		return fmt.Errorf("list the slots of pool %s: %w", c.Pool.Name, err)
	}
	for i := range list.Items {
		lease := &list.Items[i]
		if holder(lease) != c.NodeName {
			continue
		}
		lease.Spec.HolderIdentity, lease.Spec.AcquireTime = nil, nil
		if _, err := leases.Update(ctx, lease, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("give back the slot %s: %w", lease.Name, err)
		}
	}
	return nil
}

func holder(lease *coordinationv1.Lease) string { return ptr.Deref(lease.Spec.HolderIdentity, "") }

// Report writes the report to the Node. mark sets the label that says that the roll-out
// failed there, or removes it; nil leaves it.
func (c *Cluster) Report(ctx context.Context, report rollout.Report, mark *bool) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	metadata := map[string]any{"annotations": map[string]any{rollout.ReportAnnotation: report.Annotation()}}
	if mark != nil {
		var value any // null removes
		if *mark {
			value = rollout.StateFailed
		}
		metadata["labels"] = map[string]any{rollout.StateLabel: value}
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	if _, err := c.Client.CoreV1().Nodes().Patch(ctx, c.NodeName, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: rollout.Name}); err != nil {
		return fmt.Errorf("write the report to node %s: %w", c.NodeName, err)
	}
	return nil
}

// Event writes an event about the Node.
func (c *Cluster) Event(ctx context.Context, kind, reason, message string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if len(message) > 1000 {
		message = message[:1000]
	}
	now := metav1.Now()
	_, err := c.Client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: c.NodeName + ".rollout-", Namespace: metav1.NamespaceDefault},
		// The kubelet names its node like that, and kubectl describe looks for it.
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: c.NodeName, UID: types.UID(c.NodeName)},
		Type:           kind, Reason: reason, Message: message,
		Source:         corev1.EventSource{Component: rollout.Name, Host: c.NodeName},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("write an event about node %s: %w", c.NodeName, err)
	}
	return nil
}
