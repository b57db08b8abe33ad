package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/rollout"
)

var errWhichPool = errors.New("which pool? give --pool NAME; kubectl guard rollout status shows all")

// rolloutChangeOptions are of the verbs that change pools that exist.
type rolloutChangeOptions struct {
	rolloutWait
	pools       []string
	yes         bool
	releaseHeld bool
	// stockVersion is the yes to a stock kubelet that does not fit.
	stockVersion string
	dryRun       dryRun
}

func (o *rolloutChangeOptions) command(command *cobra.Command, run func(context.Context, *clients, *fleet, []*nodePool) error) *cobra.Command {
	command.Args = cobra.NoArgs
	command.ValidArgsFunction = cobra.NoFileCompletions
	command.Flags().StringArrayVar(&o.pools, "pool", nil, "Name of the pool; repeat it for several, which are done in this order")
	_ = command.RegisterFlagCompletionFunc("pool", completePools(o.settings))
	command.RunE = func(command *cobra.Command, _ []string) error {
		if len(o.pools) == 0 {
			return errWhichPool
		}
		ctx := command.Context()
		c, err := o.connect()
		if err != nil {
			return err
		}
		f, err := readFleet(ctx, c.kube)
		if err != nil {
			return err
		}
		pools, err := f.named(o.pools)
		if err != nil {
			return err
		}
		for _, p := range pools {
			if p.problem != nil {
				return fmt.Errorf("pool %s cannot be read: %w", p.Name, p.problem)
			}
		}
		return run(ctx, c, f, pools)
	}
	return command
}

// waiting adds the flags of a verb that asks and waits.
func (o *rolloutChangeOptions) waiting(command *cobra.Command, releases bool) *cobra.Command {
	flags := command.Flags()
	flags.BoolVarP(&o.yes, "yes", "y", false, "Do not ask, except about held pods")
	if releases {
		flags.BoolVar(&o.releaseHeld, "release-held", false, "Do not ask about the held pods that are listed, which are stopped by that")
		flags.StringVar(&o.stockVersion, "stock-version", "", "Accept a stock kubelet of this version, such as v1.38.0, although it does not fit the API server or the kubelet that runs")
		_ = command.RegisterFlagCompletionFunc("stock-version", cobra.NoFileCompletions)
		flags.Var(&o.dryRun, "dry-run", "none; client: only show what would be done")
		flags.Lookup("dry-run").NoOptDefVal = string(dryRunClient)
		o.dryRun = dryRunNone
		_ = command.RegisterFlagCompletionFunc("dry-run", cobra.FixedCompletions([]string{"none", "client"}, cobra.ShellCompDirectiveNoFileComp))
	}
	o.rolloutWait.addFlags(command)
	run := command.RunE
	command.RunE = func(command *cobra.Command, arguments []string) error {
		if o.dryRun == dryRunServer {
			return errors.New("--dry-run must be none or client: what happens on nodes cannot be tried on the API server")
		}
		if err := o.rolloutWait.check(); err != nil {
			return err
		}
		return run(command, arguments)
	}
	return command
}

func newRolloutPauseCommand(s *settings) *cobra.Command {
	o := &rolloutChangeOptions{rolloutWait: rolloutWait{settings: s}}
	command := o.command(&cobra.Command{
		Use:   "pause --pool NAME",
		Short: "Let no further node of a pool begin",
		Long: `Let no further node of a pool begin.

A node that is being changed is brought to its end, one way or the other. New nodes of
the pool are not changed either until the roll-out is resumed.

It is one request, a patch of the pool's DaemonSet, which works whatever else the cluster
is busy with and whatever release the pool is from.`,
		Example: `  kubectl guard rollout pause --pool blue`,
	}, nil)
	command.RunE = func(command *cobra.Command, _ []string) error {
		if len(o.pools) == 0 {
			return errWhichPool
		}
		c, err := o.connect()
		if err != nil {
			return err
		}
		return o.pause(command.Context(), c)
	}
	return command
}

// pausing is what makes a DaemonSet a paused pool.
const pausing = `{"metadata":{"annotations":{"` + rollout.PausedAnnotation + `":"true"}},"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null}}}`

