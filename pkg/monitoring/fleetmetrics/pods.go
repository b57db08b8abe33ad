package fleetmetrics

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unique"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// maxGroups is how many groups of pods are counted apart. A cluster of 150,000 protected pods
// has some 10,000. One in which nearly each pod has labels of its own would cost the memory
// that reviews need, for a gauge.
const maxGroups = 50_000

var errTooManyGroups = fmt.Errorf("the protected pods have more than %d sets of labels", maxGroups)

// Budgets finds PodDisruptionBudgets.
type Budgets interface {
	// Filled is an error as long as not all budgets are known.
	Filled() error
	// Generation is another number after what a budget selects may have changed.
	Generation() uint64
	// Selects reports whether a budget selects a pod with these labels.
	Selects(namespace string, podLabels map[string]string) bool
}

// pods counts the protected pods that run, by their node and by their group, and keeps some
// 50 bytes of each: all of them are in the memory of each replica. A relist marks what is
// still there and removes the rest, so that there is no second copy of them.
//
// It is the store of a reflector, which hands it pods or, of a list, sightings. It is safe
// for concurrent use.
type pods struct {
	mu sync.Mutex
	// filled after the first list.
	filled bool
	known  map[podID]place
	// lists counts them: its lowest bit marks what the last one had.
	lists int
	nodes map[unique.Handle[string]]int
	// groups is without those that no pod is in.
	groups map[unique.Handle[string]]*group
	// ungrouped counts pods beyond maxGroups.
	ungrouped int
}

// podID is the first half of the SHA-256 of a UID: of any text the same small size.
type podID [16]byte

func idOf(uid types.UID) podID {
	sum := sha256.Sum256([]byte(uid))
	return podID(sum[:16])
}

// place is where a pod counts.
type place struct {
	node, group unique.Handle[string]
	// mark is the lowest bit of the number of the last list that had it.
	mark bool
}

// group are the pods of a namespace with the same labels, but for those that only one pod
// has.
type group struct {
	pods int
	// selected reports whether a budget selects them, as of the budgets' generation.
	selected   bool
	generation uint64
	judged     bool
}

var (
	_ cache.TransformingStore = (*pods)(nil)

	nowhere unique.Handle[string]
)

func newPods() *pods {
	return &pods{
		known:  map[podID]place{},
		nodes:  map[unique.Handle[string]]int{},
		groups: map[unique.Handle[string]]*group{},
	}
}

// Add implements cache.ReflectorStore.
func (p *pods) Add(object any) error { return p.Update(object) }

// Update implements cache.ReflectorStore.
func (p *pods) Update(object any) error {
	s, err := sightingIn(object)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(s)
	return nil
}

// Delete implements cache.ReflectorStore.
func (p *pods) Delete(object any) error {
	s, err := sightingIn(object)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(s.id)
	return nil
}

// Replace implements cache.ReflectorStore.
func (p *pods) Replace(objects []any, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lists++
	for _, object := range objects {
		s, err := sightingIn(object)
		if err != nil {
			return err
		}
		p.set(s)
	}
	for id, at := range p.known {
		if at.mark != p.mark() {
			p.remove(id)
		}
	}
	p.filled = true
	return nil
}

// Resync implements cache.ReflectorStore.
func (*pods) Resync() error { return nil }

// Transformer implements cache.TransformingStore: of a streamed list, the reflector keeps
// what this returns until it is complete.
func (*pods) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return sightingIn(object) }
}

func (p *pods) mark() bool { return p.lists&1 == 1 }

// set counts the pod where it is now.
func (p *pods) set(s *sighting) {
	if s.node == nowhere {
		p.remove(s.id)
		return
	}
	if before, ok := p.known[s.id]; ok && before.node == s.node && before.group == s.group {
		before.mark = p.mark()
		p.known[s.id] = before
		return
	}
	p.remove(s.id)
	at := place{node: s.node, group: s.group, mark: p.mark()}
	p.nodes[at.node]++
	if g := p.groups[at.group]; g != nil {
		g.pods++
	} else if len(p.groups) < maxGroups {
		p.groups[at.group] = &group{pods: 1}
	} else {
		at.group = nowhere
		p.ungrouped++
	}
	p.known[s.id] = at
}

