// Package holds is the verb holds: which pods are held, where, since when and why.
package holds

import (
	"context"
	"fmt"
	"sort"

	"github.com/spf13/cobra"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/internal/verb"
	"kubelet-guard.io/cmd/kubectl-guard/internal/completion"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/pkg/kubelet/guard"
)

type heldPodList struct {
	printer.List[pods.Pod] `json:",inline"`
	// Unanswered has the nodes whose holds are not known.
	Unanswered []nodes.Status `json:"unanswered,omitempty"`
}

type options struct {
	*factory.Factory
	output *printer.Output
	node   string
	all    bool
}

// NewCommand returns the verb holds.
func NewCommand(s *factory.Factory) *cobra.Command {
	o := &options{Factory: s, output: printer.New(printer.FormatTable, printer.FormatWide)}
	command := &cobra.Command{
		Use:   "holds",
		Short: "Show which pods are held, where, since when and why",
		Long: `Show which pods are held, where, since when and why.

OBJECT is what the API has under the name of the pod: Present, its own object;
Gone; Replaced, a later pod of the same name; Unknown, it could not be read. A
successor on the same node waits ("Replaced, waits") when it would use what only one
of them may, such as a volume or a host port: -o wide shows what. A pod whose object is
present ends with kubectl delete, the others with kubectl guard release.`,
		Example: `  kubectl guard holds -A
  kubectl guard holds --node worker-3 -A -o wide`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              verb.RunE(o),
	}
	o.output.AddFlags(command)
	completion.AddNodeFlag(s, command, &o.node)
	command.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "Show held pods of all namespaces")
	return command
}

func (o *options) Validate() error { return o.output.Validate() }

func (o *options) Run(ctx context.Context) error {
	c, responses, err := o.Query(ctx, o.node)
	if err != nil {
		return err
	}
	elsewhere := 0
	held, silent := pods.Select(responses, func(pod guard.PodState) bool {
		switch {
		case len(pod.Holds) == 0:
			return false
		case o.all || pod.Namespace == c.Namespace:
			return true
		}
		elsewhere++
		return false
	})
	pods.LookUpObjects(ctx, c.Kube, held)
	sort.SliceStable(held, func(i, j int) bool { return held[i].Key() < held[j].Key() })

	nodes.WarnUnreachable(o.Warn, silent, len(responses))
	if !o.output.HumanReadable() {
		list := heldPodList{List: printer.NewList[pods.Pod]("HeldPodList")}
		list.Items = append(list.Items, held...)
		for _, response := range silent {
			list.Unanswered = append(list.Unanswered, nodes.StatusOf(response))
		}
		return o.output.PrintObject(o.Out, &list)
	}
	if len(held) == 0 {
		where := ""
		if !o.all {
			where = " in namespace " + c.Namespace
		}
		hint := ""
		if elsewhere > 0 {
			hint = fmt.Sprintf(" (%d in others: -A)", elsewhere)
		}
		known := ""
		if len(silent) > 0 {
			known = " as far as is known"
		}
		fmt.Fprintf(o.ErrOut, "No pods are held%s%s%s.\n", where, known, hint)
		return nil
	}
	return o.table(held)
}

func (o *options) table(held []pods.Pod) error {
	columns := []printer.Column{
		{Name: "Pod"}, {Name: "Node"}, {Name: "Cause"}, {Name: "Since"}, {Name: "Object"},
		{Name: "UID", Wide: true}, {Name: "Last attempt", Wide: true}, {Name: "Successor waits", Wide: true}, {Name: "Message", Wide: true},
	}
	if o.all {
		columns = append([]printer.Column{{Name: "Namespace"}}, columns...)
	}
	var rows [][]any
	for _, pod := range held {
		since, last := pods.HoldTimes(pod.Holds)
		waits := printer.None
		if pod.Waiting != nil {
			waits = fmt.Sprintf("%s: %s", printer.Age(o.Now(), pod.Waiting.Since), nodes.Shared(pod.Waiting))
		}
		row := []any{pod.Name, pod.Node, pods.CausesOf(pod.Holds, o.output.Wide()), printer.Age(o.Now(), since), pod.ObjectText(), string(pod.UID), printer.Age(o.Now(), last), waits, pods.MessagesOf(pod.Holds)}
		if o.all {
			row = append([]any{pod.Namespace}, row...)
		}
		rows = append(rows, row)
	}
	return printer.PrintTable(o.Out, o.output.Wide(), columns, rows)
}