// pause pauses all pools that it can: it is the brake.
func (o *rolloutChangeOptions) pause(ctx context.Context, c *clients) error {
	var errs []error
	for _, name := range o.pools {
		_, err := c.kube.AppsV1().DaemonSets(rollout.Namespace).Patch(ctx, rollout.DaemonSetName(name), types.MergePatchType, []byte(pausing), metav1.PatchOptions{FieldManager: fieldManager})
		switch {
		case apierrors.IsNotFound(err):
			errs = append(errs, noPool(name))
		case err != nil:
			errs = append(errs, fmt.Errorf("pool %s: patch DaemonSet %s: %w", name, rollout.DaemonSetName(name), err))
		default:
			fmt.Fprintf(o.Out, "%s: paused\n", name)
		}
	}
	return errors.Join(errs...)
}

func newRolloutResumeCommand(s *settings) *cobra.Command {
	o := &rolloutChangeOptions{rolloutWait: rolloutWait{settings: s}}
	return o.waiting(o.command(&cobra.Command{
		Use:   "resume --pool NAME",
		Short: "Go on with a pool that is paused, or stopped at a node",
		Long: `Go on with a pool that is paused, or stopped at a node.

A node that failed is tried once more: put it right before. The command writes the failed
attempt into the annotation ` + rollout.ResumeAnnotation + ` of the node, takes
the label ` + rollout.StateLabel + `=` + rollout.StateFailed + ` off it and waits as start does.`,
		Example: `  kubectl guard rollout resume --pool blue`,
	}, o.resume), false)
}

func (o *rolloutChangeOptions) resume(ctx context.Context, c *clients, _ *fleet, pools []*nodePool) error {
	for _, p := range pools {
		request, err := rollout.RequestOf(p.set)
		if err != nil {
			return err
		}
		if request.Target == rollout.Observe {
			return fmt.Errorf("pool %s is only looked at; to change it, give kubectl guard rollout start --pool %s", p.Name, p.Name)
		}
		if request.ReleaseHeld {
			return fmt.Errorf("pool %s: its request is of an earlier release and lets every held pod stop, which nobody can agree to any more: give the kubectl guard rollout start, undo or uninstall again that it is from", p.Name)
		}
		progress := p.progress(request)
		failed := progress.named(stepFailed)
		if len(failed) > 0 && !o.yes {
			if err := o.confirm(ctx, fmt.Sprintf("Try %s of pool %s once more (%s)?", count(len(failed), "node"), p.Name, listed(failed))); err != nil {
				return err
			}
		}
		p.stale = progress.reported(stepFailed)
		err = p.change(ctx, c.kube, func(set *appsv1.DaemonSet) {
			delete(set.Annotations, rollout.PausedAnnotation)
			set.Spec.UpdateStrategy = rollout.RollingUpdate(p.Pool)
		})
		if err != nil {
			return err
		}
		if err := unmarkAll(ctx, c.kube, p.nodes, false); err != nil {
			return err
		}
		if err := p.releaseStranded(ctx, c.kube); err != nil {
			return err
		}
		if err := o.complete(ctx, c, p, request); err != nil {
			return err
		}
	}
	return nil
}

func newRolloutUndoCommand(s *settings) *cobra.Command {
	o := &rolloutChangeOptions{rolloutWait: rolloutWait{settings: s}}
	return o.waiting(o.command(&cobra.Command{
		Use:   "undo --pool NAME",
		Short: "Go back to what a pool was asked for before",
		Long: `Go back to what a pool was asked for before.

That is an earlier image, or Audit after Enforce. For the first roll-out of a pool it is
the stock kubelet, as kubectl guard rollout uninstall does it. Nodes are changed at the
pace of the pool; those that were not changed are left alone.`,
		Example: `  kubectl guard rollout undo --pool blue`,
	}, o.undo), true)
}

