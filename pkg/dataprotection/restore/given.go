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
