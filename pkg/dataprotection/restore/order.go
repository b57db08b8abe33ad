package restore

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// setStages numbers the writes: an item's stage is greater than that of everything that must be
// there before it. A cycle of owners is an error.
func (p *Plan) setStages(prefix string) error {
	g := &graph{byUID: map[types.UID]*Item{}, definitions: map[string]*Item{}, inNamespace: map[string][]*Item{}, instances: map[string][]*Item{}, claims: map[types.NamespacedName]*Item{}, volumes: map[types.UID]*Item{}, state: map[*Item]visit{}}
	for _, item := range p.Items {
		if !item.written() {
			continue
		}
		g.byUID[item.object.UID] = item
		switch o := item.object.Typed.(type) {
		case *corev1.PersistentVolumeClaim:
			g.claims[item.name()] = item
		case *corev1.PersistentVolume:
			if o.Spec.ClaimRef != nil {
				g.volumes[o.Spec.ClaimRef.UID] = item
			}
		}
		if item.Namespace != "" {
			g.inNamespace[item.Namespace] = append(g.inNamespace[item.Namespace], item)
		}
		if name, ok := strings.CutPrefix(item.Key, prefix+definitionFolder); ok {
			g.definitions[name] = item
		}
		if item.object.Custom {
			name := definitionOf(prefix, item.Key)
			g.instances[name] = append(g.instances[name], item)
		}
	}
	for _, item := range p.Items {
		if item.written() {
			if err := g.setStage(item, prefix); err != nil {
				return err
			}
		}
	}
	return nil
}

// definitionOf returns the name of the definition that the key of a custom resource belongs to:
// <prefix><group>/<plural>/… .
func definitionOf(prefix, key string) string {
	folders := strings.SplitN(strings.TrimPrefix(key, prefix), "/", 3)
	if len(folders) < 2 {
		return ""
	}
	return folders[1] + "." + folders[0]
}

type visit int

const (
	visiting visit = iota + 1
	visited
)

// graph has the written items by what others need them for.
type graph struct {
	byUID       map[types.UID]*Item
	definitions map[string]*Item
	inNamespace map[string][]*Item
	instances   map[string][]*Item
	claims      map[types.NamespacedName]*Item
	// volumes by the UID of their claim.
	volumes map[types.UID]*Item
	state   map[*Item]visit
}

// before returns what is written before an item.
func (g *graph) before(item *Item, prefix string) []*Item {
	var list []*Item
	for _, reference := range item.object.Owners {
		owner := g.byUID[reference.UID]
		if owner == nil || owner == item {
			continue
		}
		list = append(list, owner)
		// The garbage collector reads an owner through the API: a custom resource is there
		// only when its definition is.
		if !owner.object.Custom {
			continue
		}
		name := definitionOf(prefix, owner.Key)
		if item.object.Custom && definitionOf(prefix, item.Key) == name {
			continue // both appear together
		}
		if definition := g.definitions[name]; definition != nil && definition != item {
			list = append(list, definition)
		}
	}
	switch o := item.object.Typed.(type) {
	case *corev1.PersistentVolume:
		// A volume whose claim is gone is released, and deleted if its policy says so.
		if o.Spec.ClaimRef != nil {
			if claim := g.byUID[o.Spec.ClaimRef.UID]; claim != nil {
				list = append(list, claim)
			}
		}
	case *corev1.Pod:
		// Last: when a pod is there, nothing looks for what it uses any more. A claim that
		// the pod owns comes after it.
		for _, volume := range o.Spec.Volumes {
			if volume.PersistentVolumeClaim == nil {
				continue
			}
			claim := g.claims[types.NamespacedName{Namespace: item.Namespace, Name: volume.PersistentVolumeClaim.ClaimName}]
			if claim == nil || slices.ContainsFunc(claim.object.Owners, func(r metav1.OwnerReference) bool { return r.UID == item.object.UID }) {
				continue
			}
			list = append(list, claim)
			if bound := g.volumes[claim.object.UID]; bound != nil {
				list = append(list, bound)
			}
		}
	}
	if name, ok := strings.CutPrefix(item.Key, prefix+definitionFolder); ok {
		list = append(list, g.instances[name]...)
	}
	if item.Kind == "Namespace" && item.object.Group == "" {
		list = append(list, g.inNamespace[item.Name]...)
	}
	return list
}

func (g *graph) setStage(item *Item, prefix string) error {
	switch g.state[item] {
	case visited:
		return nil
	case visiting:
		return fmt.Errorf("%s: its owner references form a cycle", item)
	}
	g.state[item] = visiting
	for _, earlier := range g.before(item, prefix) {
		if err := g.setStage(earlier, prefix); err != nil {
			return err
		}
		item.stage = max(item.stage, earlier.stage+1)
	}
	g.state[item] = visited
	return nil
}
