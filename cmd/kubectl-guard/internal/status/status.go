// Package status is the verb status: which nodes are guarded, and how many pods they hold.
package status

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/pkg/kubelet/guard"
)

type nodeStatusList struct {
	printer.List[nodes.Status] `json:",inline"`
	// WithoutBudget is nil when nodes were named, or when it is not known.
	WithoutBudget *withoutBudget `json:"withoutBudget,omitempty"`
}

type options struct {
	*factory.Factory
	output *printer.Output
	nodes  []string
}

// NewCommand returns the verb status.
func NewCommand(s *factory.Factory) *cobra.Command {
	o := &options{Factory: s, output: printer.New(printer.FormatTable, printer.FormatWide)}
	command := &cobra.Command{
		Use:   "status [NODE...]",
		Short: "Show which nodes are guarded, and how many pods they protect and hold",
		Long: `Show which nodes are guarded, and how many pods they protect and hold. Without
names of nodes, a line counts the protected pods that no PodDisruptionBudget selects.

STATE is Guarded, Unguarded (the kubelet has no guard), NoAnswer (nothing usable
came within --node-timeout), or Forbidden (you may not get nodes/proxy).`,
		Example: `  kubectl guard status
  kubectl guard status worker-3 -o wide`,
		ValidArgsFunction: completion.Nodes(s),
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	return command
}

func (o *options) Complete(_ *cobra.Command, arguments []string) error {
	o.nodes = arguments
	return nil
}

func (o *options) Validate() error { return o.output.Validate() }

func (o *options) Run(ctx context.Context) error {
	c, responses, err := o.Query(ctx, o.nodes...)
	if err != nil {
		return err
	}
	list := nodeStatusList{List: printer.NewList[nodes.Status]("NodeStatusList")}
	for _, response := range responses {
		list.Items = append(list.Items, nodes.StatusOf(response))
	}
	if len(o.nodes) == 0 && len(list.Items) > 0 {
		if list.WithoutBudget, err = countWithoutBudget(ctx, c.Kube); err != nil {
			o.Warn("protected pods without a PodDisruptionBudget are not counted: %v", err)
		}
	}
	if err := o.show(&list); err != nil {
		return err
	}
	return noResponse(list.Items)
}

// noResponse is the error when no node responded, so that nothing is known.
func noResponse(items []nodes.Status) error {
	states := map[nodes.State]int{}
	for _, item := range items {
		states[item.State]++
	}
	if silent := states[nodes.NoAnswer] + states[nodes.Forbidden]; silent == 0 || silent < len(items) {
		return nil
	}
	if states[nodes.NoAnswer] == 0 {
		return errors.New("no node may be queried: that needs get on nodes/proxy, which the role kubelet-guard-viewer has")
	}
	return errors.New("no node responded; -o wide shows why")
}

func (o *options) show(list *nodeStatusList) error {
	if !o.output.HumanReadable() {
		return o.output.PrintObject(o.Out, list)
	}
	if len(list.Items) == 0 {
		fmt.Fprintln(o.ErrOut, "The cluster has no nodes.")
		return nil
	}
	if err := o.table(list.Items); err != nil {
		return err
	}
	if w := list.WithoutBudget; w != nil && w.sentence() != "" {
		fmt.Fprintln(o.Out)
		printer.Wrap(o.Out, "", w.sentence())
	}
	return nil
}

func (o *options) table(items []nodes.Status) error {
	columns := []printer.Column{
		{Name: "Node"}, {Name: "State"}, {Name: "Version"}, {Name: "Mode"},
		{Name: "Protected"}, {Name: "Held"}, {Name: "Oldest"},
		{Name: "Ending", Wide: true}, {Name: "Causes", Wide: true}, {Name: "Detail", Wide: true},
	}
	var rows [][]any
	for _, item := range items {
		row := []any{item.Node, string(item.State), item.Version, printer.None, printer.None, printer.None, printer.None, printer.None, printer.None, item.Detail}
		if item.State == nodes.Guarded {
			row[3], row[4], row[5] = string(item.Mode), *item.Protected, *item.Held
			if item.OldestHold != nil {
				row[6] = printer.Age(o.Now(), item.OldestHold.Time)
			}
			row[7], row[8] = *item.Terminating, causeCounts(item.HeldByCause)
		}
		rows = append(rows, row)
	}
	return printer.PrintTable(o.Out, o.output.Wide(), columns, rows)
}

// causeCounts is "Evicted=2,PodVanished=1", in the order of the causes.
func causeCounts(counts map[string]int64) string {
	text := ""
	for _, cause := range guard.Causes() {
		if n := counts[string(cause)]; n > 0 {
			if text != "" {
				text += ","
			}
			text += fmt.Sprintf("%s=%d", cause, n)
		}
	}
	if text == "" {
		return printer.None
	}
	return text
}
