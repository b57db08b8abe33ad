package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/image"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/cmd/kubectl-guard/internal/prompt"
	"kubelet-guard.io/pkg/rollout"
)

const (
	// defaultMaxPulls is how many nodes pull the image at the same time. Registries limit
	// this, and so do the networks between.
	defaultMaxPulls = 100
	// slowPull is after how long a node does not keep others from pulling any more.
	slowPull = 2 * time.Minute
)

// inspect starts installers that only inspect the nodes of all pools, and shows what they found.
// A no, or too many nodes that cannot be changed, restores the pools.
func (o *startOptions) inspect(ctx context.Context, c *factory.Clients, plans []*poolPlan) error {
	var started []*poolPlan
	for _, p := range plans {
		if !p.attach {
			started = append(started, p)
		}
	}
	if len(started) == 0 {
		return nil
	}
	err := o.inspectPools(ctx, c, started, plans)
	if err == nil {
		return nil
	}
	return errors.Join(err, o.restorePools(ctx, c, started))
}

func (o *startOptions) inspectPools(ctx context.Context, c *factory.Clients, started, plans []*poolPlan) error {
	for _, p := range started {
		p.inspection = inspection(p.request)
		if err := p.Pool.Apply(ctx, c.Kube, p.inspection, p.History, false); err != nil {
			return err
		}
	}
	for _, p := range started {
		if err := o.inspectPool(ctx, c, p); err != nil {
			return err
		}
		if err := p.checkChecksums(o.checksums); err != nil {
			return err
		}
	}
	if err := o.leaveOut(ctx, c, started); err != nil {
		return err
	}
	for _, p := range started {
		if err := p.pin(); err != nil {
			return err
		}
		digests := map[string]string{}
		err := p.Pool.EachInstaller(ctx, c.Kube, func(pod *corev1.Pod) { digests[pod.Spec.NodeName] = image.DigestOf(pod, p.request.Image) })
		if err != nil {
			return err
		}
		if err := p.resolve(digests, o.allowTag); err != nil {
			return err
		}
		if !image.HasDigest(p.request.Image) {
			o.Warn("pool %s: %s is named by a tag, which can be moved to another image", p.Name, p.request.Image)
		}
	}
	if err := o.showFound(started); err != nil {
		return err
	}
	if o.yes {
		return nil
	}
	return o.Confirm(ctx, fmt.Sprintf("Change nodes: %d, starting with %s?", nodesOf(plans), plans[0].describe()))
}

// inspectPool lets the installers of a pool inspect their nodes, some at a time, until each node that is ready
// has reported or nothing has come for as long as --timeout. A node that is not heard of
// delays no other for longer than slowPull.
func (o *startOptions) inspectPool(ctx context.Context, c *factory.Clients, p *poolPlan) error {
	admitted := map[string]time.Time{} // by node
	moved, reported := o.Now(), 0
	var problem error
	for {
		before := problem
		if problem = p.Pool.Refresh(ctx, c.Kube); problem == nil {
			is, err := rollout.RequestOf(p.Set)
			if err != nil {
				return fmt.Errorf("pool %s: %w", p.Name, err)
			}
			if is.ID() != p.inspection.ID() {
				return p.ChangedByOthers(is)
			}
			p.found = p.Progress(p.inspection)
			if p.found.Settled() {
				return nil
			}
			if n := p.found.Count(pool.StepDone) + p.found.Count(pool.StepFailed); n > reported {
				reported, moved = n, o.Now()
			}
			problem = o.admit(ctx, c, p, admitted)
		}
		if problem != nil && before == nil && ctx.Err() == nil {
			o.Warn("%v; retrying", problem)
		}
		if o.Now().Sub(moved) > o.timeout {
			if problem != nil {
				return exitcode.With(fmt.Errorf("pool %s: no progress for %s, and no node was changed: %w", p.Name, o.timeout, problem), exitcode.Timeout)
			}
			if reported == 0 {
				return o.stalled(ctx, c, p.Pool, p.found, p.inspection)
			}
			return nil
		}
		if err := o.sleep(ctx); err != nil {
			return fmt.Errorf("%w; no node was changed", prompt.ErrInterrupted)
		}
	}
}

