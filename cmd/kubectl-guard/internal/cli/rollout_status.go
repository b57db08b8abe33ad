package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

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
	// Problem says why the pool cannot be read; the fields below are empty then.
	Problem string `json:"problem,omitempty"`
	// Request is what is requested of the pool.
	Request rollout.Request `json:"request,omitzero"`
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
	// Contradicted: the report says Done, and by the Node another kubelet runs.
	Contradicted rollout.Reason `json:"contradicted,omitempty"`
	// Problem says why a report cannot be read, or does not count.
	Problem string `json:"problem,omitempty"`
}

type poolStatusList struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Items      []poolStatus `json:"items"`
}

type rolloutStatusOptions struct {
	*settings
	output  *output
	pools   []string
	all     bool
	wait    bool
	timeout time.Duration
}

func newRolloutStatusCommand(s *settings) *cobra.Command {
	o := &rolloutStatusOptions{settings: s, output: newOutput(outputTable, outputWide)}
	command := &cobra.Command{
		Use:   "status",
		Short: "Show how far the roll-outs are, by pool and by node",
		Long: `Show how far the roll-outs are, by pool and by node.

STATE of a pool is Observing (installers look and change nothing), Progressing, Paused,
Stopped (a node failed, no further node begins), Complete, or Unreadable (another release
made it). PHASE of a node is what its installer reported last; Pending: nothing yet about
the present request; Unguarded, Guarded or OtherKubelet: it reported Done, and its
kubelet has registered with another version since.

With --wait the command ends when all pools are Complete, with exit code 0, when one is
Stopped, with exit code 3, or after --timeout, with exit code 4. Then it shows them.`,
		Example: `  kubectl guard rollout status
  kubectl guard rollout status --pool blue -o wide
  kubectl guard rollout status --pool blue --wait --timeout 2h`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(command *cobra.Command, _ []string) error { return o.run(command.Context()) },
	}
	o.output.addFlags(command)
	flags := command.Flags()
	flags.StringArrayVar(&o.pools, "pool", nil, "Show this pool only; repeat it for several")
	flags.BoolVar(&o.all, "all", false, "Show each node; of more than 20, those of a kind are a row otherwise")
	flags.BoolVar(&o.wait, "wait", false, "Wait until the pools are Complete, or one is Stopped")
	flags.DurationVar(&o.timeout, "timeout", 0, "With --wait: how long to wait; 0 is as long as it takes")
	_ = command.RegisterFlagCompletionFunc("pool", completePools(s))
	_ = command.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
	return command
}

func (o *rolloutStatusOptions) run(ctx context.Context) error {
	switch {
	case o.timeout < 0:
		return errors.New("--timeout must not be negative")
	case o.timeout > 0 && !o.wait:
		return errors.New("--timeout goes with --wait")
	}
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	f, err := readFleet(ctx, c.kube)
	if err != nil {
		return err
	}
	list, err := o.read(f)
	if err != nil {
		return err
	}
	var ended error
	if o.wait {
		if list, ended = o.await(ctx, c, list); list == nil {
			return ended
		}
	}
	if err := o.show(list); err != nil {
		return err
	}
	if pools, err := f.named(o.pools); err == nil && o.output.forPeople() {
		o.showStranded(ctx, c, pools)
	}
	return ended
}

// read returns the state of the pools.
func (o *rolloutStatusOptions) read(f *fleet) (*poolStatusList, error) {
	pools, err := f.named(o.pools)
	if err != nil {
		return nil, err
	}
	list := &poolStatusList{APIVersion: outputVersion, Kind: "PoolStatusList", Items: []poolStatus{}}
	for _, p := range pools {
		list.Items = append(list.Items, statusOfPool(p))
	}
	return list, nil
}

// await waits until the pools are at an end, and returns their state then with an error
// that has the exit code. Without a state the error is about the command.
func (o *rolloutStatusOptions) await(ctx context.Context, c *clients, list *poolStatusList) (*poolStatusList, error) {
	begun := o.now()
	nodes := watchNodes(ctx, c.kube, "", 2*o.poll)
	var problem error
	for {
		if problem == nil {
			if end, err := endOf(list); end {
				return list, err
			}
		}
		if o.timeout > 0 && o.now().Sub(begun) > o.timeout {
			err := fmt.Errorf("not all pools are Complete after %s", o.timeout)
			if problem != nil {
				err = fmt.Errorf("%w: %w", err, problem)
			}
			return list, withCode(err, exitTimeout)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; the roll-out goes on in the cluster", errInterrupted)
		case <-time.After(2 * o.poll):
		}
		var err error
		if list, err = o.look(ctx, c, nodes, list); err != nil && problem == nil && ctx.Err() == nil {
			o.warn("%v; it is asked again", err) // API servers are restarted, too
		}
		problem = err
	}
}