func (o *rolloutChangeOptions) undo(ctx context.Context, c *clients, _ *fleet, pools []*nodePool) error {
	for _, p := range pools {
		template, err := rollout.RequestOf(p.set)
		if err != nil {
			return err
		}
		plan := &poolPlan{nodePool: p}
		asked := p.asked
		switch {
		case template.Target == rollout.Observe && len(asked) == 0:
			// Nothing was changed: there is only to stop looking.
			if o.dryRun == dryRunClient {
				fmt.Fprintf(o.Out, "%s: no node was changed; its installers go (dry run)\n", p.Name)
				continue
			}
			if err := o.removePool(ctx, c, p); err != nil {
				return err
			}
			fmt.Fprintf(o.Out, "%s: no node was changed; its installers are gone\n", p.Name)
			continue
		case template.Target == rollout.Observe:
			plan.request = asked[len(asked)-1]
		case len(asked) > 1:
			asked = asked[:len(asked)-1]
			plan.request = asked[len(asked)-1]
		default:
			plan.request = rollout.Request{Target: rollout.Stock, Image: template.Image, ImageName: template.ImageName, VerifyTimeout: template.VerifyTimeout, Settle: template.Settle}
			asked = remember(asked, plan.request)
		}
		plan.request.ReleaseHeldUIDs, plan.request.ReleaseHeld = nil, false
		if plan.request.StockVersion = ""; plan.request.Target == rollout.Stock {
			plan.request.StockVersion = o.stockVersion
		}
		if err := o.backTo(ctx, c, plan, asked); err != nil {
			return err
		}
	}
	return nil
}

func newRolloutUninstallCommand(s *settings) *cobra.Command {
	o := &rolloutChangeOptions{rolloutWait: rolloutWait{settings: s}}
	return o.waiting(o.command(&cobra.Command{
		Use:   "uninstall --pool NAME",
		Short: "Return a pool to the stock kubelet and remove its installers",
		Long: `Return a pool to the stock kubelet and remove its installers.

The kubelet is the one that the node had before the first roll-out, or that has come in
its place since. Containers keep running, except those of pods that are held: what the
guard held them for is still there, so they are stopped. They are listed first.`,
		Example: `  kubectl guard rollout uninstall --pool blue`,
	}, o.uninstall), true)
}

func (o *rolloutChangeOptions) uninstall(ctx context.Context, c *clients, f *fleet, pools []*nodePool) error {
	for _, p := range pools {
		template, err := rollout.RequestOf(p.set)
		if err != nil {
			return err
		}
		// Nodes that were left out may have been changed before.
		f.withAll(p)
		plan := &poolPlan{nodePool: p, request: rollout.Request{
			Target: rollout.Stock, Image: template.Image, ImageName: template.ImageName, VerifyTimeout: template.VerifyTimeout, Settle: template.Settle, StockVersion: o.stockVersion,
		}}
		asked := p.asked
		if current := p.current(); current == nil || current.Target != rollout.Stock {
			asked = remember(asked, plan.request)
		}
		if err := o.backTo(ctx, c, plan, asked); err != nil {
			return err
		}
	}
	return nil
}

// backTo shows a plan, asks, changes the pool and, where the stock kubelet is back,
// removes what the roll-out left.
func (o *rolloutChangeOptions) backTo(ctx context.Context, c *clients, plan *poolPlan, asked []rollout.Request) error {
	plans := []*poolPlan{plan}
	plan.queryKubelets(ctx, c.nodes)
	if _, err := o.showPlans(plans, false); err != nil {
		return err
	}
	if o.dryRun == dryRunClient {
		return nil
	}
	if err := o.acceptRelease(ctx, plans, o.yes, o.releaseHeld); err != nil {
		return err
	}
	if !o.yes {
		if err := o.confirm(ctx, fmt.Sprintf("Change %s, %d at a time?", plan.describe(), plan.MaxUnavailable)); err != nil {
			return err
		}
	}
	asked[len(asked)-1] = plan.request
	if err := plan.nodePool.releaseStranded(ctx, c.kube); err != nil {
		return err
	}
	if err := plan.nodePool.put(ctx, c.kube, plan.request, asked, false); err != nil {
		return err
	}
	if err := o.complete(ctx, c, plan.nodePool, plan.request); err != nil {
		return err
	}
	if plan.request.Target != rollout.Stock {
		return nil
	}
	p := plan.nodePool
	if absent := p.progress(plan.request).absent(); len(absent) > 0 {
		return fmt.Errorf("pool %s: the installers stay for the nodes that are not ready: %s. Give the command again when they are back or deleted", p.Name, listed(absent))
	}
	if err := o.removePool(ctx, c, p); err != nil {
		return err
	}
	fmt.Fprintf(o.Out, "%s: its installers are gone\n", p.Name)
	return nil
}
