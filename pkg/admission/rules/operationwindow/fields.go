package operationwindow

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Path is the way from the object to a field: names of fields, and keys of lists and
// maps in brackets. In the path of a FieldSet the key * stands for any.
type Path []Step

// Step is one part of a Path.
type Step struct {
	// Name of a field, or key of an element.
	Name string
	// Key is true for an element of a list or a map that is written in brackets.
	Key bool
}

const anyKey = "*"

// String returns the path as people write it.
func (p Path) String() string {
	var text strings.Builder
	for i, step := range p {
		switch {
		case step.Key:
			text.WriteString("[" + step.Name + "]")
		case i > 0:
			text.WriteString("." + step.Name)
		default:
			text.WriteString(step.Name)
		}
	}
	return text.String()
}

func (p Path) child(step Step) Path { return append(p[:len(p):len(p)], step) }

// covers reports whether the field is at or below the path. Whether a part is in
// brackets does not matter: labels.app and labels[app] are the same field.
func (p Path) covers(field Path) bool {
	if len(p) > len(field) {
		return false
	}
	for i, step := range p {
		if step.Name != field[i].Name && (!step.Key || step.Name != anyKey) {
			return false
		}
	}
	return true
}

// parsePath reads a path below spec.
func parsePath(text string) (Path, error) {
	var path Path
	rest := text
	for rest != "" {
		var step Step
		switch {
		case rest[0] == '[':
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return nil, errors.New("a [ has no ]")
			}
			step, rest = Step{Name: rest[1:end], Key: true}, rest[end+1:]
		default:
			if len(path) > 0 {
				if rest[0] != '.' {
					return nil, fmt.Errorf("expected . or [ before %q", rest)
				}
				rest = rest[1:]
			}
			end := strings.IndexAny(rest, ".[")
			if end < 0 {
				end = len(rest)
			}
			step, rest = Step{Name: rest[:end]}, rest[end:]
		}
		if step.Name == "" || strings.ContainsAny(step.Name, "] \t\n[") {
			return nil, errors.New("has an empty or broken part; write for example spec.template.spec.containers[web].livenessProbe")
		}
		path = append(path, step)
	}
	if len(path) < 2 || path[0] != (Step{Name: "spec"}) {
		return nil, errors.New("must be below spec; for all of it use the field category All")
	}
	return path, nil
}

// Diff returns the paths of the fields below spec in which two workloads of one kind
// differ, as decoded from JSON. The paths are as long as possible, and ordered.
// Elements of a list that all have a name are identified by it, others by their
// position.
func Diff(before, after map[string]any) []Path {
	var changed []Path
	diff(Path{{Name: "spec"}}, before["spec"], after["spec"], &changed)
	return changed
}

func diff(at Path, before, after any, changed *[]Path) {
	oldMap, wasMap := before.(map[string]any)
	newMap, isMap := after.(map[string]any)
	oldList, wasList := before.([]any)
	newList, isList := after.([]any)
	switch {
	// A map that comes or goes is a change of the fields in it: the first annotation
	// is the same change as the second. An empty one, as emptyDir, is a change itself.
	case wasMap && isMap, wasMap && len(oldMap) > 0 && after == nil, isMap && len(newMap) > 0 && before == nil:
		diffMaps(at, oldMap, newMap, changed)
	case wasList && isList:
		diffLists(at, oldList, newList, changed)
	case !reflect.DeepEqual(before, after):
		*changed = append(*changed, at)
	}
}

// diffMaps compares key by key. A key that is null is the same as none.
func diffMaps(at Path, before, after map[string]any, changed *[]Path) {
	keys := map[string]any{}
	maps.Copy(keys, before)
	maps.Copy(keys, after)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		diff(at.child(Step{Name: key, Key: strings.ContainsAny(key, "./")}), before[key], after[key], changed)
	}
}

func diffLists(at Path, before, after []any, changed *[]Path) {
	names, ok := namesOf(before)
	newNames, newOK := namesOf(after)
	if !ok || !newOK {
		names, newNames = positions(before), positions(after)
	}
	known := len(*changed)
	for i, name := range names {
		path := at.child(Step{Name: name, Key: true})
		if j := slices.Index(newNames, name); j >= 0 {
			diff(path, before[i], after[j], changed)
		} else {
			*changed = append(*changed, path)
		}
	}
	for _, name := range newNames {
		if !slices.Contains(names, name) {
			*changed = append(*changed, at.child(Step{Name: name, Key: true}))
		}
	}
	// The order alone is a change too: of containers, it starts other pods.
	if len(*changed) == known && !slices.Equal(names, newNames) {
		*changed = append(*changed, at)
	}
}

func positions(list []any) []string {
	names := make([]string, len(list))
	for i := range list {
		names[i] = strconv.Itoa(i)
	}
	return names
}

// namesOf returns the names of the elements, and false unless each has one of its
// own.
func namesOf(list []any) ([]string, bool) {
	names := make([]string, 0, len(list))
	for _, element := range list {
		fields, _ := element.(map[string]any)
		name, _ := fields["name"].(string)
		if name == "" || slices.Contains(names, name) {
			return nil, false
		}
		names = append(names, name)
	}
	return names, true
}

// categories are the paths that belong to each category, apart from All.
var categories = []struct {
	category guardv1alpha1.FieldCategory
	paths    []Path
}{
	{guardv1alpha1.ImageFields, paths(
		"spec.template.spec.containers[*].image",
		"spec.template.spec.initContainers[*].image",
		"spec.template.spec.volumes[*].image",
	)},
	{guardv1alpha1.EnvironmentFields, paths(
		"spec.template.spec.containers[*].env",
		"spec.template.spec.containers[*].envFrom",
		"spec.template.spec.initContainers[*].env",
		"spec.template.spec.initContainers[*].envFrom",
	)},
	{guardv1alpha1.ResourceFields, paths(
		"spec.template.spec.containers[*].resources",
		"spec.template.spec.initContainers[*].resources",
		"spec.template.spec.resources",
	)},
	{guardv1alpha1.ReplicasField, paths("spec.replicas")},
}

func paths(texts ...string) []Path {
	parsed := make([]Path, len(texts))
	for i, text := range texts {
		path, err := parsePath(text)
		if err != nil {
			panic(fmt.Sprintf("path %s: %v", text, err))
		}
		parsed[i] = path
	}
	return parsed
}

// CategoryOf returns the category of the field, empty when it has none but All. A
// whole container that comes or goes has none.
func CategoryOf(field Path) guardv1alpha1.FieldCategory {
	for _, entry := range categories {
		for _, path := range entry.paths {
			if path.covers(field) {
				return entry.category
			}
		}
	}
	return ""
}

// fieldSet is a FieldSet that has been read.
type fieldSet struct {
	fields []guardv1alpha1.FieldCategory
	paths  []Path
}

// newFieldSet leaves out paths that cannot be read, so that they allow nothing.
func newFieldSet(set guardv1alpha1.FieldSet) fieldSet {
	read := fieldSet{fields: set.Fields}
	for _, text := range set.Paths {
		if path, err := parsePath(text); err == nil {
			read.paths = append(read.paths, path)
		}
	}
	return read
}

func (s fieldSet) allows(field Path) bool {
	if slices.Contains(s.fields, guardv1alpha1.AllFields) {
		return true
	}
	if category := CategoryOf(field); category != "" && slices.Contains(s.fields, category) {
		return true
	}
	return slices.ContainsFunc(s.paths, func(path Path) bool { return path.covers(field) })
}
