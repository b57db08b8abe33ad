// Package restore writes objects that were deleted to etcd again, with their own UIDs and
// bytes.
//
// The API cannot create an object with a given UID, and owner references, volumes and what
// controllers remember hang on UIDs: so this writes past it, under these rules.
//
//   - A plan first. What cannot be restored safely is refused by name, all at once, before
//     anything is written.
//   - A key is created only if it is absent, or replaced only if it is unchanged since the plan:
//     each transaction compares.
//   - In an order in which no controller removes it again and no client sees half: owners before
//     what they own, or the garbage collector deletes it; custom resources before their
//     definition, so that the first list has all; a Namespace last, so that nothing is created in
//     it meanwhile; what custom resources own after the API serves them.
//   - The version restored is the last that was not terminating: the last one of all would be
//     deleted again at once.
//   - A journal records each transaction before and after it.
package restore

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
)

// Action is what happens to an object of a plan.
type Action string

// The actions.
const (
	// Create writes an object that is absent.
	Create Action = "Create"
	// Replace writes over an object that is there: with another UID, or terminating.
	Replace Action = "Replace"
	// Present: the object is there already.
	Present Action = "Present"
	// LeaveOut: the kind is not restored by default.
	LeaveOut Action = "LeaveOut"
	// Refuse: Reason says why; nothing of the plan is written.
	Refuse Action = "Refuse"
)

