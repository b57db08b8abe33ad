package cli

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/client-go/kubernetes"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/rollout"
)

// strandedSlots returns the slots of a pool whose nodes are not in it (any more): nobody
// but the plugin releases them.
func (p *nodePool) strandedSlots(ctx context.Context, kube kubernetes.Interface) ([]coordinationv1.Lease, error) {
	list, err := kube.CoordinationV1().Leases(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + p.Name})
	if err != nil {
		return nil, fmt.Errorf("pool %s: list its slots: %w", p.Name, err)
	}
	members := map[string]bool{}
	for i := range p.nodes {
		members[p.nodes[i].Name] = true
	}
	return slices.DeleteFunc(list.Items, func(lease coordinationv1.Lease) bool { return members[slotHolder(&lease)] }), nil
}

func slotHolder(lease *coordinationv1.Lease) string { return ptr.Deref(lease.Spec.HolderIdentity, "") }

// releaseStranded deletes the slots of nodes that have left the pool.
func (p *nodePool) releaseStranded(ctx context.Context, kube kubernetes.Interface) error {
	stranded, err := p.strandedSlots(ctx, kube)
	if err != nil {
		return err
	}
	for i := range stranded {
		lease := &stranded[i]
		options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID}}
		err := kube.CoordinationV1().Leases(rollout.Namespace).Delete(ctx, lease.Name, options)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("pool %s: release slot %s of node %s, which is not in the pool: %w", p.Name, lease.Name, slotHolder(lease), err)
		}
	}
	return nil
}

// showStranded says which slots of a pool are held by nodes outside of it. status goes on
// without the right to list them.
func (o *rolloutStatusOptions) showStranded(ctx context.Context, c *clients, pools []*nodePool) {
	for _, p := range pools {
		stranded, err := p.strandedSlots(ctx, c.kube)
		if err != nil {
			o.warn("%v", err)
			continue
		}
		for i := range stranded {
			o.warn("pool %s: slot %s is held by node %s, which is not in the pool; kubectl guard rollout resume --pool %s releases it",
				p.Name, stranded[i].Name, orNone(slotHolder(&stranded[i])), p.Name)
		}
	}
}

// onlyThese leaves out the nodes that have joined the pool since its nodes were counted:
// what the command waits for must not grow while it waits.
func onlyThese(nodes []corev1.Node, names map[string]bool) []corev1.Node {
	return slices.DeleteFunc(nodes, func(node corev1.Node) bool { return !names[node.Name] })
}

func namesOf(nodes []corev1.Node) map[string]bool {
	names := map[string]bool{}
	for i := range nodes {
		names[nodes[i].Name] = true
	}
	return names
}
