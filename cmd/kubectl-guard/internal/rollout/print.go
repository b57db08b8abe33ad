package rollout

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// showPlans prints the plans and returns those that leave something to do.
func (o *waiter) showPlans(plans []*poolPlan, all bool) ([]*poolPlan, error) {
	var open []*poolPlan
	for _, p := range plans {
		fmt.Fprintf(o.Out, "Pool %s: selector %s, nodes %d, max unavailable %d\n", p.Name, p.Selector, len(p.Nodes), p.MaxUnavailable)
		if current := p.Current(); current != nil {
			fmt.Fprintf(o.Out, "  now:  %s\n", pool.DescribeRequest(*current))
		}
		fmt.Fprintf(o.Out, "  then: %s\n", pool.DescribeRequest(p.request))
		for _, remark := range p.remarks() {
			fmt.Fprintf(o.Out, "  %s\n", remark)
		}
		fmt.Fprintln(o.Out)
		if err := o.showNodes(p, all); err != nil {
			return nil, err
		}
		fmt.Fprintln(o.Out)
		_, silent := pods.Select(p.responses, func(guard.PodState) bool { return false })
		nodes.WarnUnreachable(o.Warn, silent, len(p.responses))
		if p.releases() && len(p.held) > 0 {
			o.showHeld(p)
		}
		switch {
		case p.complete:
			fmt.Fprintf(o.Out, "Pool %s has converged; there is nothing to do.\n\n", p.Name)
			continue
		case p.attach:
			fmt.Fprintf(o.Out, "Pool %s already has this request; the command continues with it.\n\n", p.Name)
		}
		open = append(open, p)
	}
	return open, nil
}

// remarks name the nodes of a pool that may be in it by accident.
func (p *poolPlan) remarks() []string {
	var controlPlane, virtual []string
	for i := range p.Nodes {
		node := &p.Nodes[i]
		_, is := node.Labels["node-role.kubernetes.io/control-plane"]
		_, was := node.Labels["node-role.kubernetes.io/master"]
		if is || was {
			controlPlane = append(controlPlane, node.Name)
		}
		if node.Labels["type"] == "virtual-kubelet" {
			virtual = append(virtual, node.Name)
		}
	}
	var remarks []string
	if len(controlPlane) > 0 {
		remarks = append(remarks, fmt.Sprintf("of the control plane: %s", printer.Listed(controlPlane)))
	}
	if len(virtual) > 0 {
		remarks = append(remarks, fmt.Sprintf("virtual, without a kubelet of its own (leave them out: %s,type!=virtual-kubelet): %s", p.Selector, printer.Listed(virtual)))
	}
	return remarks
}

// shownNodes is how many nodes a table has by default. Of more, those of a kind are a row.
const shownNodes = 20

// showNodes prints what the nodes of a pool are now.
func (o *waiter) showNodes(p *poolPlan, all bool) error {
	columns := []printer.Column{{Name: "Node"}, {Name: "Ready"}, {Name: "State"}, {Name: "Version"}, {Name: "Mode"}, {Name: "Protected"}, {Name: "Held"}}
	var rows [][]any
	for i := range p.responses {
		status := nodes.StatusOf(p.responses[i])
		row := []any{status.Node, printer.YesNo(pool.NodeReady(&p.responses[i].Node)), string(status.State), status.Version, printer.None, printer.None, printer.None}
		if status.State == nodes.Guarded {
			row[4], row[5], row[6] = string(status.Mode), *status.Protected, *status.Held
		}
		rows = append(rows, row)
	}
	if len(rows) > shownNodes && !all {
		rows = printer.GroupRows(rows, 0, 5, 6)
	}
	return printer.PrintTable(o.Out, false, columns, rows)
}

// showHeld prints the held pods that a change releases.
func (o *waiter) showHeld(p *poolPlan) {
	fmt.Fprintf(o.Out, "Held pods of pool %s: %d. The new kubelet stops them as soon as it runs, because the causes are\nstill there:\n", p.Name, len(p.held))
	for _, pod := range p.held {
		// All of them: the question is about these.
		fmt.Fprintf(o.Out, "  %s on %s (%s)\n", pod.Key(), pod.Node, pods.CausesOf(pod.Holds, true))
	}
	fmt.Fprintln(o.Out)
}

// printSets prints the DaemonSets of the plans, ready for kubectl apply.
func (o *startOptions) printSets(plans []*poolPlan) error {
	var items []map[string]any
	for _, p := range plans {
		set, err := rollout.DaemonSet(p.Pool.Pool, p.request)
		if err != nil {
			return err
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(set)
		if err != nil {
			return fmt.Errorf("pool %s: convert its DaemonSet: %w", p.Name, err)
		}
		delete(object, "status")
		items = append(items, object)
	}
	return printer.PrintList(o.output, o.Out, items)
}
