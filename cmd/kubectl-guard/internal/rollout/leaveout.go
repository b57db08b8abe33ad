package rollout

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

// leaveOut finds the nodes that cannot be changed, and continues without them when the
// operator confirms.
func (o *startOptions) leaveOut(ctx context.Context, c *factory.Clients, plans []*poolPlan) error {
	var all []printer.NodeLine
	without := map[*poolPlan][]string{}
	for _, p := range plans {
		why := map[string]string{}
		if !p.found.Settled() {
			err := p.Pool.EachInstaller(ctx, c.Kube, func(pod *corev1.Pod) { why[pool.InstallerNode(pod)] = pool.NotRunningReason(pod) })
			if err != nil {
				return err
			}
		}
		for _, node := range p.found.Nodes {
			switch {
			case node.Step == pool.StepFailed:
				all = append(all, printer.NodeLine{Label: p.Name + "/" + node.Node, Name: node.Node, Text: node.Text()})
			case node.Step != pool.StepDone && node.Ready:
				all = append(all, printer.NodeLine{Label: p.Name + "/" + node.Node, Name: node.Node, Text: strings.TrimSuffix(fmt.Sprintf("no report within %s: %s", o.timeout, why[node.Node]), ": ")})
			default:
				continue
			}
			without[p] = append(without[p], node.Node)
		}
	}
	if len(all) == 0 {
		return nil
	}
	text := fmt.Sprintf("nodes that cannot be changed: %d; no node was changed:\n%s", len(all), printer.Group(all))
	for p, names := range without {
		switch {
		case len(names) == len(p.found.Nodes):
			return fmt.Errorf("%s\nThese are all nodes of pool %s. Fix the causes, or choose another pool", text, p.Name)
		case len(names) > rollout.MaxWithout:
			return fmt.Errorf("%s\nAt most %d nodes of a pool can be left out. Fix the causes, or choose pools without them", text, rollout.MaxWithout)
		}
	}
	if len(all) > o.leave {
		if o.yes {
			return fmt.Errorf("%s\nFix the causes, choose pools without these nodes, or continue without them with --leave-out=%d", text, len(all))
		}
		fmt.Fprintf(o.Out, "\n%s\n", text)
		if err := o.Confirm(ctx, fmt.Sprintf("Continue without nodes: %d?", len(all))); err != nil {
			return err
		}
	} else {
		o.Warn("left out: %s", text)
	}
	for p, names := range without {
		p.without(names)
		p.found = p.found.Without(names)
		p.MaxUnavailable = min(p.MaxUnavailable, len(p.Nodes))
	}
	return nil
}
