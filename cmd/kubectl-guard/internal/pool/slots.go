package pool

import (
	"context"
	"fmt"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/rollout"
)

// StrandedSlots returns the slots of a pool whose nodes are not in it (any more): nobody
// but the plugin releases them.
func (p *Pool) StrandedSlots(ctx context.Context, kube kubernetes.Interface) ([]coordinationv1.Lease, error) {
	list, err := kube.CoordinationV1().Leases(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + p.Name})
	if err != nil {
		return nil, fmt.Errorf("pool %s: list its slots: %w", p.Name, err)
	}
	members := map[string]bool{}
	for i := range p.Nodes {
		members[p.Nodes[i].Name] = true
	}
	return slices.DeleteFunc(list.Items, func(lease coordinationv1.Lease) bool { return members[SlotHolder(&lease)] }), nil
}

// SlotHolder returns the node that holds a slot.
func SlotHolder(lease *coordinationv1.Lease) string { return ptr.Deref(lease.Spec.HolderIdentity, "") }

// ReleaseStrandedSlots deletes the slots of nodes that have left the pool.
func (p *Pool) ReleaseStrandedSlots(ctx context.Context, kube kubernetes.Interface) error {
	stranded, err := p.StrandedSlots(ctx, kube)
	if err != nil {
		return err
	}
	for i := range stranded {
		lease := &stranded[i]
		options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID}}
		err := kube.CoordinationV1().Leases(rollout.Namespace).Delete(ctx, lease.Name, options)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("pool %s: release slot %s of node %s, which is not in the pool: %w", p.Name, lease.Name, SlotHolder(lease), err)
		}
	}
	return nil
}
