package rollout

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/pkg/rollout"
)

// restoreTimeout is for the installers of all pools to end, and perNode is added for each
// node that they have written to.
const (
	restoreTimeout = 2 * time.Minute
	restorePerNode = 50 * time.Millisecond
)

// restorePools reverts inspect for pools, also after an interrupt.
func (o *startOptions) restorePools(ctx context.Context, c *factory.Clients, plans []*poolPlan) error {
	if ctx.Err() != nil {
		fmt.Fprintln(o.ErrOut, "Removing the installers that only inspect; a second Ctrl-C would leave them.")
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreTimeout+time.Duration(nodesOf(plans))*restorePerNode)
	defer cancel()
	var errs []error
	for _, p := range plans {
		errs = append(errs, o.restorePool(back, c, p))
	}
	return errors.Join(errs...)
}

// restorePool reverts inspect for a pool.
func (o *startOptions) restorePool(ctx context.Context, c *factory.Clients, p *poolPlan) error {
	switch {
	case p.before != nil:
		return p.Pool.Update(ctx, c.Kube, func(set *appsv1.DaemonSet) {
			if is, err := rollout.RequestOf(set); err == nil && is.ID() != p.inspection.ID() {
				return // another user has changed the request
			}
			set.Spec, set.Annotations = p.before.Spec, p.before.Annotations
		})
	case p.Set != nil:
		return o.removePool(ctx, c, p.Pool)
	}
	return nil // not even made
}
