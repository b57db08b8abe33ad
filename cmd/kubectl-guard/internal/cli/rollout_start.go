package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

type rolloutStartOptions struct {
	rolloutWait
	output *output
	dryRun dryRun

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

func newRolloutStartCommand(s *settings) *cobra.Command {
	o := &rolloutStartOptions{rolloutWait: rolloutWait{settings: s}, output: newOutput()}
	command := &cobra.Command{
		Use:   "start --pool NAME=SELECTOR... --mode Audit|Enforce",
		Short: "Roll the guarded kubelet, another version or another mode out to pools of nodes",
		Long: `Roll the guarded kubelet, another version or another mode out to pools of nodes.

It begins with a plan and a question. Then installers are started on the nodes of all
pools that only look: whether the node's kubelet is of the same minor version as the
one in the image, and whether it can be exchanged. Nothing is changed on a node before
all of them could look, and a second question. The pools are done one after the other
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
		RunE: func(command *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			return o.run(command.Context())
		},
	}
	o.output.addFlags(command)
	o.dryRun.addFlag(command)
	flags := command.Flags()
	flags.StringArrayVar(&o.pools, "pool", nil, "NAME=SELECTOR of a pool, or NAME of one that exists; repeat it for several, which are done in this order")
	flags.StringVar(&o.mode, "mode", "", "Audit or Enforce")
	flags.StringVar(&o.image, "image", "", "Image of the installer, which has the kubelet in it")
	flags.StringVar(&o.version, "kubelet-version", "", "Version that the kubelet of the image must have; installers refuse any other")
	flags.StringVar(&o.configuration, "guard-config", "", "File with the guard's configuration, for other pods or allowed causes than by default; its mode must be that of --mode, or left out")
	flags.StringVar(&o.maxUnavailable, "max-unavailable", "", "How many nodes of a pool, or how many percent, may be changed at a time (default 1)")
	flags.BoolVar(&o.manyAtOnce, "many-at-once", false, "Without a question, change more than a quarter of a pool, or more than 50 nodes, at a time")
	flags.BoolVar(&o.allowTag, "allow-tag", false, "Keep the tag of --image where the nodes do not say which digest it has, as with an image that was loaded by hand")
	flags.StringArrayVar(&o.checksumFlags, "kubelet-checksum", nil, "ARCHITECTURE=SHA256 of the kubelet in the image, from where it was published; repeat it for several. Any other kubelet ends the command before anything is changed")
	flags.IntVar(&o.maxPulls, "max-pulls", defaultMaxPulls, "How many nodes may pull the image and look at the same time")
	flags.IntVar(&o.leave, "leave-out", 0, "Without a question, go on without as many nodes that cannot be changed")
	flags.BoolVar(&o.all, "all", false, "Show each node, also of pools with many")
	flags.DurationVar(&o.pause, "pause-between-pools", 0, "How long to wait after a pool before the next one, to see whether it stays well")
	flags.DurationVar(&o.settle, "settle", 0, fmt.Sprintf("How long a changed kubelet has to stay in order before its node is done, from %s to %s (default %[1]s)", rollout.DefaultSettle, rollout.MaxSettle))
	flags.DurationVar(&o.verify, "verify-timeout", 0, fmt.Sprintf("How long a node may take from the restart of its kubelet until it is done, at most %s (default %s, or more for a longer --settle)", rollout.MaxVerifyTimeout, rollout.DefaultVerifyTimeout))
	flags.BoolVar(&o.skipAudit, "skip-audit", false, "Enforce on nodes where Audit has not run, without a question")
	flags.BoolVar(&o.releaseHeld, "release-held", false, "Go from Enforce to Audit without a question about the held pods that are listed, which are stopped by that")
	flags.BoolVarP(&o.yes, "yes", "y", false, "Do not ask, except about held pods and skipped audits, which have flags of their own")
	o.rolloutWait.addFlags(command)
	_ = command.RegisterFlagCompletionFunc("pool", completePools(s))
	_ = command.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{string(guard.Audit), string(guard.Enforce)}, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"image", "kubelet-version", "max-unavailable", "pause-between-pools", "kubelet-checksum", "max-pulls", "leave-out", "settle", "verify-timeout"} {
		_ = command.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return command
}

func (o *rolloutStartOptions) check() error {
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
	case !o.output.forPeople() && o.dryRun != dryRunClient:
		return errors.New("--output goes with --dry-run=client, and prints the DaemonSets; for the state of a roll-out there is kubectl guard rollout status -o yaml")
	}
	var err error
	o.checksums, err = parseChecksums(o.checksumFlags)
	return errors.Join(err, o.rolloutWait.check(), o.output.check())
}

func (o *rolloutStartOptions) run(ctx context.Context) error {
	c, err := o.connect()
	if err != nil {
		return err
	}
	f, err := readFleet(ctx, c.kube)
	if err != nil {
		return err
	}
	plans, err := o.plan(ctx, c, f)
	if err != nil {
		return err
	}
	if !o.output.forPeople() {
		return o.printSets(plans)
	}
	open, err := o.showPlans(plans, o.all)
	if err != nil {
		return err
	}
	if o.dryRun == dryRunClient {
		return nil
	}
	if o.dryRun == dryRunServer {
		return o.checkOnServer(ctx, c, open)
	}
	if len(open) == 0 {
		return nil
	}
	if err := o.accept(ctx, open); err != nil {
		return err
	}
	if err := o.observe(ctx, c, open); err != nil {
		return err
	}
	return o.roll(ctx, c, open)
}

// accept asks what has to be asked before anything is done.
func (o *rolloutStartOptions) accept(ctx context.Context, plans []*poolPlan) error {
	var unaudited []string
	for _, p := range plans {
		if p.request.Target == rollout.Enforce {
			unaudited = append(unaudited, p.unaudited()...)
		}
	}
	if len(unaudited) > 0 && !o.skipAudit {
		o.warn("Audit has not run on %s: %s. It shows what the guard would refuse, and changes nothing; the documented order is Audit for some days, then Enforce", count(len(unaudited), "node"), listed(unaudited))
		if o.yes {
			return errors.New("--mode=Enforce needs --skip-audit where Audit has not run; nothing was done")
		}
		if err := o.confirm(ctx, "Enforce without Audit before it?"); err != nil {
			return err
		}
	}
	if err := o.acceptMany(ctx, plans); err != nil {
		return err
	}
	if err := o.acceptRelease(ctx, plans, o.yes, o.releaseHeld); err != nil {
		return err
	}
	if o.yes {
		return nil
	}
	fmt.Fprintln(o.Out, "Installers look at the nodes first. No node is changed before the next question.")
	return o.confirm(ctx, fmt.Sprintf("Start %s?", count(nodesOf(plans), "installer")))
}

// many reports whether a build that does not work would be on too many nodes before the
// first of them says so.
func many(atOnce, nodes int) bool {
	return atOnce > 1 && (atOnce > 50 || atOnce*4 > nodes)
}

// acceptMany asks about pools of which many nodes are changed at a time.
func (o *rolloutStartOptions) acceptMany(ctx context.Context, plans []*poolPlan) error {
	if o.maxUnavailable == "" || o.manyAtOnce {
		return nil
	}
	for _, p := range plans {
		if !many(p.MaxUnavailable, len(p.nodes)) {
			continue
		}
		text := fmt.Sprintf("%d of %s of pool %s at a time, and a kubelet that does not work may be on all of these before the roll-out stops", p.MaxUnavailable, count(len(p.nodes), "node"), p.Name)
		if o.yes {
			return fmt.Errorf("--max-unavailable=%s is %s: give --many-at-once if that is meant; nothing was done", o.maxUnavailable, text)
		}
		if err := o.confirm(ctx, text+". Is that meant?"); err != nil {
			return err
		}
	}
	return nil
}

// acceptRelease asks about the held pods that were shown, and puts them into the requests.
// A pod that is held later, or on a node that did not answer, is not among them: its node
// refuses.
func (o *rolloutWait) acceptRelease(ctx context.Context, plans []*poolPlan, yes, release bool) error {
	held := 0
	for _, p := range plans {
		if p.releases() {
			held += len(p.held)
		}
	}
	switch {
	case held == 0:
		return nil
	case held > rollout.MaxReleased:
		return fmt.Errorf("%s would be stopped, and at most %d can be agreed to at a time; nothing was done. See kubectl guard holds -A and put right what they are held for, or take smaller pools", count(held, "held pod"), rollout.MaxReleased)
	case release:
	case yes:
		return fmt.Errorf("%s would be stopped; nothing was done. See kubectl guard holds -A and put right what they are held for, or accept it with --release-held", count(held, "held pod"))
	default:
		if err := o.confirm(ctx, fmt.Sprintf("Stop %s?", count(held, "held pod"))); err != nil {
			return err
		}
	}
	for _, p := range plans {
		if p.releases() {
			p.release()
		}
	}
	return nil
}

// release puts the held pods of a plan into its request.
func (p *poolPlan) release() {
	var uids []types.UID
	for _, pod := range p.held {
		uids = append(uids, pod.UID)
	}
	slices.Sort(uids)
	if slices.Equal(uids, p.request.ReleaseHeldUIDs) {
		return
	}
	p.request.ReleaseHeldUIDs = uids
	// It is another request than the one that the pool has.
	p.attach, p.complete = false, false
}

func nodesOf(plans []*poolPlan) int {
	n := 0
	for _, p := range plans {
		n += len(p.nodes)
	}
	return n
}

// putAllBack undoes observe for pools, also after an interrupt.
func (o *rolloutStartOptions) putAllBack(ctx context.Context, c *clients, plans []*poolPlan) error {
	if ctx.Err() != nil {
		fmt.Fprintln(o.ErrOut, "The installers that only look are removed; a second Ctrl-C would leave them.")
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), putBackTimeout+time.Duration(nodesOf(plans))*putBackPerNode)
	defer cancel()
	var errs []error
	for _, p := range plans {
		errs = append(errs, o.putBack(back, c, p))
	}
	return errors.Join(errs...)
}

// putBackTimeout is for the installers of all pools to end, and perNode is added for each
// node that they have written to.
const (
	putBackTimeout = 2 * time.Minute
	putBackPerNode = 50 * time.Millisecond
)

// putBack undoes observe for a pool.
func (o *rolloutStartOptions) putBack(ctx context.Context, c *clients, p *poolPlan) error {
	switch {
	case p.before != nil:
		return p.nodePool.change(ctx, c.kube, func(set *appsv1.DaemonSet) {
			if is, err := rollout.RequestOf(set); err == nil && is.ID() != p.look.ID() {
				return // somebody else has asked for something
			}
			set.Spec, set.Annotations = p.before.Spec, p.before.Annotations
		})
	case p.set != nil:
		return o.removePool(ctx, c, p.nodePool)
	}
	return nil // not even made
}

// roll changes one pool after the other.
func (o *rolloutStartOptions) roll(ctx context.Context, c *clients, plans []*poolPlan) error {
	for i, p := range plans {
		if i > 0 {
			if err := o.between(ctx, c, plans[i-1], p); err != nil {
				return errors.Join(err, o.left(ctx, c, plans[i:]))
			}
		}
		if !p.attach {
			if err := p.nodePool.put(ctx, c.kube, p.request, remember(p.asked, p.request), false); err != nil {
				return errors.Join(err, o.left(ctx, c, plans[i:]))
			}
		}
		if err := o.complete(ctx, c, p.nodePool, p.request); err != nil {
			return errors.Join(err, o.left(ctx, c, plans[i+1:]))
		}
	}
	return nil
}

// between waits and asks before the next pool.
func (o *rolloutStartOptions) between(ctx context.Context, c *clients, done, next *poolPlan) error {
	if o.pause > 0 {
		fmt.Fprintf(o.Out, "%s: watched for %s before %s\n", done.Name, o.pause, next.describe())
		if err := o.watch(ctx, c, done.nodePool, done.request, o.pause); err != nil {
			return err
		}
	}
	if o.yes {
		return nil
	}
	yes, err := o.ask(ctx, fmt.Sprintf("Go on with %s?", next.describe()))
	if err == nil && !yes {
		err = errors.New("not confirmed")
	}
	return err
}

// left names the pools that were not begun. Their installers look on and change nothing,
// unless the command was interrupted: then they go with it.
func (o *rolloutStartOptions) left(ctx context.Context, c *clients, plans []*poolPlan) error {
	if len(plans) == 0 {
		return nil
	}
	var names []string
	var looking []*poolPlan
	for _, p := range plans {
		names = append(names, p.Name)
		if !p.attach {
			looking = append(looking, p)
		}
	}
	if ctx.Err() != nil {
		err := o.putAllBack(ctx, c, looking)
		return errors.Join(fmt.Errorf("not begun: %s. The same command goes on", strings.Join(names, ", ")), err)
	}
	return fmt.Errorf("not begun: %s. The same command goes on; kubectl guard rollout undo --pool %s takes the installers back, which only look", strings.Join(names, ", "), strings.Join(names, " --pool "))
}

// checkOnServer has the API server check the DaemonSets.
func (o *rolloutStartOptions) checkOnServer(ctx context.Context, c *clients, plans []*poolPlan) error {
	for _, p := range plans {
		if err := p.nodePool.put(ctx, c.kube, p.request, p.asked, true); err != nil {
			return err
		}
		fmt.Fprintf(o.Out, "%s: DaemonSet %s accepted%s\n", p.Name, rollout.DaemonSetName(p.Name), o.dryRun.suffix())
	}
	return nil
}
