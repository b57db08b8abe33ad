package pool

import (
	"context"
	"errors"
	"fmt"
	"sort"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodewatch"
	"kubelet-guard.io/pkg/rollout"
)

// Fleet is what the cluster has for roll-outs.
type Fleet struct {
	Nodes []corev1.Node
	Pools []*Pool
}

// Pool returns the pool with the name, or nil.
func (f *Fleet) Pool(name string) *Pool {
	for _, p := range f.Pools {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Fill gives a pool its nodes.
func (f *Fleet) Fill(p *Pool) {
	for i := range f.Nodes {
		if p.Matches(&f.Nodes[i]) {
			p.Nodes = append(p.Nodes, f.Nodes[i])
		}
	}
}

// RestoreLeftOut returns the nodes that were left out to their pool.
func (f *Fleet) RestoreLeftOut(p *Pool) {
	if len(p.Without) > 0 {
		p.Without, p.Nodes = nil, nil
		f.Fill(p)
	}
}

// Connect connects, and reads nodes and pools.
func Connect(ctx context.Context, f *factory.Factory) (*factory.Clients, *Fleet, error) {
	c, err := f.Connect()
	if err != nil {
		return nil, nil, err
	}
	fleet, err := readFleet(ctx, c.Kube)
	return c, fleet, err
}

// readFleet reads nodes and pools.
func readFleet(ctx context.Context, kube kubernetes.Interface) (*Fleet, error) {
	f := &Fleet{}
	if _, err := nodewatch.EachNode(ctx, kube, "", func(node corev1.Node) { f.Nodes = append(f.Nodes, node) }); err != nil {
		return nil, err
	}
	sort.Slice(f.Nodes, func(i, j int) bool { return f.Nodes[i].Name < f.Nodes[j].Name })
	return f, f.ReadPools(ctx, kube)
}

// ReadPools reads the pools of a fleet whose nodes are known.
func (f *Fleet) ReadPools(ctx context.Context, kube kubernetes.Interface) error {
	sets, err := kube.AppsV1().DaemonSets(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel})
	if err != nil {
		return fmt.Errorf("list the pools (DaemonSets in namespace %s): %w", rollout.Namespace, err)
	}
	for i := range sets.Items {
		set := &sets.Items[i]
		p, err := poolOf(set)
		if err != nil {
			// A pool of a later release, for example, must not hide the others.
			p = &Pool{Pool: rollout.Pool{Name: set.Labels[rollout.PoolLabel]}, Set: set, Problem: err}
		}
		f.Fill(p)
		f.Pools = append(f.Pools, p)
	}
	f.findShared()
	return nil
}

// findShared finds the nodes that several pools select.
func (f *Fleet) findShared() {
	for _, p := range f.Pools {
		p.shared = map[string][]string{}
		for _, other := range f.Pools {
			for i := range p.Nodes {
				if other != p && other.Problem == nil && other.Matches(&p.Nodes[i]) {
					p.shared[p.Nodes[i].Name] = append(p.shared[p.Nodes[i].Name], other.Name)
				}
			}
		}
	}
}

// Named returns the pools with the names, or all without names.
func (f *Fleet) Named(names []string) ([]*Pool, error) {
	if len(names) == 0 {
		return f.Pools, nil
	}
	var (
		pools []*Pool
		errs  []error
	)
	for _, name := range names {
		if p := f.Pool(name); p != nil {
			pools = append(pools, p)
		} else {
			errs = append(errs, NotFound(name))
		}
	}
	return pools, errors.Join(errs...)
}

// NotFound returns the error for a pool that does not exist.
func NotFound(name string) error {
	return fmt.Errorf("--pool: there is no pool %s; kubectl guard rollout status shows all", name)
}
