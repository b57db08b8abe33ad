package nodes

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/clock"
)

const (
	// lostAge is how long the state of the nodes is used again: many pods of lost nodes are
	// deleted at once.
	lostAge = time.Second
	// smallPool is the number of nodes below which a pool cannot tell a lost node from a
	// mass failure: it is judged with the whole cluster.
	smallPool = 3
	// massFailureNodes and massFailurePercent are the figures with which the node lifecycle
	// controller stops to evict from a zone: more nodes than that, and at least that share,
	// are not ready (--unhealthy-zone-threshold, ComputeZoneState in upstream's
	// pkg/controller/nodelifecycle).
	massFailureNodes   = 2
	massFailurePercent = 55
)

// Condition is what the state of a node means for the pods on it.
type Condition struct {
	// Lost: the node is not ready, and enough others of its pool are, so that its pods may
	// be replaced.
	Lost bool
	// MassFailure says, for a node that is not ready, why it does not count as lost.
	MassFailure string
}

// LostNodes tells nodes that are lost from a mass failure, in which the nodes may be fine
// and what reports on them is not. The pools are those of the NodeDeletionPolicies. It is
// safe for concurrent use.
type LostNodes struct {
	policies Policies
	nodes    Nodes
	clock    clock.PassiveClock

	mu sync.Mutex
	// conditions are those of the nodes that are not ready, as of at.
	conditions map[string]Condition
	at         time.Time
}

// NewLostNodes returns LostNodes that read from caches.
func NewLostNodes(policies Policies, nodes Nodes, clock clock.PassiveClock) *LostNodes {
	return &LostNodes{policies: policies, nodes: nodes, clock: clock}
}

// Condition returns that of the node. A node without an object is not lost: that it was
// deleted may be the accident.
func (l *LostNodes) Condition(ctx context.Context, node string) (Condition, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.clock.Now(); l.conditions == nil || now.Sub(l.at) >= lostAge {
		conditions, err := l.read(ctx)
		if err != nil {
			return Condition{}, err
		}
		l.conditions, l.at = conditions, now
	}
	return l.conditions[node], nil
}

func (l *LostNodes) read(ctx context.Context) (map[string]Condition, error) {
	policies, err := l.policies.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the NodeDeletionPolicies: %w", err)
	}
	all, err := l.nodes.List(ctx, labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	var pools []poolHealth
	for i := range policies {
		if selector, err := metav1.LabelSelectorAsSelector(&policies[i].Spec.NodeSelector); err == nil {
			pools = append(pools, healthOf("the pool of NodeDeletionPolicy "+policies[i].Name, selector, all))
		}
	}
	cluster := healthOf("the cluster", labels.Everything(), all)
	conditions := map[string]Condition{}
	for _, node := range all {
		if !node.Ready {
			conditions[node.Name] = conditionOf(node, pools, cluster)
		}
	}
	return conditions, nil
}

// conditionOf returns the condition of a node that is not ready.
func conditionOf(node Node, pools []poolHealth, cluster poolHealth) Condition {
	own := slices.DeleteFunc(slices.Clone(pools), func(p poolHealth) bool {
		return p.nodes < smallPool || !p.selector.Matches(labels.Set(node.Labels))
	})
	if len(own) == 0 {
		own = []poolHealth{cluster}
	}
	for _, p := range own {
		if p.massFailure() {
			return Condition{MassFailure: fmt.Sprintf("%d of %d nodes of %s are not ready", p.nodes-p.ready, p.nodes, p.name)}
		}
	}
	return Condition{Lost: true}
}

// poolHealth counts the nodes that a selector selects.
type poolHealth struct {
	name         string
	selector     labels.Selector
	nodes, ready int
}

func healthOf(name string, selector labels.Selector, all []Node) poolHealth {
	p := poolHealth{name: name, selector: selector}
	for _, node := range all {
		if !selector.Matches(labels.Set(node.Labels)) {
			continue
		}
		p.nodes++
		if node.Ready {
			p.ready++
		}
	}
	return p
}

func (p poolHealth) massFailure() bool {
	lost := p.nodes - p.ready
	return p.ready == 0 || lost > massFailureNodes && lost*100 >= massFailurePercent*p.nodes
}
