package restore

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"kubelet-guard.io/pkg/dataprotection/history"
	"kubelet-guard.io/pkg/dataprotection/objects"
)

// Given is an object that comes from elsewhere than the history of an etcd.
type Given struct {
	Object *objects.Object
	// Value is what is written: the object as the API server stores it.
	Value []byte
	// LeaveOut says why it is not written; empty if it is.
	LeaveOut string
}

// NewPlanOf returns the plan to write given objects, with the same checks and in the same order
// as NewPlan. name is that of the plan in the journal, source where the objects come from.
func NewPlanOf(ctx context.Context, name, source string, given []Given, decoder *objects.Decoder, prefix string, current *history.Live, api *API) (*Plan, error) {
	p := &Plan{Selectors: []string{name}, Source: source}
	for _, g := range given {
		o := g.Object
		p.Items = append(p.Items, &Item{
			Action: Create, Key: o.Key, Kind: o.Kind, APIVersion: o.GroupVersion().String(),
			Namespace: o.Namespace, Name: o.Name, UID: string(o.UID),
			object: o, value: &mvccpb.KeyValue{Key: []byte(o.Key), Value: g.Value},
		})
	}
	if err := p.comparePresent(ctx, decoder, current, false); err != nil {
		return nil, err
	}
	for i, g := range given {
		// What is there with its UID needs no reason.
		if item := p.Items[i]; g.LeaveOut != "" && item.Action != Present {
			item.Action, item.Reason = LeaveOut, g.LeaveOut
		}
	}
	c := &checks{plan: p, decoder: decoder, prefix: prefix, current: current, api: api}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return p, p.sort(prefix)
}

// Repair is a damaged key and the version that it is to hold again.
type Repair struct {
	Object *objects.Object
	// Good is the version to write, Damaged the one that the key holds.
	Good, Damaged *mvccpb.KeyValue
}

// NewPlanOfRepairs returns the plan to write readable versions over damaged ones. Each is a
// transaction of its own, so that a key that has changed since keeps no other one damaged before
// it. There is nothing to check: the objects are there, and only their values are not readable.
func NewPlanOfRepairs(name, source string, bounds history.Bounds, repairs []Repair) *Plan {
	p := &Plan{Selectors: []string{name}, Source: source, Bounds: bounds}
	for i, r := range repairs {
		o := r.Object
		p.Items = append(p.Items, &Item{
			Action: Replace, Key: o.Key, Kind: o.Kind, APIVersion: o.GroupVersion().String(),
			Namespace: o.Namespace, Name: o.Name, UID: string(o.UID), Revision: r.Good.ModRevision,
			object: o, value: r.Good, present: r.Damaged, stage: i,
		})
	}
	return p
}
