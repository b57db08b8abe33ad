package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/rollout"
)

const (
	// defaultMaxPulls is how many nodes pull the image at the same time. Registries limit
	// this, and so do the networks between.
	defaultMaxPulls = 100
	// slowPull is after how long a node does not keep others from pulling any more.
	slowPull = 2 * time.Minute
)

// observe starts installers that only look on all pools, and shows what they found. A no, or
// too many nodes that cannot be changed, puts the pools back as they were.
func (o *rolloutStartOptions) observe(ctx context.Context, c *clients, plans []*poolPlan) error {
	var begun []*poolPlan
	for _, p := range plans {
		if !p.attach {
			begun = append(begun, p)
		}
	}
	if len(begun) == 0 {
		return nil
	}
	err := o.look(ctx, c, begun, plans)
	if err == nil {
		return nil
	}
	return errors.Join(err, o.putAllBack(ctx, c, begun))
}

func (o *rolloutStartOptions) look(ctx context.Context, c *clients, begun, plans []*poolPlan) error {
	for _, p := range begun {
		p.look = observing(p.request)
		if err := p.nodePool.put(ctx, c.kube, p.look, p.asked, false); err != nil {
			return err
		}
	}
	for _, p := range begun {
		if err := o.lookAt(ctx, c, p); err != nil {
			return err
		}
		if err := p.checkChecksums(o.checksums); err != nil {
			return err
		}
	}
	if err := o.leaveOut(ctx, c, begun); err != nil {
		return err
	}
	for _, p := range begun {
		if err := p.pin(); err != nil {
			return err
		}
		digests := map[string]string{}
		err := p.nodePool.eachInstaller(ctx, c.kube, func(pod *corev1.Pod) { digests[pod.Spec.NodeName] = digestOf(pod, p.request.Image) })
		if err != nil {
			return err
		}
		if err := p.resolve(digests, o.allowTag); err != nil {
			return err
		}
		if !hasDigest(p.request.Image) {
			o.warn("pool %s: %s is named by a tag, which can be moved to another image", p.Name, p.request.Image)
		}
	}
	if err := o.showFound(begun); err != nil {
		return err
	}
	if o.yes {
		return nil
	}
	return o.confirm(ctx, fmt.Sprintf("Change %s, beginning with %s?", count(nodesOf(plans), "node"), plans[0].describe()))
}

// lookAt lets the installers of a pool look, some at a time, until each node that is ready
// has reported or nothing has come for as long as --timeout. A node that is not heard of
// delays no other for longer than slowPull.
func (o *rolloutStartOptions) lookAt(ctx context.Context, c *clients, p *poolPlan) error {
	admitted := map[string]time.Time{} // by node
	moved, reported := o.now(), 0
	var problem error
	for {
		before := problem
		if problem = p.nodePool.read(ctx, c.kube, 2*o.poll); problem == nil {
			is, err := rollout.RequestOf(p.set)
			if err != nil {
				return fmt.Errorf("pool %s: %w", p.Name, err)
			}
			if is.ID() != p.look.ID() {
				return p.changedByOthers(is)
			}
			p.found = p.progress(p.look)
			if p.found.settled() {
				return nil
			}
			if n := p.found.count(stepDone) + p.found.count(stepFailed); n > reported {
				reported, moved = n, o.now()
			}
			problem = o.admit(ctx, c, p, admitted)
		}
		if problem != nil && before == nil && ctx.Err() == nil {
			o.warn("%v; it is asked again", problem)
		}
		if o.now().Sub(moved) > o.timeout {
			if problem != nil {
				return withCode(fmt.Errorf("pool %s: nothing was seen for %s, and no node was changed: %w", p.Name, o.timeout, problem), exitTimeout)
			}
			if reported == 0 {
				return o.stuck(ctx, c, p.nodePool, p.found, p.look)
			}
			return nil
		}
		if err := o.sleep(ctx); err != nil {
			return fmt.Errorf("%w; no node was changed", errInterrupted)
		}
	}
}

