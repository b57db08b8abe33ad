package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/dryrun"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

type startOptions struct {
	waiter
	output *printer.Output
	dryRun dryrun.Strategy

	pools          []string
	mode           string
	image          string
	version        string
	configuration  string
	maxUnavailable string
	manyAtOnce     bool
	maxPulls       int
	leave          int
	allowTag       bool
	checksumFlags  []string
	checksums      map[string]string
	all            bool
	pause          time.Duration
	settle, verify time.Duration
	skipAudit      bool
	releaseHeld    bool
	yes            bool
}

func newStartCommand(s *factory.Factory) *cobra.Command {
	o := &startOptions{waiter: waiter{Factory: s}, output: printer.New()}
	command := &cobra.Command{
		Use:   "start --pool NAME=SELECTOR... --mode Audit|Enforce",
		Short: "Roll the guarded kubelet, another version or another mode out to pools of nodes",
		Long: `Roll the guarded kubelet, another version or another mode out to pools of nodes.

It starts with a plan and a question. Then installers on the nodes of all pools only
inspect: whether the node's kubelet is of the same minor version as the
one in the image, and whether it can be exchanged. Nothing is changed on a node before
all of them were inspected, and a second question. The pools are done one after the other
in the order in which they are given, with a question before each.

A node whose kubelet is not healthy and guarded in time gets its old one back, unless the
new one holds pods that the old one would stop. It is labelled
` + rollout.StateLabel + `=` + rollout.StateFailed + `, and the roll-out stops there: the command ends with an
error that names it.

A pool that exists is given by its name alone. What is left out, image or mode, stays as
it is.`,
		Example: `  kubectl guard rollout start --pool blue=pool=blue --pool green=pool=green --mode Audit --image IMAGE
  kubectl guard rollout start --pool blue --mode Enforce
  kubectl guard rollout start --pool blue --image NEWER-IMAGE --max-unavailable 10% --yes
  kubectl guard rollout start --pool blue=pool=blue --mode Audit --image IMAGE --dry-run=client -o yaml`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	o.dryRun.AddFlag(command, true)
	flags := command.Flags()
	flags.StringArrayVar(&o.pools, "pool", nil, "NAME=SELECTOR of a pool, or NAME of one that exists; repeat it for several, which are done in this order")
	flags.StringVar(&o.mode, "mode", "", "Audit or Enforce")
	flags.StringVar(&o.image, "image", "", "Image of the installer, which has the kubelet in it")
	flags.StringVar(&o.version, "kubelet-version", "", "Version that the kubelet of the image must have; installers refuse any other")
	flags.StringVar(&o.configuration, "guard-config", "", "File with the guard's configuration, for other pods or allowed causes than by default; its mode must be that of --mode, or left out")
	flags.StringVar(&o.maxUnavailable, "max-unavailable", "", "How many nodes of a pool, or how many percent, may be changed at a time (default 1)")
	flags.BoolVar(&o.manyAtOnce, "many-at-once", false, "Without a question, change more than a quarter of a pool, or more than 50 nodes, at a time")
	flags.BoolVar(&o.allowTag, "allow-tag", false, "Keep the tag of --image where the nodes do not report its digest, as with an image that was loaded by hand")
	flags.StringArrayVar(&o.checksumFlags, "kubelet-checksum", nil, "ARCHITECTURE=SHA256 of the kubelet in the image, from where it was published; repeat it for several. Any other kubelet ends the command before anything is changed")
	flags.IntVar(&o.maxPulls, "max-pulls", defaultMaxPulls, "How many nodes may pull the image and be inspected at the same time")
	flags.IntVar(&o.leave, "leave-out", 0, "Without a question, continue without as many nodes that cannot be changed")
	flags.BoolVar(&o.all, "all", false, "Show each node, also of pools with many")
	flags.DurationVar(&o.pause, "pause-between-pools", 0, "How long to wait after a pool before the next one, to see whether it stays healthy")
	flags.DurationVar(&o.settle, "settle", 0, fmt.Sprintf("How long a changed kubelet has to stay healthy before its node is done, from %s to %s (default %[1]s)", rollout.DefaultSettle, rollout.MaxSettle))
	flags.DurationVar(&o.verify, "verify-timeout", 0, fmt.Sprintf("How long a node may take from the restart of its kubelet until it is done, at most %s (default %s, or more for a longer --settle)", rollout.MaxVerifyTimeout, rollout.DefaultVerifyTimeout))
	flags.BoolVar(&o.skipAudit, "skip-audit", false, "Enforce on nodes where Audit has not run, without a question")
	flags.BoolVar(&o.releaseHeld, "release-held", false, "Go from Enforce to Audit without a question about the held pods that are listed, which are stopped by that")
	flags.BoolVarP(&o.yes, "yes", "y", false, "Do not ask, except about held pods and skipped audits, which have flags of their own")
	o.waiter.addFlags(command)
	_ = command.RegisterFlagCompletionFunc("pool", completion.Pools(s))
	_ = command.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{string(guard.Audit), string(guard.Enforce)}, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"image", "kubelet-version", "max-unavailable", "pause-between-pools", "kubelet-checksum", "max-pulls", "leave-out", "settle", "verify-timeout"} {
		_ = command.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return command
}

func (o *startOptions) Complete(*cobra.Command, []string) (err error) {
	o.checksums, err = parseChecksums(o.checksumFlags)
	return err
}

func (o *startOptions) Validate() error {
	switch {
	case len(o.pools) == 0:
		return errors.New("which nodes? give --pool NAME=SELECTOR, such as --pool blue=pool=blue, or --pool NAME for a pool that exists")
	case o.mode != "" && o.mode != string(guard.Audit) && o.mode != string(guard.Enforce):
		return fmt.Errorf("--mode: %q is neither Audit nor Enforce; the stock kubelet comes back with kubectl guard rollout uninstall", o.mode)
	case o.maxPulls < 1:
		return errors.New("--max-pulls must be at least 1")
	case o.leave < 0 || o.leave > rollout.MaxWithout:
		return fmt.Errorf("--leave-out must be between 0 and %d", rollout.MaxWithout)
	case o.pause < 0:
		return errors.New("--pause-between-pools must not be negative")
	case o.settle != 0 && (o.settle < rollout.DefaultSettle || o.settle > rollout.MaxSettle):
		return fmt.Errorf("--settle: %s is not between %s and %s: a kubelet with a wrong configuration evicts pods 10 seconds after its start", o.settle, rollout.DefaultSettle, rollout.MaxSettle)
	case o.verify != 0 && (o.verify <= rollout.DefaultSettle || o.verify > rollout.MaxVerifyTimeout):
		return fmt.Errorf("--verify-timeout: %s is not longer than %s and at most %s", o.verify, rollout.DefaultSettle, rollout.MaxVerifyTimeout)
	case !o.output.HumanReadable() && o.dryRun != dryrun.Client:
		return errors.New("--output goes with --dry-run=client, and prints the DaemonSets; for the state of a roll-out there is kubectl guard rollout status -o yaml")
	}
	return errors.Join(o.waiter.Validate(), o.output.Validate())
}

func (o *startOptions) Run(ctx context.Context) error {
	c, f, err := pool.Connect(ctx, o.Factory)
	if err != nil {
		return err
	}
	plans, err := o.plan(ctx, c, f)
	if err != nil {
		return err
	}
	if !o.output.HumanReadable() {
		return o.printSets(plans)
	}
	open, err := o.showPlans(plans, o.all)
	if err != nil {
		return err
	}
	if o.dryRun == dryrun.Client {
		return nil
	}
	if o.dryRun == dryrun.Server {
		return o.checkOnServer(ctx, c, open)
	}
	if len(open) == 0 {
		return nil
	}
	if err := o.accept(ctx, open); err != nil {
		return err
	}
	if err := o.inspect(ctx, c, open); err != nil {
		return err
	}
	return o.roll(ctx, c, open)
}

// roll changes one pool after the other.
func (o *startOptions) roll(ctx context.Context, c *factory.Clients, plans []*poolPlan) error {
	for i, p := range plans {
		if i > 0 {
			if err := o.between(ctx, c, plans[i-1], p); err != nil {
				return errors.Join(err, o.notStarted(ctx, c, plans[i:]))
			}
		}
		if !p.attach {
			if err := p.Pool.Apply(ctx, c.Kube, p.request, pool.AppendHistory(p.History, p.request), false); err != nil {
				return errors.Join(err, o.notStarted(ctx, c, plans[i:]))
			}
		}
		if err := o.finish(ctx, c, p.Pool, p.request); err != nil {
			return errors.Join(err, o.notStarted(ctx, c, plans[i+1:]))
		}
	}
	return nil
}

// between waits and confirms before the next pool.
func (o *startOptions) between(ctx context.Context, c *factory.Clients, done, next *poolPlan) error {
	if o.pause > 0 {
		fmt.Fprintf(o.Out, "%s: watched for %s before %s\n", done.Name, o.pause, next.describe())
		if err := o.watch(ctx, c, done.Pool, done.request, o.pause); err != nil {
			return err
		}
	}
	if o.yes {
		return nil
	}
	yes, err := o.Ask(ctx, fmt.Sprintf("Continue with %s?", next.describe()))
	if err == nil && !yes {
		err = errors.New("not confirmed")
	}
	return err
}

// notStarted names the pools that were not started. Their installers change nothing and stay,
// unless the command was interrupted: then they go with it.
func (o *startOptions) notStarted(ctx context.Context, c *factory.Clients, plans []*poolPlan) error {
	if len(plans) == 0 {
		return nil
	}
	var names []string
	var inspecting []*poolPlan
	for _, p := range plans {
		names = append(names, p.Name)
		if !p.attach {
			inspecting = append(inspecting, p)
		}
	}
	if ctx.Err() != nil {
		err := o.restorePools(ctx, c, inspecting)
		return errors.Join(fmt.Errorf("not started: %s. The same command continues", strings.Join(names, ", ")), err)
	}
	return fmt.Errorf("not started: %s. The same command continues; kubectl guard rollout undo --pool %s removes the installers, which only inspect", strings.Join(names, ", "), strings.Join(names, " --pool "))
}

// checkOnServer has the API server check the DaemonSets.
func (o *startOptions) checkOnServer(ctx context.Context, c *factory.Clients, plans []*poolPlan) error {
	for _, p := range plans {
		if err := p.Pool.Apply(ctx, c.Kube, p.request, p.History, true); err != nil {
			return err
		}
		fmt.Fprintf(o.Out, "%s: DaemonSet %s accepted%s\n", p.Name, rollout.DaemonSetName(p.Name), o.dryRun.Suffix())
	}
	return nil
}
