package nodedeletion

import (
	"errors"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/cache"
)

// mostPools is how many pools the index keeps at a time. There are as many as policies, and
// those of policies that were changed.
const mostPools = 100

// Index keeps what counts of the nodes, and the pools that were requested: a flood of
// deletions requests the same ones again and again.
//
// It is safe for concurrent use, and is a handler of informer events.
type Index struct {
	mu    sync.Mutex
	nodes map[string]Node
	pools map[string]*selection
	// HasSynced reports whether the first list of the informer has arrived. It is set before the
	// index is used.
	HasSynced func() bool
}

// selection are the nodes that a selector selects: a pool.
type selection struct {
	selector labels.Selector
	nodes    []Node
	// at is where in nodes each is, by name.
	at map[string]int
	// lent: a caller may read nodes, which is copied before it changes.
	lent bool
}

func (s *selection) selects(node *Node) bool {
	return node != nil && s.selector.Matches(labels.Set(node.Labels))
}

// change puts a node in the place of what it was before; nil is one that is not there.
func (s *selection) change(was, is *Node) {
	had, has := s.selects(was), s.selects(is)
	if !had && !has {
		return
	}
	if s.lent {
		s.nodes, s.lent = slices.Clone(s.nodes), false
	}
	switch {
	case had && has:
		s.nodes[s.at[is.Name]] = *is
	case has:
		s.at[is.Name] = len(s.nodes)
		s.nodes = append(s.nodes, *is)
	default:
		// The last one takes its place.
		i, last := s.at[was.Name], len(s.nodes)-1
		s.nodes[i] = s.nodes[last]
		s.at[s.nodes[i].Name] = i
		s.nodes = s.nodes[:last]
		delete(s.at, was.Name)
	}
}

// NewIndex returns an empty index.
func NewIndex() *Index { return &Index{nodes: map[string]Node{}, pools: map[string]*selection{}} }

// Filled is an error as long as the informer has not delivered its first list.
func (i *Index) Filled() error {
	if i.HasSynced != nil && !i.HasSynced() {
		return errors.New("the nodes are not all known yet, a moment after the start")
	}
	return nil
}

// List returns the nodes that the selector selects, sorted by nothing. They must not be changed.
func (i *Index) List(selector labels.Selector) ([]Node, error) {
	if err := i.Filled(); err != nil {
		return nil, err
	}
	key := selector.String()
	i.mu.Lock()
	defer i.mu.Unlock()
	pool := i.pools[key]
	if pool == nil {
		if len(i.pools) >= mostPools {
			clear(i.pools)
		}
		pool = &selection{selector: selector, at: map[string]int{}}
		for _, node := range i.nodes {
			pool.change(nil, &node)
		}
		i.pools[key] = pool
	}
	pool.lent = true
	return pool.nodes, nil
}

// OnAdd implements cache.ResourceEventHandler.
func (i *Index) OnAdd(object any, _ bool) { i.set(object) }

// OnUpdate implements cache.ResourceEventHandler.
func (i *Index) OnUpdate(_, object any) { i.set(object) }

// OnDelete implements cache.ResourceEventHandler.
func (i *Index) OnDelete(object any) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	if node, ok := object.(*corev1.Node); ok {
		i.change(node.Name, nil)
	}
}

func (i *Index) set(object any) {
	if node, ok := object.(*corev1.Node); ok {
		is := NodeOf(node)
		i.change(is.Name, &is)
	}
}

func (i *Index) change(name string, is *Node) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var was *Node
	if node, known := i.nodes[name]; known {
		was = &node
	}
	if is == nil {
		delete(i.nodes, name)
	} else {
		i.nodes[name] = *is
		if was != nil && same(*was, *is) {
			return // a heartbeat
		}
	}
	for _, pool := range i.pools {
		pool.change(was, is)
	}
}

// same reports whether the two states of a node count alike.
func same(a, b Node) bool {
	return a.UID == b.UID && a.Ready == b.Ready && a.Terminating == b.Terminating && maps.Equal(a.Labels, b.Labels)
}