// admit removes the gate from as many installers as may pull the image now.
func (o *rolloutStartOptions) admit(ctx context.Context, c *clients, p *poolPlan, admitted map[string]time.Time) error {
	room := o.maxPulls
	for _, node := range p.found.nodes {
		since, is := admitted[node.node]
		if is && node.step != stepDone && node.step != stepFailed && o.now().Sub(since) < slowPull {
			room--
		}
	}
	if room <= 0 {
		return nil
	}
	pods := c.kube.CoreV1().Pods(rollout.Namespace)
	// Those with a gate are on no node yet.
	options := metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + p.Name, FieldSelector: "spec.nodeName=", Limit: nodesPage}
	for room > 0 {
		list, err := pods.List(ctx, options)
		if err != nil {
			return fmt.Errorf("pool %s: list its installers: %w", p.Name, err)
		}
		for i := range list.Items {
			pod := &list.Items[i]
			if room == 0 {
				return nil
			}
			gated := slices.ContainsFunc(pod.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == rollout.LookGate })
			if !gated || pod.DeletionTimestamp != nil {
				continue
			}
			_, err := pods.Patch(ctx, pod.Name, types.MergePatchType, []byte(`{"spec":{"schedulingGates":null}}`), metav1.PatchOptions{FieldManager: fieldManager})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("pool %s: let installer %s look: %w", p.Name, pod.Name, err)
			}
			admitted[nodeOf(pod)] = o.now()
			room--
		}
		if list.Continue == "" {
			return nil
		}
		options.Continue = list.Continue
	}
	return nil
}

// leaveOut finds the nodes that cannot be changed, and goes on without them when the operator
// says so.
func (o *rolloutStartOptions) leaveOut(ctx context.Context, c *clients, plans []*poolPlan) error {
	var all []nodeLine
	without := map[*poolPlan][]string{}
	for _, p := range plans {
		why := map[string]string{}
		if !p.found.settled() {
			err := p.nodePool.eachInstaller(ctx, c.kube, func(pod *corev1.Pod) { why[nodeOf(pod)] = waitingFor(pod) })
			if err != nil {
				return err
			}
		}
		for _, node := range p.found.nodes {
			switch {
			case node.step == stepFailed:
				all = append(all, nodeLine{p.Name + "/" + node.node, node.node, node.text()})
			case node.step != stepDone && node.ready:
				all = append(all, nodeLine{p.Name + "/" + node.node, node.node, strings.TrimSuffix(fmt.Sprintf("no report within %s: %s", o.timeout, why[node.node]), ": ")})
			default:
				continue
			}
			without[p] = append(without[p], node.node)
		}
	}
	if len(all) == 0 {
		return nil
	}
	text := fmt.Sprintf("%s cannot be changed, and none was:\n%s", count(len(all), "node"), grouped(all))
	for p, names := range without {
		switch {
		case len(names) == len(p.found.nodes):
			return fmt.Errorf("%s\nThat is all of pool %s. Put it right, or choose another pool", text, p.Name)
		case len(names) > rollout.MaxWithout:
			return fmt.Errorf("%s\nAt most %d nodes of a pool can be left out. Put it right, or choose pools without", text, rollout.MaxWithout)
		}
	}
	if len(all) > o.leave {
		if o.yes {
			return fmt.Errorf("%s\nPut it right, choose pools without, or go on without them with --leave-out=%d", text, len(all))
		}
		fmt.Fprintf(o.Out, "\n%s\n", text)
		if err := o.confirm(ctx, fmt.Sprintf("Go on without %s?", count(len(all), "node"))); err != nil {
			return err
		}
	} else {
		o.warn("left out: %s", text)
	}
	for p, names := range without {
		p.without(names)
		p.found = p.found.without(names)
		p.MaxUnavailable = min(p.MaxUnavailable, len(p.nodes))
	}
	return nil
}

// nodeLine is what there is to say about a node.
type nodeLine struct{ label, name, text string }

// examples is how many nodes a message names.
const examples = 10

// grouped is a line for each node, or, for many, one for all of which the same is said. At
// most ten lines, the greatest groups first, with at most ten names each.
func grouped(lines []nodeLine) string {
	type group struct {
		text   string
		labels []string
		first  nodeLine
	}
	var groups []*group
	index := map[string]*group{}
	for _, line := range lines {
		key := strings.ReplaceAll(line.text, line.name, "NODE")
		if len(lines) <= examples {
			key = line.label // all have a line
		}
		g := index[key]
		if g == nil {
			g = &group{text: key, first: line}
			index[key] = g
			groups = append(groups, g)
		}
		g.labels = append(g.labels, line.label)
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return len(b.labels) - len(a.labels) })
	var text []string
	for i, g := range groups {
		if i == examples {
			rest := 0
			for _, g := range groups[i:] {
				rest += len(g.labels)
			}
			text = append(text, fmt.Sprintf("  and %s more; kubectl guard rollout status --all shows each", count(rest, "node")))
			break
		}
		if len(g.labels) == 1 {
			text = append(text, fmt.Sprintf("  %s: %s", g.first.label, g.first.text))
			continue
		}
		text = append(text, fmt.Sprintf("  %d nodes: %s: %s", len(g.labels), g.text, listed(g.labels)))
	}
	return strings.Join(text, "\n")
}
