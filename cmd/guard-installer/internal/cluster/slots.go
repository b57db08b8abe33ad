package cluster

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/rollout"
)

const (
	// longest is how long a change takes at most, with what comes before and after it. The
	// holder of an older slot may have left the pool.
	longest = 10 * time.Minute
	// triedSlots is how many slots are tried by one TakeSlot: where others are quicker each
	// time, the next one is soon enough.
	triedSlots = 3
	// readHolders is how many holders are read by one TakeSlot.
	readHolders = 3
)

// Turn reports whether it is a node's turn to be changed.
type Turn struct {
	// Slot: the node has one of the slots of its pool.
	Slot bool
	// WaitReason explains why it has none.
	WaitReason string
	// Joined: the node was created after the roll-out was started.
	Joined bool
	// Slots is how many slots the pool has.
	Slots int
	// Unready is how many installers of the pool are not ready: those that wait for a slot,
	// are at work, have failed, or are on a node that is away.
	Unready int
}

// TakeSlot takes one of the slots of the pool for the node, or keeps the one that it has,
// when the roll-out has the request, is not paused and is stopped at no other node.
// refuses: the node cannot be changed; it takes a slot to stop the roll-out, but
// not when it has joined since. The number of requests does not grow with that of slots.
func (c *Cluster) TakeSlot(ctx context.Context, node *corev1.Node, requestID string, refuses bool) (Turn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ds, err := c.daemonSet(ctx, c.Pool.Name)
	switch {
	case err != nil:
		return Turn{}, err
	case ds == nil:
		return Turn{WaitReason: fmt.Sprintf("the DaemonSet %s/%s is gone", rollout.Namespace, rollout.DaemonSetName(c.Pool.Name))}, nil
	}
	turn := Turn{
		Slots:   c.Pool.MaxUnavailable,
		Joined:  rollout.Joined(ds, node),
		Unready: max(0, int(ds.Status.DesiredNumberScheduled-ds.Status.NumberAvailable)),
	}
	if rollout.Paused(ds) {
		turn.WaitReason = "the roll-out is paused (kubectl guard rollout resume)"
		return turn, nil
	}
	request, err := rollout.RequestOf(ds)
	if err != nil {
		return Turn{}, err
	}
	if request.ID() != requestID {
		turn.WaitReason = "another request was made meanwhile; this pod will be replaced"
		return turn, nil
	}
	slots, err := c.slots(ctx)
	if err != nil {
		return Turn{}, err
	}
	if turn.WaitReason, err = c.stopped(ctx, slots, requestID); err != nil || turn.WaitReason != "" {
		return turn, err
	}
	if refuses && turn.Joined {
		return turn, nil
	}
	if turn.Slot, err = c.take(ctx, slots, node); err != nil {
		return Turn{}, err
	}
	if !turn.Slot {
		turn.WaitReason = fmt.Sprintf("it waits for one of %d slots of the pool (kubectl get leases -n %s)", c.Pool.MaxUnavailable, rollout.Namespace)
	}
	return turn, nil
}

// Selects reports whether a pool of that name has a roll-out, and selects the node.
func (c *Cluster) Selects(ctx context.Context, pool string, node *corev1.Node) (bool, error) {
	ds, err := c.daemonSet(ctx, pool)
	if err != nil || ds == nil {
		return false, err
	}
	other, err := rollout.PoolOf(ds)
	return err == nil && other.Matches(node), err
}

// daemonSet returns that of a pool, nil when there is none.
func (c *Cluster) daemonSet(ctx context.Context, pool string) (*appsv1.DaemonSet, error) {
	name := rollout.DaemonSetName(pool)
	ds, err := c.Client.AppsV1().DaemonSets(rollout.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get the DaemonSet %s/%s: %w", rollout.Namespace, name, err)
	}
	return ds, nil
}

// slots returns the slots of the pool that are there, by name.
func (c *Cluster) slots(ctx context.Context) (map[string]*coordinationv1.Lease, error) {
	list, err := c.Client.CoordinationV1().Leases(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + c.Pool.Name})
	if err != nil {
		return nil, fmt.Errorf("list the slots of pool %s: %w", c.Pool.Name, err)
	}
	slots := make(map[string]*coordinationv1.Lease, len(list.Items))
	for i := range list.Items {
		slots[list.Items[i].Name] = &list.Items[i]
	}
	return slots, nil
}

// held returns the slots of this node among those of the pool.
func (c *Cluster) held(slots map[string]*coordinationv1.Lease) []*coordinationv1.Lease {
	var held []*coordinationv1.Lease
	for _, lease := range slots {
		if holder(lease) == c.NodeName {
			held = append(held, lease)
		}
	}
	return held
}

// stopped returns at which other node the roll-out is stopped. Without it, as many nodes
// could fail as there are slots. What failed with an earlier request stops nothing, nor
// does a node that is gone or has left the pool.
func (c *Cluster) stopped(ctx context.Context, slots map[string]*coordinationv1.Lease, requestID string) (string, error) {
	for _, lease := range slots {
		name := holder(lease)
		if name == c.NodeName || lease.Annotations[rollout.StoppedAnnotation] != requestID {
			continue
		}
		node, err := c.member(ctx, name)
		if err != nil {
			return "", err
		}
		if node == nil {
			continue
		}
		report, err := rollout.ReportOf(node)
		if err != nil || report == nil || report.RequestID != requestID || report.Pool != c.Pool.Name {
			continue // it says nothing about this request
		}
		if report.Phase == rollout.Refused || report.Phase.Stopped() && !rollout.Resumed(node, report.Attempt) {
			return fmt.Sprintf("the roll-out is stopped at node %s (%s)", name, report.Phase), nil
		}
	}
	return "", nil
}

