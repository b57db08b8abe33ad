package nodedeletion

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
)

const (
	// lostAge is how long the state of the nodes is used again: many pods of lost nodes are
	// deleted at once.
	lostAge = time.Second
	// smallPool is the number of nodes below which a pool cannot distinguish a lost node from a
	// mass failure: it is judged with the whole cluster.
	smallPool = 3
	// massFailureNodes and massFailurePercent are the figures with which the node lifecycle
	// controller stops to evict from a zone: more nodes than that, and at least that share,
	// are not ready (--unhealthy-zone-threshold, ComputeZoneState in upstream's
	// pkg/controller/nodelifecycle). The floor of a NodeDeletionPolicy holds by the first,
	// too.
	massFailureNodes   = 2
	massFailurePercent = 55
)

// Health is what the state of a node means for the pods on it. The zero value is that of a
// node that is ready.
type Health struct {
	// Lost: the node is not ready or has no object, and enough others of its pool are
	// ready, so that pods that are not ready on it may be replaced.
	Lost bool
	// Deleted: the node has no object. That may be what is wrong: its machine may run.
	Deleted bool
	// MassFailure is, for a node that is not ready or deleted, why it does not count as
	// lost.
	MassFailure string
}

// ProtectedNodes calls visit with the name of each node that protected pods are bound to.
type ProtectedNodes func(visit func(node string)) error

// LostNodes distinguishes nodes that are lost from a mass failure, in which the nodes may be fine
// and what reports on them is not. The pools are those of the NodeDeletionPolicies; a node
// without an object is judged with the whole cluster. It is safe for concurrent use.
type LostNodes struct {
	policies  client.Reader
	nodes     *Index
	live      client.Reader
	protected ProtectedNodes
	clock     clock.PassiveClock

	mu sync.Mutex
	// latest is the state as of at.
	latest *clusterHealth
	at     time.Time
}

// clusterHealth is the state of all nodes at a time.
type clusterHealth struct {
	// notReady are the nodes that are not ready.
	notReady map[string]Health
	// names are those of all nodes with an object. Nodes that a live read has found are
	// added.
	names sets.Set[string]
	// deleted is the health of nodes without an object.
	deleted Health
}

// NewLostNodes returns LostNodes that read from caches, but for nodes that seem to have no
// object.
func NewLostNodes(policies client.Reader, nodes *Index, live client.Reader, protected ProtectedNodes, clock clock.PassiveClock) *LostNodes {
	return &LostNodes{policies: policies, nodes: nodes, live: live, protected: protected, clock: clock}
}

// Health returns that of the node, which may be a second old. With live, the API server is
// queried whether the node has an object, in any case.
func (l *LostNodes) Health(ctx context.Context, node string, live bool) (Health, error) {
	latest, err := l.read(ctx)
	if err != nil {
		return Health{}, err
	}
	l.mu.Lock()
	known := latest.names.Has(node)
	l.mu.Unlock()
	if known && !live {
		return latest.notReady[node], nil
	}
	// The cache may not have it yet, or still.
	_, err = admission.Metadata(ctx, l.live, corev1.SchemeGroupVersion.WithKind("Node"), client.ObjectKey{Name: node})
	switch {
	case apierrors.IsNotFound(err):
		return latest.deleted, nil
	case err != nil:
		return Health{}, fmt.Errorf("read node %s: %w", node, err)
	}
	l.mu.Lock()
	latest.names.Insert(node)
	l.mu.Unlock()
	return latest.notReady[node], nil
}

// read returns the state of the nodes, which is at most lostAge old.
func (l *LostNodes) read(ctx context.Context) (*clusterHealth, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	if l.latest != nil && now.Sub(l.at) < lostAge {
		return l.latest, nil
	}
	policies, err := listPolicies(ctx, l.policies)
	if err != nil {
		return nil, fmt.Errorf("list the NodeDeletionPolicies: %w", err)
	}
	all, err := l.nodes.List(labels.Everything())
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
	state := &clusterHealth{notReady: map[string]Health{}, names: sets.New[string]()}
	for _, node := range all {
		state.names.Insert(node.Name)
		// One that has just registered is not lost.
		if !node.Ready && node.Reported {
			state.notReady[node.Name] = healthOfNode(node, pools, cluster)
		}
	}
	gone := 0
	if err := l.protected(func(node string) {
		if !state.names.Has(node) {
			gone++
		}
	}); err != nil {
		return nil, fmt.Errorf("find the nodes of protected pods: %w", err)
	}
	state.deleted = healthOfDeleted(gone, cluster)
	l.latest, l.at = state, now
	return state, nil
}

// healthOfDeleted returns the health of nodes without an object, as many as protected pods
// are bound to.
func healthOfDeleted(gone int, cluster poolHealth) Health {
	with := poolHealth{nodes: cluster.nodes + gone, ready: cluster.ready}
	if with.massFailure() {
		return Health{Deleted: true, MassFailure: fmt.Sprintf("protected pods are on %d nodes that were deleted, and %d of %d nodes are not ready or deleted", gone, with.nodes-with.ready, with.nodes)}
	}
	return Health{Deleted: true, Lost: true}
}

// healthOfNode returns the health of a node that is not ready.
func healthOfNode(node Node, pools []poolHealth, cluster poolHealth) Health {
	own := slices.DeleteFunc(slices.Clone(pools), func(p poolHealth) bool {
		return p.nodes < smallPool || !p.selector.Matches(labels.Set(node.Labels))
	})
	if len(own) == 0 {
		own = []poolHealth{cluster}
	}
	for _, p := range own {
		if p.massFailure() {
			return Health{MassFailure: fmt.Sprintf("%d of %d nodes of %s are not ready", p.nodes-p.ready, p.nodes, p.name)}
		}
	}
	return Health{Lost: true}
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
