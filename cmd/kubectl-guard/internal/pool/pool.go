// Package pool reads and changes pools: a rollout.Pool with its DaemonSet, its nodes and their
// progress.
package pool

import (
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodewatch"
	"kubelet-guard.io/pkg/rollout"
)

// Pool is a pool with what the cluster has of it.
type Pool struct {
	rollout.Pool
	// Problem is why the pool's DaemonSet cannot be read; it has no more than a name then.
	Problem error
	// Set is nil for a pool that has no installers yet.
	Set *appsv1.DaemonSet
	// History has the requests of the pool, newest last; empty: nothing but to observe.
	History []rollout.Request
	// Nodes in the order of their names.
	Nodes []corev1.Node
	// shared has the names of the other pools that select a node, by node.
	shared map[string][]string
	// watch has the nodes; nil before the first Refresh.
	watch *nodewatch.Watch
	// Stale has reports that do not count any more, by node.
	Stale map[string]*rollout.Report
}

// Current is the last request; nil: nothing but to observe.
func (p *Pool) Current() *rollout.Request {
	if len(p.History) == 0 {
		return nil
	}
	return &p.History[len(p.History)-1]
}

// ChangedByOthers is the error for a pool whose request another user has changed.
func (p *Pool) ChangedByOthers(is rollout.Request) error {
	return fmt.Errorf("pool %s: another user has changed it meanwhile: its request is %s; see kubectl guard rollout status", p.Name, DescribeRequest(is))
}

// Refresh reads DaemonSet and nodes of a pool again. The nodes come from a watch that
// starts with the first call and lasts as long as that call's context.
func (p *Pool) Refresh(ctx context.Context, kube kubernetes.Interface) error {
	set, err := kube.AppsV1().DaemonSets(rollout.Namespace).Get(ctx, rollout.DaemonSetName(p.Name), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.Name, err)
	}
	if p.watch == nil {
		p.watch = nodewatch.Start(ctx, kube, p.Selector)
	}
	list, err := p.watch.List(ctx)
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.Name, err)
	}
	p.Set = set
	p.Nodes = slices.DeleteFunc(list, func(node corev1.Node) bool { return !p.Matches(&node) })
	return nil
}