// member returns a node of the pool, and nil for one that is gone or has left it. A node
// that is only away is a member. It may be what the API server knew a moment ago.
func (c *Cluster) member(ctx context.Context, name string) (*corev1.Node, error) {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get node %s, which has a slot of pool %s: %w", name, c.Pool.Name, err)
	}
	if !c.Pool.Matches(node) {
		return nil, nil
	}
	return node, nil
}

// take creates one of the slots that are not there, or finds the one that the node has.
func (c *Cluster) take(ctx context.Context, slots map[string]*coordinationv1.Lease, node *corev1.Node) (bool, error) {
	for _, lease := range c.held(slots) {
		if ownedBy(lease, node) {
			return true, nil
		}
		// The slot of an earlier Node of this name is about to be collected.
		if err := c.release(ctx, lease); err != nil {
			return false, err
		}
		delete(slots, lease.Name)
	}
	limit := c.Pool.MaxUnavailable
	if len(slots) >= limit {
		uncounted, err := c.uncounted(ctx, slots)
		if err != nil {
			return false, err
		}
		limit += uncounted
	}
	var free []int
	first := c.first()
	for number := range limit {
		if number < c.Pool.MaxUnavailable {
			number = (first + number) % c.Pool.MaxUnavailable
		}
		if slots[rollout.SlotName(c.Pool.Name, number)] == nil {
			free = append(free, number)
		}
	}
	for _, number := range free[:min(triedSlots, len(free))] {
		err := c.create(ctx, number, node, nil)
		if err == nil {
			return true, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return false, fmt.Errorf("take slot %d of pool %s: %w", number, c.Pool.Name, err)
		}
	}
	return false, nil
}

// first is the slot that this node tries first. Nodes that try at the same time take
// different ones.
func (c *Cluster) first() int {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(c.NodeName))
	return int(hash.Sum32() % uint32(c.Pool.MaxUnavailable))
}

// uncounted returns how many slots do not count: all but one of a node that has several,
// and those of nodes that have left the pool. Only a few of these are found at a time,
// among slots that are old; kubectl guard rollout resume deletes them.
func (c *Cluster) uncounted(ctx context.Context, slots map[string]*coordinationv1.Lease) (int, error) {
	old := map[string]bool{}
	for _, lease := range slots {
		since := lease.Spec.AcquireTime
		old[holder(lease)] = old[holder(lease)] || since == nil || time.Since(since.Time) > longest
	}
	uncounted := len(slots) - len(old)
	read := 0
	for name, old := range old { // in any sequence
		if !old || read == readHolders {
			continue
		}
		read++
		node, err := c.member(ctx, name)
		if err != nil {
			return 0, err
		}
		if node == nil {
			uncounted++
		}
	}
	return uncounted, nil
}

// create creates a slot. Its owner is the Node, so that it goes when the Node is deleted.
func (c *Cluster) create(ctx context.Context, number int, node *corev1.Node, annotations map[string]string) error {
	now := metav1.NowMicro()
	_, err := c.Client.CoordinationV1().Leases(rollout.Namespace).Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: rollout.Namespace, Name: rollout.SlotName(c.Pool.Name, number),
			Labels:      map[string]string{rollout.NameLabel: rollout.Name, rollout.PoolLabel: c.Pool.Name},
			Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID,
			}},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: ptr.To(c.NodeName), AcquireTime: &now},
	}, metav1.CreateOptions{FieldManager: rollout.Name})
	return err
}

// StopPool notes at the slot of the node that the roll-out is stopped there for the
// request. A node whose slot was deleted takes one again, also beyond the number of slots:
// nothing else stops the others.
func (c *Cluster) StopPool(ctx context.Context, requestID string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	slots, err := c.slots(ctx)
	if err != nil {
		return err
	}
	held := c.held(slots)
	for _, lease := range held {
		if lease.Annotations[rollout.StoppedAnnotation] == requestID {
			return nil
		}
	}
	if len(held) > 0 {
		lease := held[0]
		metav1.SetMetaDataAnnotation(&lease.ObjectMeta, rollout.StoppedAnnotation, requestID)
		if _, err := c.Client.CoordinationV1().Leases(rollout.Namespace).Update(ctx, lease, metav1.UpdateOptions{FieldManager: rollout.Name}); err != nil {
			return fmt.Errorf("note at slot %s that the roll-out is stopped: %w", lease.Name, err)
		}
		return nil
	}
	node, err := c.Node(ctx)
	if err != nil {
		return err
	}
	number := 0
	for slots[rollout.SlotName(c.Pool.Name, number)] != nil {
		number++
	}
	if err := c.create(ctx, number, node, map[string]string{rollout.StoppedAnnotation: requestID}); err != nil {
		return fmt.Errorf("take slot %d of pool %s: %w", number, c.Pool.Name, err)
	}
	return nil
}

// ReleaseSlot deletes what the node has of the slots of the pool.
func (c *Cluster) ReleaseSlot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	slots, err := c.slots(ctx)
	if err != nil {
		return err
	}
	for _, lease := range c.held(slots) {
		if err := c.release(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) release(ctx context.Context, lease *coordinationv1.Lease) error {
	options := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &lease.UID, ResourceVersion: &lease.ResourceVersion}}
	err := c.Client.CoordinationV1().Leases(rollout.Namespace).Delete(ctx, lease.Name, options)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("release slot %s: %w", lease.Name, err)
	}
	return nil
}

func ownedBy(lease *coordinationv1.Lease, node *corev1.Node) bool {
	return slices.ContainsFunc(lease.OwnerReferences, func(owner metav1.OwnerReference) bool { return owner.Kind == "Node" && owner.UID == node.UID })
}

func holder(lease *coordinationv1.Lease) string { return ptr.Deref(lease.Spec.HolderIdentity, "") }
