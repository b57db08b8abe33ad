package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/pkg/rollout"
)

// poolStatus is one item of kubectl guard rollout status.
type poolStatus struct {
	Pool           string    `json:"pool"`
	Selector       string    `json:"selector"`
	MaxUnavailable int       `json:"maxUnavailable"`
	State          poolState `json:"state"`
	// Request is what the pool is asked for.
	Request rollout.Request `json:"request"`
	// Figures of nodes.
	Done    int `json:"done"`
	Working int `json:"working"`
	Failed  int `json:"failed"`
	Pending int `json:"pending"`
	// Earlier is how many requests undo can go back to, the stock kubelet left out.
	Earlier int              `json:"earlier"`
	Nodes   []poolNodeStatus `json:"nodes"`
}

// poolNodeStatus is a node of a pool.
type poolNodeStatus struct {
	Node string `json:"node"`
	// Step of the node with the request of the pool.
	Step  nodeStep `json:"step"`
	Ready bool     `json:"ready"`
	// Marked: the label of a failure is on it.
	Marked bool `json:"marked,omitempty"`
	// Report is the last one of its installer, also of an earlier request.
	Report *rollout.Report `json:"report,omitempty"`
	// Problem says why a report cannot be read.
	Problem string `json:"problem,omitempty"`
}

type poolStatusList struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Items      []poolStatus `json:"items"`
}

type rolloutStatusOptions struct {
	*settings
	output *output
	pools  []string
}

func newRolloutStatusCommand(s *settings) *cobra.Command {
	o := &rolloutStatusOptions{settings: s, output: newOutput(outputTable, outputWide)}
	command := &cobra.Command{
		Use:   "status",
		Short: "Show how far the roll-outs are, by pool and by node",
		Long: `Show how far the roll-outs are, by pool and by node.

STATE of a pool is Observing (installers look and change nothing), Progressing, Paused,
Stopped (a node failed, no further node is begun) or Complete. PHASE of a node is what
its installer reported last; Pending: nothing yet about what is asked for now.`,
		Example: `  kubectl guard rollout status
  kubectl guard rollout status --pool blue -o wide`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(command *cobra.Command, _ []string) error { return o.run(command.Context()) },
	}
	o.output.addFlags(command)
	command.Flags().StringArrayVar(&o.pools, "pool", nil, "Show this pool only; repeat it for several")
	_ = command.RegisterFlagCompletionFunc("pool", s.completePools)
	return command
}

func (o *rolloutStatusOptions) run(ctx context.Context) error {
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	f, err := c.readFleet(ctx)
	if err != nil {
		return err
	}
	pools, err := f.named(o.pools)
	if err != nil {
		return err
	}
	list := poolStatusList{APIVersion: outputVersion, Kind: "PoolStatusList", Items: []poolStatus{}}
	for _, p := range pools {
		status, err := statusOfPool(p)
		if err != nil {
			return err
		}
		list.Items = append(list.Items, status)
	}
	if !o.output.forPeople() {
		return o.output.object(o.Out, &list)
	}
	if len(list.Items) == 0 {
		fmt.Fprintln(o.ErrOut, "No pool has a roll-out. kubectl guard rollout start makes one.")
		return nil
	}
	return o.tables(list.Items)
}

// named returns the pools with the names, or all without names.
func (f *fleet) named(names []string) ([]*nodePool, error) {
	if len(names) == 0 {
		return f.pools, nil
	}
	var (
		pools []*nodePool
		errs  []error
	)
	for _, name := range names {
		if p := f.pool(name); p != nil {
			pools = append(pools, p)
		} else {
			errs = append(errs, fmt.Errorf("--pool: there is no pool %s; kubectl guard rollout status shows all", name))
		}
	}
	return pools, errors.Join(errs...)
}

func statusOfPool(p *nodePool) (poolStatus, error) {
	request, err := rollout.RequestOf(p.set)
	if err != nil {
		return poolStatus{}, err
	}
	progress := p.progress(request)
	status := poolStatus{
		Pool: p.Name, Selector: p.Selector, MaxUnavailable: p.MaxUnavailable,
		State: stateOf(p.set, progress, request), Request: request,
		Done: progress.count(stepDone), Working: progress.count(stepWorking), Failed: progress.count(stepFailed), Pending: progress.count(stepPending),
		Earlier: max(0, len(p.asked)-1),
	}
	for i, node := range progress.nodes {
		item := poolNodeStatus{Node: node.node, Step: node.step, Ready: node.ready, Marked: rollout.Marked(&p.nodes[i]), Report: node.report}
		if node.problem != nil {
			item.Problem = node.problem.Error()
		}
		status.Nodes = append(status.Nodes, item)
	}
	return status, nil
}

func (o *rolloutStatusOptions) tables(items []poolStatus) error {
	columns := []column{
		{name: "Pool"}, {name: "State"}, {name: "Target"}, {name: "Nodes"}, {name: "Done"}, {name: "Working"}, {name: "Failed"}, {name: "Pending"},
		{name: "Selector", wide: true}, {name: "Image", wide: true},
	}
	var rows [][]any
	for _, p := range items {
		rows = append(rows, []any{p.Pool, string(p.State), string(p.Request.Target), len(p.Nodes), p.Done, p.Working, p.Failed, p.Pending, p.Selector, p.Request.Image})
	}
	if err := table(o.Out, o.output.wide(), columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(o.Out)
	columns = []column{
		{name: "Node"}, {name: "Pool"}, {name: "Phase"}, {name: "Version"}, {name: "Mode"}, {name: "Age"},
		{name: "Before", wide: true}, {name: "Message", wide: true},
	}
	rows = nil
	var stopped []poolNodeStatus
	for _, p := range items {
		for _, node := range p.Nodes {
			row := []any{node.Node, p.Pool, string(stepPending), none, none, none, none, node.Problem}
			if report := node.Report; report != nil {
				if node.Step != stepPending {
					row[2] = string(report.Phase)
				}
				row[3], row[4] = orNone(report.Now.Version), orNone(string(report.Now.Mode))
				row[5] = age(o.now(), report.Time.Time)
				row[6], row[7] = orNone(report.Before.Version), report.Message
			}
			rows = append(rows, row)
			if node.Step == stepFailed {
				stopped = append(stopped, node)
			}
		}
	}
	if err := table(o.Out, o.output.wide(), columns, rows); err != nil {
		return err
	}
	if o.output.wide() {
		return nil
	}
	for _, node := range stopped {
		fmt.Fprintf(o.Out, "\n%s: %s\n", node.Node, node.Report.Message)
	}
	return nil
}

func orNone(text string) string {
	if text == "" {
		return none
	}
	return text
}

// completePools offers the names of the pools.
func (s *settings) completePools(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return s.completeFrom(command, arguments, prefix, func(ctx context.Context, c *clients) []string {
		list, err := c.kube.AppsV1().DaemonSets(rollout.Namespace).List(ctx, metav1.ListOptions{LabelSelector: rollout.PoolLabel, Limit: completionLimit})
		if err != nil {
			return nil
		}
		var names []string
		for _, set := range list.Items {
			names = append(names, set.Labels[rollout.PoolLabel])
		}
		return names
	})
}
