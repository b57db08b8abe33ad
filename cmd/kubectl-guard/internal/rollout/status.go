package rollout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodewatch"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/cmd/kubectl-guard/internal/prompt"
	"kubelet-guard.io/pkg/rollout"
)

// poolStatus is one item of kubectl guard rollout status.
type poolStatus struct {
	Pool           string     `json:"pool"`
	Selector       string     `json:"selector"`
	MaxUnavailable int        `json:"maxUnavailable"`
	State          pool.State `json:"state"`
	// Problem is why the pool cannot be read; the fields below are empty then.
	Problem string `json:"problem,omitempty"`
	// Request is what is requested of the pool.
	Request rollout.Request `json:"request,omitzero"`
	// Figures of nodes.
	Done    int `json:"done"`
	Working int `json:"working"`
	Failed  int `json:"failed"`
	Pending int `json:"pending"`
	// Earlier is how many requests undo can return to, the stock kubelet left out.
	Earlier int              `json:"earlier"`
	Nodes   []poolNodeStatus `json:"nodes"`
}

// poolNodeStatus is a node of a pool.
type poolNodeStatus struct {
	Node string `json:"node"`
	// Step of the node with the request of the pool.
	Step  pool.Step `json:"step"`
	Ready bool      `json:"ready"`
	// Marked: the label of a failure is on it.
	Marked bool `json:"marked,omitempty"`
	// Report is the last one of its installer, also of an earlier request.
	Report *rollout.Report `json:"report,omitempty"`
	// Contradicted: the report is Done, and the Node has the version of another kubelet.
	Contradicted rollout.Reason `json:"contradicted,omitempty"`
	// Problem is why a report cannot be read, or does not count.
	Problem string `json:"problem,omitempty"`
}

type poolStatusList = printer.List[poolStatus]

type statusOptions struct {
	*factory.Factory
	output  *printer.Output
	pools   []string
	all     bool
	wait    bool
	timeout time.Duration
}