// look reads the pools again. With an error it returns what was known before.
func (o *rolloutStatusOptions) look(ctx context.Context, c *clients, nodes *nodeWatch, before *poolStatusList) (*poolStatusList, error) {
	f := &fleet{}
	if err := nodes.first(ctx); err != nil {
		return before, err
	}
	var err error
	if f.nodes, err = nodes.list(); err != nil {
		return before, err
	}
	if err := f.readPools(ctx, c.kube); err != nil {
		return before, err
	}
	list, err := o.read(f)
	if err != nil {
		return before, err
	}
	return list, nil
}

// endOf reports whether nothing more is to be awaited, and the error to end with.
func endOf(list *poolStatusList) (bool, error) {
	var stopped, open []string
	for _, p := range list.Items {
		switch p.State {
		case poolUnreadable:
			return true, fmt.Errorf("pool %s cannot be read: %s", p.Pool, p.Problem)
		case poolStopped:
			stopped = append(stopped, p.Pool)
		case poolComplete:
		default:
			open = append(open, p.Pool)
		}
	}
	switch {
	case len(list.Items) == 0:
		return true, errors.New("no pool has a roll-out; there is nothing to wait for")
	case len(stopped) > 0:
		return true, withCode(fmt.Errorf("stopped: %s; kubectl guard rollout status shows the nodes and why", listed(stopped)), exitStopped)
	}
	return len(open) == 0, nil
}

func (o *rolloutStatusOptions) show(list *poolStatusList) error {
	if !o.output.forPeople() {
		return o.output.object(o.Out, list)
	}
	if len(list.Items) == 0 {
		fmt.Fprintln(o.ErrOut, "No pool has a roll-out. kubectl guard rollout start makes one.")
		return nil
	}
	for _, p := range list.Items {
		if p.Problem != "" {
			o.warn("pool %s cannot be read, and only kubectl guard rollout pause works with it: %s", p.Pool, p.Problem)
		}
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
			errs = append(errs, noPool(name))
		}
	}
	return pools, errors.Join(errs...)
}

func noPool(name string) error {
	return fmt.Errorf("--pool: there is no pool %s; kubectl guard rollout status shows all", name)
}

func statusOfPool(p *nodePool) poolStatus {
	if p.problem != nil {
		return poolStatus{Pool: p.Name, State: poolUnreadable, Problem: p.problem.Error()}
	}
	request, err := rollout.RequestOf(p.set)
	if err != nil {
		return poolStatus{Pool: p.Name, State: poolUnreadable, Problem: err.Error()}
	}
	progress := p.progress(request)
	status := poolStatus{
		Pool: p.Name, Selector: p.Selector, MaxUnavailable: p.MaxUnavailable,
		State: stateOf(p.set, progress, request), Request: request,
		Done: progress.count(stepDone), Working: progress.count(stepWorking), Failed: progress.count(stepFailed), Pending: progress.count(stepPending),
		Earlier: max(0, len(p.asked)-1),
	}
	for i, node := range progress.nodes {
		item := poolNodeStatus{Node: node.node, Step: node.step, Ready: node.ready, Marked: rollout.Marked(&p.nodes[i]), Report: node.report, Contradicted: node.contradicted}
		switch {
		case node.problem != nil:
			item.Problem = node.problem.Error()
		case node.otherPool != "":
			item.Problem = node.text()
		}
		status.Nodes = append(status.Nodes, item)
	}
	return status
}

func (o *rolloutStatusOptions) tables(items []poolStatus) error {
	columns := []column{
		{name: "Pool"}, {name: "State"}, {name: "Target"}, {name: "Nodes"}, {name: "Done"}, {name: "Working"}, {name: "Failed"}, {name: "Pending"},
		{name: "Selector", wide: true}, {name: "Image", wide: true},
	}
	var rows [][]any
	for _, p := range items {
		rows = append(rows, []any{p.Pool, string(p.State), orNone(string(p.Request.Target)), len(p.Nodes), p.Done, p.Working, p.Failed, p.Pending, p.Selector, cmp.Or(p.Request.ImageName, p.Request.Image)})
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
	var stopped []nodeLine
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
			if node.Contradicted != "" {
				row[2], row[3], row[4], row[7] = string(node.Contradicted), none, none, node.Problem
			}
			rows = append(rows, row)
			if node.Step == stepFailed || node.Step == stepPending && node.Problem != "" {
				stopped = append(stopped, nodeLine{node.Node, node.Node, cmp.Or(node.Problem, node.Report.Message)})
			}
		}
	}
	if len(rows) > shownNodes && !o.all && !o.output.wide() {
		rows = rowsOf(rows, 0, 5, 7)
	}
	if err := table(o.Out, o.output.wide(), columns, rows); err != nil {
		return err
	}
	if o.output.wide() || len(stopped) == 0 {
		return nil
	}
	if len(stopped) > examples {
		fmt.Fprintf(o.Out, "\n%s\n", grouped(stopped))
		return nil
	}
	for _, node := range stopped {
		fmt.Fprintf(o.Out, "\n%s: %s\n", node.label, node.text)
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
func completePools(s *settings) cobra.CompletionFunc {
	return func(command *cobra.Command, arguments []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return completeFrom(s, command, arguments, prefix, func(ctx context.Context, c *clients) []string {
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
}