func (p *pods) remove(id podID) {
	at, ok := p.known[id]
	if !ok {
		return
	}
	delete(p.known, id)
	if p.nodes[at.node]--; p.nodes[at.node] == 0 {
		delete(p.nodes, at.node)
	}
	if at.group == nowhere {
		p.ungrouped--
	} else if g := p.groups[at.group]; g.pods > 1 {
		g.pods--
	} else {
		delete(p.groups, at.group)
	}
}

var errNotFilled = errors.New("the protected pods are not all known yet")

// byNode calls visit with each node that has pods, and their number.
func (p *pods) byNode(visit func(node string, pods int)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.filled {
		return errNotFilled
	}
	for node, count := range p.nodes {
		visit(node.Value(), count)
	}
	return nil
}

// withoutBudget returns how many pods no budget selects. It reads groups alone, and checks
// about those that are new and, when the budgets have changed, about all.
func (p *pods) withoutBudget(budgets Budgets) (int, error) {
	if err := budgets.Filled(); err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.filled:
		return 0, errNotFilled
	case p.ungrouped > 0:
		return 0, errTooManyGroups
	}
	generation, count := budgets.Generation(), 0
	for key, g := range p.groups {
		if !g.judged || g.generation != generation {
			namespace, set := ungroup(key.Value())
			g.judged, g.generation = true, generation
			g.selected = budgets.Selects(namespace, set)
		}
		if !g.selected {
			count += g.pods
		}
	}
	return count, nil
}

// labelsOfOnePod are labels whose value differs from pod to pod of a workload.
var labelsOfOnePod = []string{"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index", "batch.kubernetes.io/job-completion-index"}

// groupOf returns the namespace and the labels of the pod as one text. Labels that only
// one pod of a workload has are not in it: those that Kubernetes sets, and those whose
// value is the pod's name.
func groupOf(pod *corev1.Pod) string {
	owned := metav1.GetControllerOfNoCopy(pod) != nil
	var text strings.Builder
	text.WriteString(pod.Namespace)
	for _, key := range slices.Sorted(maps.Keys(pod.Labels)) {
		value := pod.Labels[key]
		if !owned || value != pod.Name && !slices.Contains(labelsOfOnePod, key) {
			text.WriteString("\x00" + key + "\x00" + value)
		}
	}
	return text.String()
}

// ungroup is the reverse of groupOf.
func ungroup(text string) (namespace string, set map[string]string) {
	parts := strings.Split(text, "\x00")
	set = make(map[string]string, len(parts)/2)
	for i := 1; i+1 < len(parts); i += 2 {
		set[parts[i]] = parts[i+1]
	}
	return parts[0], set
}

// sighting is what is left of a pod's object on its way to the store.
type sighting struct {
	id podID
	// node and group are nowhere for a pod that is not bound or has finished.
	node, group unique.Handle[string]
}

func sightingOf(pod *corev1.Pod) *sighting {
	s := &sighting{id: idOf(pod.UID)}
	if runs(pod) {
		s.node, s.group = unique.Make(pod.Spec.NodeName), unique.Make(groupOf(pod))
	}
	return s
}

func sightingIn(object any) (*sighting, error) {
	switch o := object.(type) {
	case *sighting:
		return o, nil
	case *corev1.Pod:
		return sightingOf(o), nil
	}
	return nil, fmt.Errorf("unexpected %T in place of a pod", object)
}

// GetObjectKind implements runtime.Object.
func (*sighting) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (s *sighting) DeepCopyObject() runtime.Object { clone := *s; return &clone }
