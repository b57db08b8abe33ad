package printer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// FirstErrors joins at most ten errors.
func FirstErrors(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) > Examples {
		errs = append(errs[:Examples], fmt.Errorf("and %d more errors", len(errs)-Examples))
	}
	return errors.Join(errs...)
}

// NodeLine is a message about a node.
type NodeLine struct{ Label, Name, Text string }

// Examples is how many nodes a message names.
const Examples = 10

// Group is a line for each node, or, for many, one for all that have the same message. At
// most ten lines, the greatest groups first, with at most ten names each.
func Group(lines []NodeLine) string {
	type group struct {
		text   string
		labels []string
		first  NodeLine
	}
	var groups []*group
	index := map[string]*group{}
	for _, line := range lines {
		key := strings.ReplaceAll(line.Text, line.Name, "NODE")
		if len(lines) <= Examples {
			key = line.Label // all have a line
		}
		g := index[key]
		if g == nil {
			g = &group{text: key, first: line}
			index[key] = g
			groups = append(groups, g)
		}
		g.labels = append(g.labels, line.Label)
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return len(b.labels) - len(a.labels) })
	var text []string
	for i, g := range groups {
		if i == Examples {
			rest := 0
			for _, g := range groups[i:] {
				rest += len(g.labels)
			}
			text = append(text, fmt.Sprintf("  and %d more; kubectl guard rollout status --all shows each", rest))
			break
		}
		if len(g.labels) == 1 {
			text = append(text, fmt.Sprintf("  %s: %s", g.first.Label, g.first.Text))
			continue
		}
		text = append(text, fmt.Sprintf("  %d nodes: %s: %s", len(g.labels), g.text, Listed(g.labels)))
	}
	return strings.Join(text, "\n")
}

// Listed names at most ten.
func Listed(names []string) string {
	if len(names) > Examples {
		return strings.Join(names[:Examples], ", ") + fmt.Sprintf(" and %d more", len(names)-Examples)
	}
	return strings.Join(names, ", ")
}

// GroupRows makes one row of those that have the same cells but for those of the columns in
// each, which have names of nodes or numbers: of names ten are shown, numbers are added up.
func GroupRows(rows [][]any, each ...int) [][]any {
	type group struct {
		row []any
		n   int
		at  map[int][]string
		sum map[int]int64
	}
	var groups []*group
	index := map[string]*group{}
	for _, row := range rows {
		key := ""
		for i, cell := range row {
			if !slices.Contains(each, i) {
				key += fmt.Sprintf("%v\x00", cell)
			}
		}
		g := index[key]
		if g == nil {
			g = &group{row: slices.Clone(row), at: map[int][]string{}, sum: map[int]int64{}}
			index[key] = g
			groups = append(groups, g)
		}
		g.n++
		for _, i := range each {
			switch cell := row[i].(type) {
			case int64:
				g.sum[i] += cell
			case string:
				g.at[i] = append(g.at[i], cell)
			}
		}
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return b.n - a.n })
	var out [][]any
	for _, g := range groups {
		for _, i := range each {
			if sum, numbers := g.sum[i]; numbers {
				g.row[i] = sum
			} else if i == each[0] && g.n > 1 {
				g.row[i] = fmt.Sprintf("%d: %s", g.n, Listed(g.at[i]))
			}
		}
		out = append(out, g.row)
	}
	return out
}
