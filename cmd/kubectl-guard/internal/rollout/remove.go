package rollout

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

// removePool deletes the installers of a pool, and what they wrote to the API. The
// kubelets stay as they are.
func (o *waiter) removePool(ctx context.Context, c *factory.Clients, p *pool.Pool) error {
	foreground := metav1.DeletePropagationForeground
	err := c.Kube.AppsV1().DaemonSets(rollout.Namespace).Delete(ctx, rollout.DaemonSetName(p.Name), metav1.DeleteOptions{PropagationPolicy: &foreground})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("pool %s: delete its DaemonSet: %w", p.Name, err)
	}
	// An installer that still runs would write its report again.
	deadline := o.Now().Add(o.timeout)
	for {
		n, name, on := 0, "", ""
		err := p.EachInstaller(ctx, c.Kube, func(pod *corev1.Pod) { n, name, on = n+1, pod.Name, pool.InstallerNode(pod) })
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if o.Now().After(deadline) {
			return fmt.Errorf("pool %s: installers that are still there %s after they were deleted: %d, such as %s on node %s; run the command again", p.Name, o.timeout, n, name, on)
		}
		if err := o.sleep(ctx); err != nil {
			return err
		}
	}
	leases := c.Kube.CoordinationV1().Leases(rollout.Namespace)
	list, err := leases.List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + p.Name})
	if err != nil {
		return fmt.Errorf("pool %s: list its slots: %w", p.Name, err)
	}
	for _, lease := range list.Items {
		if err := leases.Delete(ctx, lease.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("pool %s: delete slot %s: %w", p.Name, lease.Name, err)
		}
	}
	p.Set = nil
	return pool.UnmarkNodes(ctx, c.Kube, p.Nodes, true)
}
