package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"kubelet-guard.io/node-e2e/node"
)

// row is one incident on both kubelets; nil where it did not run.
type row struct {
	incident       string
	stock, guarded *node.IncidentResult
}

// compare pairs the incidents of both runs, in the order of the first run that
// has them.
func compare(stock, guarded []node.IncidentResult) []row {
	var rows []row
	at := map[string]int{}
	find := func(incident string) *row {
		i, known := at[incident]
		if !known {
			i = len(rows)
			at[incident] = i
			rows = append(rows, row{incident: incident})
		}
		return &rows[i]
	}
	for i := range stock {
		find(stock[i].Incident).stock = &stock[i]
	}
	for i := range guarded {
		find(guarded[i].Incident).guarded = &guarded[i]
	}
	return rows
}

// problems returns what speaks against the guarded kubelet, or against the
// comparison.
func (r row) problems() []string {
	switch {
	case r.stock == nil:
		return []string{"did not run on stock"}
	case r.guarded == nil:
		return []string{"did not run on guarded"}
	}
	var problems []string
	if r.guarded.Protected.Killed {
		problems = append(problems, "the guarded kubelet killed a protected pod")
	}
	if r.guarded.Observed && !r.guarded.Deletion.Honoured {
		problems = append(problems, "the guarded kubelet did not honour an explicit deletion")
	}
	if r.stock.Unprotected.Killed != r.guarded.Unprotected.Killed {
		problems = append(problems, "the unprotected pod's fate differs")
	}
	for _, result := range []struct {
		kubelet node.Variant
		*node.IncidentResult
	}{{node.Stock, r.stock}, {node.Guarded, r.guarded}} {
		if result.Failure != "" {
			problems = append(problems, fmt.Sprintf("the spec failed on %s", result.kubelet))
		} else if !result.Observed {
			problems = append(problems, fmt.Sprintf("the pods' fate was not seen on %s", result.kubelet))
		}
	}
	return problems
}

// verdict is an error when any row has a problem, and when there is nothing to
// judge.
func verdict(rows []row) error {
	if len(rows) == 0 {
		return errors.New("no incident ran")
	}
	var errs []error
	for _, r := range rows {
		if problems := r.problems(); len(problems) > 0 {
			errs = append(errs, fmt.Errorf("%s: %s", r.incident, strings.Join(problems, "; ")))
		}
	}
	return errors.Join(errs...)
}

// writeTable prints the comparison for people. It fits 100 columns.
func writeTable(w io.Writer, stockVersion, guardedVersion string, rows []row) {
	const format = "%-42s  %-15s  %-16s  %-8s  %s\n"
	rule := strings.Repeat("-", 100)
	fmt.Fprintf(w, "What became of a protected pod: stock is %s, guarded is %s\n\n", stockVersion, guardedVersion)
	fmt.Fprintf(w, format, "incident", "stock kubelet", "guarded kubelet", "deletion", "unprotected")
	fmt.Fprintf(w, format, "", "", "", "honoured", "pod")
	fmt.Fprintln(w, rule)
	var killed, lost, deleted, alike int
	for _, r := range rows {
		fmt.Fprintf(w, format, r.incident, fateText(r.stock), fateText(r.guarded), deletionText(r.guarded), r.parityText())
		if r.stock == nil || r.guarded == nil {
			continue
		}
		killed += count(r.stock.Protected.Killed)
		lost += count(r.guarded.Protected.Killed)
		deleted += count(r.guarded.Deletion.Honoured)
		alike += count(r.stock.Unprotected.Killed == r.guarded.Unprotected.Killed)
	}
	fmt.Fprintln(w, rule)
	fmt.Fprintf(w, "%d incidents: the stock kubelet killed %d protected pods, the guarded kubelet %d.\n", len(rows), killed, lost)
	fmt.Fprintf(w, "Afterwards the guarded kubelet honoured %d of %d explicit deletions.\n", deleted, len(rows))
	fmt.Fprintf(w, "An unprotected pod met the same fate with both kubelets in %d of %d incidents.\n", alike, len(rows))
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func fateText(r *node.IncidentResult) string {
	switch {
	case r == nil:
		return "not run"
	case r.Protected.Killed:
		return "killed in " + secondsText(r.Protected.Seconds)
	case !r.Observed:
		return "not seen"
	case r.Protected.Refused > 0:
		return fmt.Sprintf("kept, refused %dx", r.Protected.Refused)
	}
	return "kept"
}

func deletionText(r *node.IncidentResult) string {
	switch {
	case r == nil || !r.Observed:
		return "-"
	case r.Deletion.Honoured:
		return "in " + secondsText(r.Deletion.Seconds)
	}
	return "NO"
}

func (r row) parityText() string {
	switch {
	case r.stock == nil || r.guarded == nil:
		return "not compared"
	case r.stock.Alone:
		return "none"
	case r.stock.Unprotected.Killed != r.guarded.Unprotected.Killed:
		return "DIFFERS"
	case r.stock.Unprotected.Killed:
		return "both killed"
	}
	return "both kept"
}

func secondsText(seconds float64) string {
	switch {
	case seconds < 0.1:
		return "<0.1 s"
	case seconds < 9.95:
		return fmt.Sprintf("%.1f s", seconds)
	}
	return fmt.Sprintf("%.0f s", seconds)
}
