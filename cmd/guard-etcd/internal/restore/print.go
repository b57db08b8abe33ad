package restore

import (
	"fmt"
	"strings"

	"kubelet-guard.io/cmd/guard-etcd/internal/factory"
	"kubelet-guard.io/pkg/dataprotection/restore"
)

// show prints the plan.
func (o *options) show(plan *restore.Plan) error {
	if !o.Output.HumanReadable() {
		return o.Output.PrintObject(o.Out, "RestorePlan", plan)
	}
	source := fmt.Sprintf("%s, revisions %d to %d", orHistory(plan.Source), plan.Oldest, plan.Newest)
	return o.ShowPlan(plan, source)
}

// ShowPlan prints the plan for humans. source is where the objects come from.
func (w *Writer) ShowPlan(plan *restore.Plan, source string) error {
	columns := []factory.Column{{Name: "Action"}, {Name: "Kind"}, {Name: "Namespace"}, {Name: "Name"}, {Name: "Note"}, {Name: "Revision", Wide: true}, {Name: "UID", Wide: true}}
	var rows [][]any
	shown := map[string]int{}
	for _, item := range plan.Items {
		note := item.Reason
		if note == "" && item.Acts != "" {
			note = "ACTS: " + item.Acts
		}
		// What acts is shown each by its name, the rest by examples of each reason.
		group := fmt.Sprint(item.Action, item.Kind, item.Namespace, item.Reason)
		if shown[group]++; !w.Output.Wide() && item.Acts == "" && shown[group] > shownItems {
			continue
		}
		rows = append(rows, []any{string(item.Action), item.Kind, orNone(item.Namespace), item.Name, orNone(note), item.Revision, item.UID})
	}
	if err := w.Output.PrintTable(w.Out, columns, rows); err != nil {
		return err
	}
	fmt.Fprintln(w.Out)
	if hidden := len(plan.Items) - len(rows); hidden > 0 {
		fmt.Fprintf(w.Out, "And %d more; -o wide shows all.\n", hidden)
	}
	fmt.Fprintf(w.Out, "Plan: %d created, %d replaced, %d present, %d left out, %d refused. Source: %s.\n",
		plan.Count(restore.Create), plan.Count(restore.Replace), plan.Count(restore.Present), plan.Count(restore.LeaveOut), plan.Count(restore.Refuse), source)
	if plan.Unchecked != "" {
		fmt.Fprintf(w.Out, "Not checked, since the API server does not respond: %s.\n", plan.Unchecked)
	}
	if w.Apply || plan.Count(restore.Refuse) > 0 || plan.Writes() == 0 {
		return nil
	}
	command := []string{"--apply"}
	if plan.Writes() > confirmAbove {
		command = append(command, fmt.Sprintf("--expect=%d", plan.Writes()))
	}
	fmt.Fprintf(w.Out, "Nothing is written. Add %s to write.\n", strings.Join(command, " "))
	return nil
}

func orHistory(source string) string {
	if source == "" {
		return "etcd's history"
	}
	return source
}

func orNone(text string) string {
	if text == "" {
		return "<none>"
	}
	return text
}
