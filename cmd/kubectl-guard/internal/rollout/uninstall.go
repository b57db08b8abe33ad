package rollout

import (
	"context"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

func newUninstallCommand(s *factory.Factory) *cobra.Command {
	o := &changeOptions{waiter: waiter{Factory: s}}
	o.change = o.uninstall
	return o.command(&cobra.Command{
		Use:   "uninstall --pool NAME",
		Short: "Return a pool to the stock kubelet and remove its installers",
		Long: `Return a pool to the stock kubelet and remove its installers.

The kubelet is the one that the node had before the first roll-out, or that replaced
it since. Containers keep running, except those of pods that are held: what the
guard held them for is still there, so they are stopped. They are listed first.`,
		Example: `  kubectl guard rollout uninstall --pool blue`,
	}, true)
}

func (o *changeOptions) uninstall(ctx context.Context, c *factory.Clients, f *pool.Fleet, pools []*pool.Pool) error {
	for _, p := range pools {
		template, err := rollout.RequestOf(p.Set)
		if err != nil {
			return err
		}
		// Nodes that were left out may have been changed before.
		f.RestoreLeftOut(p)
		plan := &poolPlan{Pool: p, request: rollout.Request{
			Target: rollout.Stock, Image: template.Image, ImageName: template.ImageName, VerifyTimeout: template.VerifyTimeout, Settle: template.Settle, StockVersion: o.stockVersion,
		}}
		history := p.History
		if current := p.Current(); current == nil || current.Target != rollout.Stock {
			history = pool.AppendHistory(history, plan.request)
		}
		if err := o.revert(ctx, c, plan, history); err != nil {
			return err
		}
	}
	return nil
}