// Item is an object of a plan.
type Item struct {
	Action Action `json:"action"`
	Key    string `json:"key"`
	Kind   string `json:"kind"`
	// APIVersion is the version in which the object is stored.
	APIVersion string `json:"apiVersion"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
	// Revision is that of the version to restore.
	Revision int64 `json:"revision,omitempty"`
	// Deleted is the revision of the deletion.
	Deleted int64 `json:"deletedRevision,omitempty"`
	// Acts says what the object does as soon as it is back; empty if it does nothing by itself.
	Acts string `json:"acts,omitempty"`
	// Reason of LeaveOut and Refuse.
	Reason string `json:"reason,omitempty"`

	object *objects.Object
	value  *mvccpb.KeyValue
	// present is what the key holds now; nil for nothing.
	present *mvccpb.KeyValue
	// stage is the position in the order of writes.
	stage int
}

// String is how messages name the object.
func (i *Item) String() string { return i.object.String() }

func (i *Item) name() types.NamespacedName {
	return types.NamespacedName{Namespace: i.Namespace, Name: i.Name}
}

// written reports whether the object is to be written.
func (i *Item) written() bool { return i.Action == Create || i.Action == Replace }

// Plan is what a restore would do.
type Plan struct {
	Selectors []string `json:"selectors"`
	// Source is the file that the objects come from; empty for etcd's own history.
	Source string `json:"source,omitempty"`
	// Bounds of the source.
	history.Bounds
	// Items in the order of writes; those that are not written last.
	Items []*Item `json:"items"`
	// Unchecked says what could not be checked because the API server does not respond.
	Unchecked string `json:"unchecked,omitempty"`
}

// Count returns how many items have an action.
func (p *Plan) Count(action Action) int {
	n := 0
	for _, item := range p.Items {
		if item.Action == action {
			n++
		}
	}
	return n
}

// Writes returns how many objects are written.
func (p *Plan) Writes() int { return p.Count(Create) + p.Count(Replace) }

// Owned returns how many objects are written that have an owner.
func (p *Plan) Owned() int {
	n := 0
	for _, item := range p.Items {
		if item.written() && len(item.object.Owners) > 0 {
			n++
		}
	}
	return n
}

// Options of a plan.
type Options struct {
	Selectors []Selector
	// Revision is the state to restore; 0: what was deleted, and the newest state of a file.
	Revision int64
	// Include has kinds that are left out by default.
	Include []string
	// Acting says what happens to objects that act by themselves; empty refuses them.
	Acting Acting
	// Replace writes over objects that are there.
	Replace bool
	// Source is the snapshot file, for the plan; empty for etcd's own history.
	Source string
}

// Acting is a choice about objects that act by themselves.
type Acting string

// The choices.
const (
	ActingRestore  Acting = "restore"
	ActingLeaveOut Acting = "leave-out"
)

// NewPlan reads the source and the present and returns what a restore would do. from is the
// source; current is the etcd that would be written, and the same as from without a file.
func NewPlan(ctx context.Context, o Options, decoder *objects.Decoder, prefix string, from history.Reader, current *history.Live, api *API) (*Plan, error) {
	s := &source{Reader: from, decoder: decoder, prefix: prefix, live: o.Source == "", revision: o.Revision, unreadable: map[string]error{}}
	candidates, err := s.selectObjects(ctx, o.Selectors)
	if err != nil {
		return nil, err
	}
	p := &Plan{Source: o.Source, Bounds: from.Bounds()}
	for _, selector := range o.Selectors {
		p.Selectors = append(p.Selectors, selector.String())
	}
	for _, c := range candidates {
		p.Items = append(p.Items, newItem(c))
	}
	for key, err := range s.unreadable {
		if slices.ContainsFunc(o.Selectors, func(selector Selector) bool { return selector.matchesKey(prefix, key) }) {
			p.Items = append(p.Items, &Item{
				Action: Refuse, Key: key, Reason: err.Error(), object: &objects.Object{Key: key, Name: key},
			})
		}
	}
	if err := p.comparePresent(ctx, decoder, current, o.Replace); err != nil {
		return nil, err
	}
	p.leaveOut(o.Include)
	p.markActing(o.Acting)
	c := &checks{plan: p, decoder: decoder, prefix: prefix, current: current, api: api}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return p, p.sort(prefix)
}

func newItem(c *candidate) *Item {
	object := c.object
	if c.goodObject != nil {
		object = c.goodObject
	}
	item := &Item{
		Action: Create, Key: object.Key, Kind: object.Kind, APIVersion: object.GroupVersion().String(),
		Namespace: object.Namespace, Name: object.Name, UID: string(object.UID), Deleted: c.deleted,
		object: object, value: c.good,
	}
	if c.err != nil {
		item.refuse("%v", c.err)
	} else {
		item.Revision = c.good.ModRevision
	}
	return item
}

// refuse keeps the first reason.
func (i *Item) refuse(format string, arguments ...any) {
	if i.Action != Refuse {
		i.Action, i.Reason = Refuse, fmt.Sprintf(format, arguments...)
	}
}

// comparePresent reads what the keys hold now.
func (p *Plan) comparePresent(ctx context.Context, decoder *objects.Decoder, current *history.Live, replace bool) error {
	keys := make([]string, len(p.Items))
	for i, item := range p.Items {
		keys[i] = item.Key
	}
	present, err := current.GetAll(ctx, keys)
	if err != nil {
		return err
	}
	for i, item := range p.Items {
		kv := present[i]
		if kv == nil {
			continue
		}
		item.present = kv
		there, err := decoder.Decode(ctx, item.Key, kv.Value)
		switch {
		case err != nil:
			item.refuse("its key is damaged: %v; guard-etcd scan --revert restores damaged keys", err)
		case there.UID == item.object.UID && there.Terminating == nil:
			item.Action, item.Reason = Present, ""
		case item.Action == Refuse:
		case replace:
			item.Action = Replace
		case there.UID == item.object.UID:
			item.refuse("it is terminating, and there until its finalizers are removed (%v); --replace restores it as it was before", there.Finalizers)
		default:
			item.refuse("another object of that name was created, with UID %s; --replace writes over it", there.UID)
		}
	}
	return nil
}

// sort puts the items into the order of writes.
func (p *Plan) sort(prefix string) error {
	if err := p.setStages(prefix); err != nil {
		return err
	}
	rank := map[Action]int{Create: 0, Replace: 0, Present: 1, LeaveOut: 2, Refuse: 3}
	slices.SortStableFunc(p.Items, func(a, b *Item) int {
		return cmp.Or(cmp.Compare(rank[a.Action], rank[b.Action]), cmp.Compare(a.stage, b.stage), cmp.Compare(a.Key, b.Key))
	})
	return nil
}
