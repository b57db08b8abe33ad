package rollout

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/kubectl-guard/internal/dryrun"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

func newUndoCommand(s *factory.Factory) *cobra.Command {
	o := &changeOptions{waiter: waiter{Factory: s}}
	o.change = o.undo
	return o.command(&cobra.Command{
		Use:   "undo --pool NAME",
		Short: "Return a pool to its previous request",
		Long: `Return a pool to its previous request.

That is an earlier image, or Audit after Enforce. For the first roll-out of a pool it is
the stock kubelet, as kubectl guard rollout uninstall does it. Nodes are changed at the
pace of the pool; those that were not changed stay as they are.`,
		Example: `  kubectl guard rollout undo --pool blue`,
	}, true)
}

func (o *changeOptions) undo(ctx context.Context, c *factory.Clients, _ *pool.Fleet, pools []*pool.Pool) error {
	for _, p := range pools {
		template, err := rollout.RequestOf(p.Set)
		if err != nil {
			return err
		}
		plan := &poolPlan{Pool: p}
		history := p.History
		switch {
		case template.Target == rollout.Observe && len(history) == 0:
			// Nothing was changed: only the inspection has to stop.
			if o.dryRun == dryrun.Client {
				fmt.Fprintf(o.Out, "%s: no node was changed; its installers go (dry run)\n", p.Name)
				continue
			}
			if err := o.removePool(ctx, c, p); err != nil {
				return err
			}
			fmt.Fprintf(o.Out, "%s: no node was changed; its installers are gone\n", p.Name)
			continue
		case template.Target == rollout.Observe:
			plan.request = history[len(history)-1]
		case len(history) > 1:
			history = history[:len(history)-1]
			plan.request = history[len(history)-1]
		default:
			plan.request = rollout.Request{Target: rollout.Stock, Image: template.Image, ImageName: template.ImageName, VerifyTimeout: template.VerifyTimeout, Settle: template.Settle}
			history = pool.AppendHistory(history, plan.request)
		}
		plan.request.ReleaseHeldUIDs, plan.request.ReleaseHeld = nil, false
		if plan.request.StockVersion = ""; plan.request.Target == rollout.Stock {
			plan.request.StockVersion = o.stockVersion
		}
		if err := o.revert(ctx, c, plan, history); err != nil {
			return err
		}
	}
	return nil
}
