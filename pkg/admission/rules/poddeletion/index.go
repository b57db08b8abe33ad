package poddeletion

import (
	"cmp"
	"errors"
	"slices"
	"sync"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// Index finds the budgets that select a pod without reading the others.
//
// A selector that demands one of some values for a label (matchLabels, or In) can
// only match pods with one of these label pairs, so the budget is kept under the
// pairs of one such demand, and a pod is looked up by its own pairs. Of several
// demands the one with the emptiest pairs is taken: labels that all budgets of a
// namespace share would otherwise put them all in one place. Selectors without such
// a demand (Exists, NotIn, DoesNotExist, or empty) are tried one by one; there are
// few of them, as each selects pods of many workloads.
//
// It is safe for concurrent use, and is a handler of informer events: of budgets, or of what
// Transform makes of them.
type Index struct {
	mu         sync.RWMutex
	namespaces map[string]*namespaceIndex
	// generation counts changes of what budgets select.
	generation uint64
	// HasSynced reports whether the first list of the informer has arrived. It is set before the
	// index is used.
	HasSynced func() bool
}

type pair struct{ key, value string }

type namespaceIndex struct {
	entries map[string]*entry
	byPair  map[pair][]*entry
	// rest holds those that no pair is demanded for.
	rest []*entry
}

// entry is one budget. Its budget is replaced and never changed.
type entry struct {
	budget   *Packed
	selector labels.Selector
	// pairs the entry is kept under; none means in rest.
	pairs []pair
}

// NewIndex returns an empty index.
func NewIndex() *Index { return &Index{namespaces: map[string]*namespaceIndex{}} }

// Selecting returns the budgets that select a pod with these labels, by name.
func (i *Index) Selecting(namespace string, podLabels map[string]string) []*policyv1.PodDisruptionBudget {
	i.mu.RLock()
	defer i.mu.RUnlock()
	in := i.namespaces[namespace]
	if in == nil {
		return nil
	}
	var found []*policyv1.PodDisruptionBudget
	try := func(entries []*entry) {
		for _, e := range entries {
			if e.selector.Matches(labels.Set(podLabels)) {
				found = append(found, e.budget.Unpack())
			}
		}
	}
	for key, value := range podLabels {
		try(in.byPair[pair{key, value}])
	}
	try(in.rest)
	slices.SortFunc(found, func(a, b *policyv1.PodDisruptionBudget) int { return cmp.Compare(a.Name, b.Name) })
	return found
}

// Filled is an error as long as the informer that the index follows has not delivered
// its first list: until then, that no budget selects a pod means nothing.
func (i *Index) Filled() error {
	if i.HasSynced != nil && !i.HasSynced() {
		return errors.New("the poddisruptionbudgets are not all known yet, a moment after the start")
	}
	return nil
}

// Generation is another number after what a budget selects may have changed. A new status
// does not change it.
func (i *Index) Generation() uint64 {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.generation
}

// Selects reports whether a budget selects a pod with these labels.
func (i *Index) Selects(namespace string, podLabels map[string]string) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	in := i.namespaces[namespace]
	if in == nil {
		return false
	}
	matches := func(e *entry) bool { return e.selector.Matches(labels.Set(podLabels)) }
	for key, value := range podLabels {
		if slices.ContainsFunc(in.byPair[pair{key, value}], matches) {
			return true
		}
	}
	return slices.ContainsFunc(in.rest, matches)
}

// Set adds or replaces a budget, whose managedFields it removes.
func (i *Index) Set(budget *policyv1.PodDisruptionBudget) {
	i.setPacked(Pack(budget), selectorOf(budget))
}

func (i *Index) setPacked(budget *Packed, selector labels.Selector) {
	i.mu.Lock()
	defer i.mu.Unlock()
	in := i.namespaces[budget.name.Namespace]
	if in == nil {
		in = &namespaceIndex{entries: map[string]*entry{}, byPair: map[pair][]*entry{}}
		i.namespaces[budget.name.Namespace] = in
	}
	if e := in.entries[budget.name.Name]; e != nil {
		// The common case is a new status.
		if sameSelector(e.selector, selector) {
			e.budget = budget
			return
		}
		in.remove(e)
	}
	i.generation++
	in.add(&entry{budget: budget, selector: selector})
}

// sameSelector reports whether both select the same.
func sameSelector(a, b labels.Selector) bool {
	_, selects := a.Requirements()
	_, alsoSelects := b.Requirements()
	return selects == alsoSelects && a.String() == b.String()
}

// Delete removes a budget, if it is there.
func (i *Index) Delete(name types.NamespacedName) {
	i.mu.Lock()
	defer i.mu.Unlock()
	in := i.namespaces[name.Namespace]
	if in == nil || in.entries[name.Name] == nil {
		return
	}
	i.generation++
	in.remove(in.entries[name.Name])
	if len(in.entries) == 0 {
		delete(i.namespaces, name.Namespace)
	}
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
	switch o := object.(type) {
	case *Packed:
		i.Delete(o.name)
	case *policyv1.PodDisruptionBudget:
		i.Delete(types.NamespacedName{Namespace: o.Namespace, Name: o.Name})
	}
}

func (i *Index) set(object any) {
	switch o := object.(type) {
	case *Packed:
		i.setPacked(o, selectorOf(o.Unpack()))
	case *policyv1.PodDisruptionBudget:
		i.Set(o)
	}
}

// selectorOf returns what a budget selects. As for eviction, an absent selector
// selects nothing, an empty one everything, and one that cannot be understood
// nothing.
func selectorOf(budget *policyv1.PodDisruptionBudget) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

func (in *namespaceIndex) add(e *entry) {
	in.entries[e.budget.name.Name] = e
	requirements, selectable := e.selector.Requirements()
	if !selectable {
		return // it selects nothing
	}
	fewest := -1
	for _, requirement := range requirements {
		pairs := demandedPairs(requirement)
		if len(pairs) == 0 {
			continue
		}
		fullest := 0
		for _, p := range pairs {
			fullest = max(fullest, len(in.byPair[p]))
		}
		if fewest < 0 || fullest < fewest {
			fewest, e.pairs = fullest, pairs
		}
	}
	for _, p := range e.pairs {
		in.byPair[p] = append(in.byPair[p], e)
	}
	if len(e.pairs) == 0 {
		in.rest = append(in.rest, e)
	}
}

func (in *namespaceIndex) remove(e *entry) {
	delete(in.entries, e.budget.name.Name)
	without := func(entries []*entry) []*entry {
		return slices.DeleteFunc(entries, func(other *entry) bool { return other == e })
	}
	for _, p := range e.pairs {
		if left := without(in.byPair[p]); len(left) > 0 {
			in.byPair[p] = left
		} else {
			delete(in.byPair, p)
		}
	}
	if len(e.pairs) == 0 {
		in.rest = without(in.rest)
	}
}

// demandedPairs returns the label pairs of which a pod must have one to meet the
// requirement, none when pods without the label, or with any value of it, meet it.
func demandedPairs(requirement labels.Requirement) []pair {
	switch requirement.Operator() {
	case selection.In, selection.Equals, selection.DoubleEquals:
	default:
		return nil
	}
	var pairs []pair
	for value := range requirement.Values() {
		pairs = append(pairs, pair{requirement.Key(), value})
	}
	return pairs
}
