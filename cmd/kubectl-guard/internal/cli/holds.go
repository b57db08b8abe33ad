package cli

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kubelet-guard.io/pkg/kubelet/guard"
)

type heldPodList struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Items      []knownPod `json:"items"`
	// Unanswered has the nodes whose holds are not known.
	Unanswered []nodeStatus `json:"unanswered,omitempty"`
}

type holdsOptions struct {
	*settings
	output *output
	node   string
	all    bool
}

func newHoldsCommand(s *settings) *cobra.Command {
	o := &holdsOptions{settings: s, output: newOutput(outputTable, outputWide)}
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
		RunE:              func(command *cobra.Command, _ []string) error { return o.run(command.Context()) },
	}
	o.output.addFlags(command)
	command.Flags().StringVar(&o.node, "node", "", "Ask this node only")
	command.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "Show held pods of all namespaces")
	_ = command.RegisterFlagCompletionFunc("node", completeNodes(s))
	return command
}

func (o *holdsOptions) run(ctx context.Context) error {
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	answers, err := c.nodes.Query(ctx, o.node)
	if err != nil {
		return err
	}
	elsewhere := 0
	held, silent := podsOf(answers, func(pod guard.PodState) bool {
		switch {
		case len(pod.Holds) == 0:
			return false
		case o.all || pod.Namespace == c.namespace:
			return true
		}
		elsewhere++
		return false
	})
	lookUpObjects(ctx, c.kube, held)
	sort.SliceStable(held, func(i, j int) bool { return held[i].key() < held[j].key() })

	warnSilent(o.warn, silent, len(answers))
	if !o.output.forPeople() {
		list := heldPodList{APIVersion: outputVersion, Kind: "HeldPodList", Items: held}
		if held == nil {
			list.Items = []knownPod{}
		}
		for _, answer := range silent {
			list.Unanswered = append(list.Unanswered, statusOf(answer))
		}
		return o.output.object(o.Out, &list)
	}
	if len(held) == 0 {
		where := ""
		if !o.all {
			where = " in namespace " + c.namespace
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

func (o *holdsOptions) table(held []knownPod) error {
	columns := []column{
		{name: "Pod"}, {name: "Node"}, {name: "Cause"}, {name: "Since"}, {name: "Object"},
		{name: "UID", wide: true}, {name: "Last attempt", wide: true}, {name: "Successor waits", wide: true}, {name: "Message", wide: true},
	}
	if o.all {
		columns = append([]column{{name: "Namespace"}}, columns...)
	}
	var rows [][]any
	for _, pod := range held {
		since, last := holdTimes(pod.Holds)
		waits := none
		if pod.Waiting != nil {
			waits = fmt.Sprintf("%s: %s", age(o.now(), pod.Waiting.Since), shared(pod.Waiting))
		}
		row := []any{pod.Name, pod.Node, causesOf(pod.Holds, o.output.wide()), age(o.now(), since), pod.objectText(), string(pod.UID), age(o.now(), last), waits, messagesOf(pod.Holds)}
		if o.all {
			row = append([]any{pod.Namespace}, row...)
		}
		rows = append(rows, row)
	}
	return table(o.Out, o.output.wide(), columns, rows)
}

// holdTimes returns when the first hold was made and the newest attempt.
func holdTimes(holds []guard.HoldState) (since, last time.Time) {
	for _, hold := range holds {
		if since.IsZero() || hold.Since.Before(since) {
			since = hold.Since
		}
		if hold.LastAttempt.After(last) {
			last = hold.LastAttempt
		}
	}
	return since, last
}

// causesOf names the oldest cause and counts the others, or names all.
func causesOf(holds []guard.HoldState, all bool) string {
	sorted := append([]guard.HoldState(nil), holds...)
	sort.SliceStable(sorted, func(i, j int) bool { return sorted[i].Since.Before(sorted[j].Since) })
	var names []string
	for _, hold := range sorted {
		names = append(names, string(hold.Cause))
	}
	if !all && len(names) > 1 {
		return fmt.Sprintf("%s +%d", names[0], len(names)-1)
	}
	return strings.Join(names, ",")
}

func messagesOf(holds []guard.HoldState) string {
	var messages []string
	for _, hold := range holds {
		if hold.Message != "" {
			messages = append(messages, hold.Message)
		}
	}
	return strings.Join(messages, "; ")
}