func newStatusCommand(s *factory.Factory) *cobra.Command {
	o := &statusOptions{Factory: s, output: printer.New(printer.FormatTable, printer.FormatWide)}
	command := &cobra.Command{
		Use:   "status",
		Short: "Show how far the roll-outs are, by pool and by node",
		Long: `Show how far the roll-outs are, by pool and by node.

STATE of a pool is Observing (installers inspect and change nothing), Progressing, Paused,
Stopped (a node failed, no further node starts), Complete, or Unreadable (another release
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
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	flags := command.Flags()
	flags.StringArrayVar(&o.pools, "pool", nil, "Show this pool only; repeat it for several")
	flags.BoolVar(&o.all, "all", false, "Show each node; of more than 20, those of a kind are a row otherwise")
	flags.BoolVar(&o.wait, "wait", false, "Wait until the pools are Complete, or one is Stopped")
	flags.DurationVar(&o.timeout, "timeout", 0, "With --wait: how long to wait; 0 is as long as it takes")
	_ = command.RegisterFlagCompletionFunc("pool", completion.Pools(s))
	_ = command.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
	return command
}

func (o *statusOptions) Validate() error {
	switch {
	case o.timeout < 0:
		return errors.New("--timeout must not be negative")
	case o.timeout > 0 && !o.wait:
		return errors.New("--timeout goes with --wait")
	}
	return o.output.Validate()
}

func (o *statusOptions) Run(ctx context.Context) error {
	c, f, err := pool.Connect(ctx, o.Factory)
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
	if pools, err := f.Named(o.pools); err == nil && o.output.HumanReadable() {
		o.showStranded(ctx, c, pools)
	}
	return ended
}

// read returns the state of the pools.
func (o *statusOptions) read(f *pool.Fleet) (*poolStatusList, error) {
	pools, err := f.Named(o.pools)
	if err != nil {
		return nil, err
	}
	list := printer.NewList[poolStatus]("PoolStatusList")
	for _, p := range pools {
		list.Items = append(list.Items, statusOfPool(p))
	}
	return &list, nil
}

// await waits until the pools are at an end, and returns their state then with an error
// that has the exit code. Without a state the error is about the command.
func (o *statusOptions) await(ctx context.Context, c *factory.Clients, list *poolStatusList) (*poolStatusList, error) {
	started := o.Now()
	nodes := nodewatch.Start(ctx, c.Kube, "")
	var problem error
	for {
		if problem == nil {
			if end, err := endOf(list); end {
				return list, err
			}
		}
		if o.timeout > 0 && o.Now().Sub(started) > o.timeout {
			err := fmt.Errorf("not all pools are Complete after %s", o.timeout)
			if problem != nil {
				err = fmt.Errorf("%w: %w", err, problem)
			}
			return list, exitcode.With(err, exitcode.Timeout)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; the roll-out continues in the cluster", prompt.ErrInterrupted)
		case <-time.After(2 * o.Poll):
		}
		var err error
		if list, err = o.refresh(ctx, c, nodes, list); err != nil && problem == nil && ctx.Err() == nil {
			o.Warn("%v; retrying", err) // API servers are restarted, too
		}
		problem = err
	}
}

// refresh reads the pools again. With an error it returns the previous list.
func (o *statusOptions) refresh(ctx context.Context, c *factory.Clients, nodes *nodewatch.Watch, before *poolStatusList) (*poolStatusList, error) {
	list, err := nodes.List(ctx)
	if err != nil {
		return before, err
	}
	f := &pool.Fleet{Nodes: list}
	if err := f.ReadPools(ctx, c.Kube); err != nil {
		return before, err
	}
	after, err := o.read(f)
	if err != nil {
		return before, err
	}
	return after, nil
}

// endOf reports whether nothing more is to be awaited, and the error to end with.
func endOf(list *poolStatusList) (bool, error) {
	var stopped, open []string
	for _, p := range list.Items {
		switch p.State {
		case pool.StateUnreadable:
			return true, fmt.Errorf("pool %s cannot be read: %s", p.Pool, p.Problem)
		case pool.StateStopped:
			stopped = append(stopped, p.Pool)
		case pool.StateComplete:
		default:
			open = append(open, p.Pool)
		}
	}
	switch {
	case len(list.Items) == 0:
		return true, errors.New("no pool has a roll-out; there is nothing to wait for")
	case len(stopped) > 0:
		return true, exitcode.With(fmt.Errorf("stopped: %s; kubectl guard rollout status shows the nodes and why", printer.Listed(stopped)), exitcode.Stopped)
	}
	return len(open) == 0, nil
}

func (o *statusOptions) show(list *poolStatusList) error {
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, list)
	}
	if len(list.Items) == 0 {
		fmt.Fprintln(o.ErrOut, "No pool has a roll-out. kubectl guard rollout start makes one.")
		return nil
	}
	for _, p := range list.Items {
		if p.Problem != "" {
			o.Warn("pool %s cannot be read, and only kubectl guard rollout pause works with it: %s", p.Pool, p.Problem)
		}
	}
	return o.tables(list.Items)
}

func statusOfPool(p *pool.Pool) poolStatus {
	if p.Problem != nil {
		return poolStatus{Pool: p.Name, State: pool.StateUnreadable, Problem: p.Problem.Error()}
	}
	request, err := rollout.RequestOf(p.Set)
	if err != nil {
		return poolStatus{Pool: p.Name, State: pool.StateUnreadable, Problem: err.Error()}
	}
	progress := p.Progress(request)
	status := poolStatus{
		Pool: p.Name, Selector: p.Selector, MaxUnavailable: p.MaxUnavailable,
		State: pool.StateOf(p.Set, progress, request), Request: request,
		Done: progress.Count(pool.StepDone), Working: progress.Count(pool.StepWorking), Failed: progress.Count(pool.StepFailed), Pending: progress.Count(pool.StepPending),
		Earlier: max(0, len(p.History)-1),
	}
	for i, node := range progress.Nodes {
		item := poolNodeStatus{Node: node.Node, Step: node.Step, Ready: node.Ready, Marked: rollout.Marked(&p.Nodes[i]), Report: node.Report, Contradicted: node.Contradicted}
		switch {
		case node.Problem != nil:
			item.Problem = node.Problem.Error()
		case node.InOtherPool():
			item.Problem = node.Text()
		}
		status.Nodes = append(status.Nodes, item)
	}
	return status
}

func (o *statusOptions) tables(items []poolStatus) error {
	columns := []printer.Column{
		{Name: "Pool"}, {Name: "State"}, {Name: "Target"}, {Name: "Nodes"}, {Name: "Done"}, {Name: "Working"}, {Name: "Failed"}, {Name: "Pending"},
		{Name: "Selector", Wide: true}, {Name: "Image", Wide: true},
	}
	var rows [][]any
	for _, p := range items {
		rows = append(rows, []any{p.Pool, string(p.State), printer.OrNone(string(p.Request.Target)), len(p.Nodes), p.Done, p.Working, p.Failed, p.Pending, p.Selector, cmp.Or(p.Request.ImageName, p.Request.Image)})
	}
	if err := printer.PrintTable(o.Out, o.output.Wide(), columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(o.Out)
	columns = []printer.Column{
		{Name: "Node"}, {Name: "Pool"}, {Name: "Phase"}, {Name: "Version"}, {Name: "Mode"}, {Name: "Age"},
		{Name: "Before", Wide: true}, {Name: "Message", Wide: true},
	}
	rows = nil
	var stopped []printer.NodeLine
	for _, p := range items {
		for _, node := range p.Nodes {
			row := []any{node.Node, p.Pool, string(pool.StepPending), printer.None, printer.None, printer.None, printer.None, node.Problem}
			if report := node.Report; report != nil {
				if node.Step != pool.StepPending {
					row[2] = string(report.Phase)
				}
				row[3], row[4] = printer.OrNone(report.Now.Version), printer.OrNone(string(report.Now.Mode))
				row[5] = printer.Age(o.Now(), report.Time.Time)
				row[6], row[7] = printer.OrNone(report.Before.Version), report.Message
			}
			if node.Contradicted != "" {
				row[2], row[3], row[4], row[7] = string(node.Contradicted), printer.None, printer.None, node.Problem
			}
			rows = append(rows, row)
			if node.Step == pool.StepFailed || node.Step == pool.StepPending && node.Problem != "" {
				stopped = append(stopped, printer.NodeLine{Label: node.Node, Name: node.Node, Text: cmp.Or(node.Problem, node.Report.Message)})
			}
		}
	}
	if len(rows) > shownNodes && !o.all && !o.output.Wide() {
		rows = printer.GroupRows(rows, 0, 5, 7)
	}
	if err := printer.PrintTable(o.Out, o.output.Wide(), columns, rows); err != nil {
		return err
	}
	if o.output.Wide() || len(stopped) == 0 {
		return nil
	}
	if len(stopped) > printer.Examples {
		fmt.Fprintf(o.Out, "\n%s\n", printer.Group(stopped))
		return nil
	}
	for _, node := range stopped {
		fmt.Fprintf(o.Out, "\n%s: %s\n", node.Label, node.Text)
	}
	return nil
}

// showStranded warns of slots of a pool that are held by nodes outside of it. status continues
// without the right to list them.
func (o *statusOptions) showStranded(ctx context.Context, c *factory.Clients, pools []*pool.Pool) {
	for _, p := range pools {
		stranded, err := p.StrandedSlots(ctx, c.Kube)
		if err != nil {
			o.Warn("%v", err)
			continue
		}
		for i := range stranded {
			o.Warn("pool %s: slot %s is held by node %s, which is not in the pool; kubectl guard rollout resume --pool %s releases it",
				p.Name, stranded[i].Name, printer.OrNone(pool.SlotHolder(&stranded[i])), p.Name)
		}
	}
}