// admit removes the gate from as many installers as may pull the image now.
func (o *startOptions) admit(ctx context.Context, c *factory.Clients, p *poolPlan, admitted map[string]time.Time) error {
	room := o.maxPulls
	for _, node := range p.found.Nodes {
		since, is := admitted[node.Node]
		if is && node.Step != pool.StepDone && node.Step != pool.StepFailed && o.Now().Sub(since) < slowPull {
			room--
		}
	}
	if room <= 0 {
		return nil
	}
	opened, err := p.OpenGates(ctx, c.Kube, room)
	for _, node := range opened {
		admitted[node] = o.Now()
	}
	return err
}

// showFound prints what the inspection found: what runs now, and
// what would run.
func (o *startOptions) showFound(plans []*poolPlan) error {
	columns := []printer.Column{{Name: "Pool"}, {Name: "Node"}, {Name: "Now"}, {Name: "Mode"}, {Name: "Then"}, {Name: "Mode"}}
	var rows [][]any
	for _, p := range plans {
		for _, node := range p.found.Nodes {
			row := []any{p.Name, node.Node, printer.None, printer.None, printer.None, string(p.request.Target)}
			if node.Step == pool.StepDone {
				row[2], row[4] = node.Report.Now.Version, node.Report.Offered.Version
				if mode := node.Report.Now.Mode; mode != "" {
					row[3] = string(mode)
				}
			}
			rows = append(rows, row)
		}
	}
	if len(rows) > shownNodes && !o.all {
		rows = printer.GroupRows(rows, 1)
	}
	if !o.yes {
		// The response to the question before ends no line when it is not typed.
		fmt.Fprintln(o.Out)
	}
	if err := printer.PrintTable(o.Out, false, columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(o.Out)
	for _, p := range plans {
		if older := p.older(); len(older) > 0 {
			o.Warn("pool %s: the image has an older patch release than these nodes run: %s", p.Name, printer.Listed(older))
		}
	}
	return nil
}

// older returns the nodes that would get an older release of Kubernetes than they run.
func (p *poolPlan) older() []string {
	var names []string
	for _, node := range p.found.Nodes {
		if node.Step != pool.StepDone {
			continue
		}
		now, err := version.ParseGeneric(node.Report.Now.Version)
		if err != nil {
			continue
		}
		then, err := version.ParseGeneric(node.Report.Offered.Version)
		if err == nil && then.LessThan(now) {
			names = append(names, fmt.Sprintf("%s (%s)", node.Node, node.Report.Now.Version))
		}
	}
	return names
}

// pin ties the request of a pool to the kubelets that its nodes were offered when they
// were inspected: a tag can be moved in between.
func (p *poolPlan) pin() error {
	sums := map[string]string{}
	for _, node := range p.found.Nodes {
		if node.Step != pool.StepDone || node.Report.Offered.SHA256 == "" {
			continue
		}
		arch, sum := node.Report.Architecture, node.Report.Offered.SHA256
		if other := sums[arch]; other != "" && other != sum {
			return fmt.Errorf("pool %s: %s has two kubelets for %s, %.12s and, on node %s, %.12s: its tag was moved. Give every build a tag of its own, or name the image by its digest",
				p.Name, p.request.Image, arch, other, node.Node, sum)
		}
		sums[arch] = sum
	}
	if len(sums) > 0 && len(p.request.KubeletChecksums) == 0 {
		p.request.KubeletChecksums = sums
	}
	versions := map[string]bool{}
	for _, node := range p.found.Nodes {
		if node.Step == pool.StepDone {
			versions[node.Report.Offered.Version] = true
		}
	}
	if p.request.KubeletVersion == "" && len(versions) == 1 {
		p.request.KubeletVersion = slices.Collect(maps.Keys(versions))[0]
	}
	return nil
}
