package rollout

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/dryrun"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

var errWhichPool = errors.New("which pool? give --pool NAME; kubectl guard rollout status shows all")

// changeOptions are of the verbs that change pools that exist: resume, undo and uninstall.
type changeOptions struct {
	waiter
	pools       []string
	yes         bool
	releaseHeld bool
	// stockVersion is the yes to a stock kubelet that does not fit.
	stockVersion string
	dryRun       dryrun.Strategy
	// change is what the verb does with the pools.
	change func(context.Context, *factory.Clients, *pool.Fleet, []*pool.Pool) error
}

// addPoolFlag adds the flag that names the pools of a verb.
func addPoolFlag(f *factory.Factory, command *cobra.Command, pools *[]string) {
	command.Args = cobra.NoArgs
	command.ValidArgsFunction = cobra.NoFileCompletions
	command.Flags().StringArrayVar(pools, "pool", nil, "Name of the pool; repeat it for several, which are done in this order")
	_ = command.RegisterFlagCompletionFunc("pool", completion.Pools(f))
}

// command makes a verb of the command. releases: it may end holds.
func (o *changeOptions) command(command *cobra.Command, releases bool) *cobra.Command {
	addPoolFlag(o.Factory, command, &o.pools)
	flags := command.Flags()
	flags.BoolVarP(&o.yes, "yes", "y", false, "Do not ask, except about held pods")
	if releases {
		flags.BoolVar(&o.releaseHeld, "release-held", false, "Do not ask about the held pods that are listed, which are stopped by that")
		flags.StringVar(&o.stockVersion, "stock-version", "", "Accept a stock kubelet of this version, such as v1.38.0, although it does not fit the API server or the kubelet that runs")
		_ = command.RegisterFlagCompletionFunc("stock-version", cobra.NoFileCompletions)
		o.dryRun.AddFlag(command, false)
	}
	o.waiter.addFlags(command)
	command.RunE = verb.RunE(o)
	return command
}

func (o *changeOptions) Validate() error {
	switch {
	case o.dryRun == dryrun.Server:
		return errors.New("--dry-run must be none or client: what happens on nodes cannot be tried on the API server")
	case len(o.pools) == 0:
		return errWhichPool
	}
	return o.waiter.Validate()
}

func (o *changeOptions) Run(ctx context.Context) error {
	c, f, err := pool.Connect(ctx, o.Factory)
	if err != nil {
		return err
	}
	pools, err := f.Named(o.pools)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if p.Problem != nil {
			return fmt.Errorf("pool %s cannot be read: %w", p.Name, p.Problem)
		}
	}
	return o.change(ctx, c, f, pools)
}

// revert shows a plan, confirms it, changes the pool and, where the stock kubelet is back,
// removes what remains of the roll-out.
func (o *changeOptions) revert(ctx context.Context, c *factory.Clients, plan *poolPlan, history []rollout.Request) error {
	plans := []*poolPlan{plan}
	plan.queryKubelets(ctx, c.Nodes)
	if _, err := o.showPlans(plans, false); err != nil {
		return err
	}
	if o.dryRun == dryrun.Client {
		return nil
	}
	if err := o.acceptRelease(ctx, plans, o.yes, o.releaseHeld); err != nil {
		return err
	}
	if !o.yes {
		if err := o.Confirm(ctx, fmt.Sprintf("Change %s, %d at a time?", plan.describe(), plan.MaxUnavailable)); err != nil {
			return err
		}
	}
	history[len(history)-1] = plan.request
	if err := plan.Pool.ReleaseStrandedSlots(ctx, c.Kube); err != nil {
		return err
	}
	if err := plan.Pool.Apply(ctx, c.Kube, plan.request, history, false); err != nil {
		return err
	}
	if err := o.finish(ctx, c, plan.Pool, plan.request); err != nil {
		return err
	}
	if plan.request.Target != rollout.Stock {
		return nil
	}
	p := plan.Pool
	if absent := p.Progress(plan.request).Absent(); len(absent) > 0 {
		return fmt.Errorf("pool %s: the installers stay for the nodes that are not ready: %s. Run the command again when they are ready or deleted", p.Name, printer.Listed(absent))
	}
	if err := o.removePool(ctx, c, p); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "%s: its installers are gone\n", p.Name)
	return nil
}
