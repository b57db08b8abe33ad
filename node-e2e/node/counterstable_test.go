package node

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Groups of rows.
const (
	groupRuntime = "runtime"
	groupAPI     = "API"
	groupState   = "state directory"
	groupKubelet = "other files of the kubelet"
)

const (
	rowWrites = "file operations"
	rowSyncs  = "fsyncs"
)

// counts are numbers by group and row.
type counts map[string]map[string]int

func (c counts) add(group, row string) {
	if c[group] == nil {
		c[group] = map[string]int{}
	}
	c[group][row]++
}

// acts are the calls that do something. Their number does not depend on when the
// kubelet looks.
var acts = map[string]bool{
	"RunPodSandbox": true, "StopPodSandbox": true, "RemovePodSandbox": true,
	"CreateContainer": true, "StartContainer": true, "StopContainer": true, "RemoveContainer": true,
	"UpdateContainerResources": true, "PullImage": true, "ExecSync": true,
}

// countersTable compares the lives of two kubelets.
type countersTable struct {
	stock, guarded *countedBlock
	// decisions are lines of go test -benchmem, may be empty.
	decisions []decision
}

// decision is what one question to the guard costs.
type decision struct {
	name          string
	bytes, allocs int
}

func newCountersTable(stock, guarded *countedBlock) *countersTable {
	return &countersTable{stock: stock, guarded: guarded}
}

// spread are the counts of one row in several lives, sorted.
type spread []int

// of returns the counts of a row in the lives that fit.
func (b *countedBlock) of(group, row string, fits func(*countedLife) bool) spread {
	var s spread
	for _, life := range b.lives {
		if fits(life) {
			s = append(s, life.counts[group][row])
		}
	}
	slices.Sort(s)
	return s
}

func (s spread) median() int { return s[len(s)/2] }
func (s spread) max() int    { return s[len(s)-1] }

// String is the median, and in brackets from where to where the lives go.
func (s spread) String() string {
	if s[0] == s.max() {
		return strconv.Itoa(s[0])
	}
	return fmt.Sprintf("%d (%d to %d)", s.median(), s[0], s.max())
}

func all(*countedLife) bool          { return true }
func labelled(l *countedLife) bool   { return l.labelled }
func unlabelled(l *countedLife) bool { return !l.labelled }

// rows returns the rows of a group in any life, sorted: what is done before what is
// queried.
func (t *countersTable) rows(group string) []string {
	found := map[string]bool{}
	for _, b := range []*countedBlock{t.stock, t.guarded} {
		for _, life := range b.lives {
			for row := range life.counts[group] {
				found[row] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b string) int {
		if acts[a] != acts[b] {
			if acts[a] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
}

// more returns by how much the guarded kubelet's lives exceed what is usual with the
// stock kubelet, by row.
func (t *countersTable) more(group string, fits func(*countedLife) bool) map[string]int {
	more := map[string]int{}
	for _, row := range t.rows(group) {
		usual := t.stock.of(group, row, all)
		limit := usual.max()
		if acts[row] {
			limit = usual.median()
		}
		if n := t.guarded.of(group, row, fits).median() - limit; n > 0 {
			more[row] = n
		}
	}
	return more
}

// syncsPerProtected spreads what is synced for several pods at once over them.
func (t *countersTable) syncsPerProtected() float64 {
	own := 0
	protected := t.guarded.of(groupState, rowSyncs, labelled)
	for _, n := range protected {
		own += n
	}
	return float64(own+t.guarded.shared[groupState][rowSyncs]) / float64(len(protected))
}

// violations says what breaks an invariant.
func (t *countersTable) violations() []string {
	var found []string
	report := func(who, group string, allowed int, more map[string]int) {
		sum := 0
		var parts []string
		for _, row := range slices.Sorted(maps.Keys(more)) {
			sum += more[row]
			parts = append(parts, fmt.Sprintf("%d %s", more[row], row))
		}
		if sum > allowed {
			found = append(found, fmt.Sprintf("%s pod, %s: %d more than stock, allowed are %d: %s", who, group, sum, allowed, strings.Join(parts, ", ")))
		}
	}
	report("unprotected", groupRuntime, 0, t.more(groupRuntime, unlabelled))
	report("unprotected", groupAPI, 0, t.more(groupAPI, unlabelled))
	report("protected", groupRuntime, moreRuntimeCalls, t.more(groupRuntime, labelled))
	report("protected", groupAPI, 0, t.more(groupAPI, labelled))
	for row := range acts {
		for who, fits := range map[string]func(*countedLife) bool{"unprotected": unlabelled, "protected": labelled} {
			usual, now := t.stock.of(groupRuntime, row, all).median(), t.guarded.of(groupRuntime, row, fits).median()
			if now < usual {
				found = append(found, fmt.Sprintf("%s pod, %s: %d %s, with stock %d", who, groupRuntime, now, row, usual))
			}
		}
	}
	for _, row := range []string{rowWrites, rowSyncs} {
		if n := t.guarded.of(groupState, row, unlabelled).max(); n > 0 {
			found = append(found, fmt.Sprintf("unprotected pod, %s: %d %s", groupState, n, row))
		}
	}
	for row, n := range t.guarded.shared[groupState] {
		if row != rowSyncs {
			found = append(found, fmt.Sprintf("no pod, %s: %d %s", groupState, n, row))
		}
	}
	minutes := int(math.Ceil(t.guarded.lived.Minutes()))
	if n, allowed := t.syncsPerProtected(), 2*(maxWrites+maxWritesPerMinute*minutes); n > float64(allowed) {
		found = append(found, fmt.Sprintf("protected pod, %s: %.1f fsyncs in %d minutes, allowed are %d", groupState, n, minutes, allowed))
	}
	for _, group := range []string{groupRuntime, groupAPI} {
		for row, n := range t.guarded.node[group] {
			// Both ends of the time cut through a period.
			if usual := t.stock.node[group][row]; n > usual+2+usual/10 {
				found = append(found, fmt.Sprintf("whole node, %s: %d %s in %s, with stock %d", group, n, row, steady, usual))
			}
		}
	}
	for _, d := range t.decisions {
		if strings.Contains(d.name, "Unprotected") && d.allocs > 0 {
			found = append(found, fmt.Sprintf("decision about an unprotected pod: %d allocations", d.allocs))
		}
	}
	slices.Sort(found)
	return found
}

// markdown writes the tables.
func (t *countersTable) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s against %s, %d lives in each column; until their deletion they were %.0f s long with the\nguarded kubelet.\n\n",
		t.guarded.version, t.stock.version, len(t.guarded.of(groupState, rowSyncs, labelled)), t.guarded.lived.Seconds())
	b.WriteString("| of one pod | stock | guarded, unprotected | stock, labelled | guarded, protected |\n|---|---|---|---|---|\n")
	for _, group := range []string{groupRuntime, groupAPI} {
		var sums [4]int
		for _, row := range t.rows(group) {
			cells := [4]spread{
				t.stock.of(group, row, unlabelled), t.guarded.of(group, row, unlabelled),
				t.stock.of(group, row, labelled), t.guarded.of(group, row, labelled),
			}
			fmt.Fprintf(&b, "| %s: %s | %s | %s | %s | %s |\n", group, row, cells[0], cells[1], cells[2], cells[3])
			for i := range cells {
				sums[i] += cells[i].median()
			}
		}
		fmt.Fprintf(&b, "| **%s: all** | **%d** | **%d** | **%d** | **%d** |\n", group, sums[0], sums[1], sums[2], sums[3])
	}
	fmt.Fprintf(&b, "| %s: %s | %s | %s | %s | %s |\n", groupState, rowWrites,
		t.stock.of(groupState, rowWrites, unlabelled), t.guarded.of(groupState, rowWrites, unlabelled),
		t.stock.of(groupState, rowWrites, labelled), t.guarded.of(groupState, rowWrites, labelled))
	fmt.Fprintf(&b, "| %s: %s, of file and folder | %d | %d | %d | %.1f |\n", groupState, rowSyncs,
		t.stock.of(groupState, rowSyncs, unlabelled).max(), t.guarded.of(groupState, rowSyncs, unlabelled).max(),
		t.stock.of(groupState, rowSyncs, labelled).max(), t.syncsPerProtected())

	fmt.Fprintf(&b, "\n| of the whole node, in %s in which nothing happens | stock | guarded |\n|---|---|---|\n", steady)
	for _, group := range []string{groupRuntime, groupAPI} {
		found := map[string]bool{}
		for _, block := range []*countedBlock{t.stock, t.guarded} {
			for row := range block.node[group] {
				found[row] = true
			}
		}
		for _, row := range slices.Sorted(maps.Keys(found)) {
			fmt.Fprintf(&b, "| %s: %s | %d | %d |\n", group, row, t.stock.node[group][row], t.guarded.node[group][row])
		}
	}
	if len(t.decisions) > 0 {
		b.WriteString("\n| a decision | bytes | allocations |\n|---|---|---|\n")
		for _, d := range t.decisions {
			fmt.Fprintf(&b, "| %s | %d | %d |\n", d.name, d.bytes, d.allocs)
		}
	}
	return b.String()
}

var decisionLine = regexp.MustCompile(`(?m)^Benchmark(\w*Refuse\w*?)(?:-\d+)?\s.*?(\d+) B/op\s+(\d+) allocs/op`)

// readDecisions reads the benchmarks of questions to the guard.
func readDecisions(output string) []decision {
	var found []decision
	for _, m := range decisionLine.FindAllStringSubmatch(output, -1) {
		bytes, _ := strconv.Atoi(m[2])
		allocs, _ := strconv.Atoi(m[3])
		found = append(found, decision{name: m[1], bytes: bytes, allocs: allocs})
	}
	return found
}

const (
	countersBegin = "<!-- begin counters: written by make counters -->\n"
	countersEnd   = "<!-- end counters -->\n"
)

// writeCounters replaces what stands between the markers of a page.
func writeCounters(file, text string) error {
	page, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, starts := strings.Cut(string(page), countersBegin)
	_, tail, ends := strings.Cut(rest, countersEnd)
	if !starts || !ends {
		return errors.New(file + " lacks the lines " + strings.TrimSpace(countersBegin) + " and " + strings.TrimSpace(countersEnd))
	}
	return os.WriteFile(file, []byte(head+countersBegin+"\n"+text+"\n"+countersEnd+tail), 0o644)
}

// block makes a block of lives with one row each; the labelled ones are those with odd
// numbers.
func block(group string, rows map[string][]int) *countedBlock {
	b := &countedBlock{version: "v1", node: counts{}, shared: counts{}}
	for row, numbers := range rows {
		for i, n := range numbers {
			if i == len(b.lives) {
				b.lives = append(b.lives, &countedLife{name: fmt.Sprint(i), labelled: i%2 == 1, counts: counts{}})
			}
			for range n {
				b.lives[i].counts.add(group, row)
			}
		}
	}
	return b
}

func TestCountersTable(t *testing.T) {
	for _, tc := range []struct {
		name           string
		group          string
		stock, guarded map[string][]int
		change         func(*countersTable)
		want           []string
	}{
		{"equal", groupRuntime, map[string][]int{"StopContainer": {2, 2, 2, 2}}, map[string][]int{"StopContainer": {2, 2, 2, 2}}, nil, nil},
		{
			"what is done is exact in both directions", groupRuntime,
			map[string][]int{"StopContainer": {2, 2, 3, 2}, "StartContainer": {2, 2, 2, 2}},
			map[string][]int{"StopContainer": {3, 2, 3, 2}, "StartContainer": {2, 1, 2, 1}}, nil,
			[]string{"protected pod, runtime: 1 StartContainer, with stock 2", "unprotected pod, runtime: 1 more than stock, allowed are 0: 1 StopContainer"},
		},
		{
			"what is asked may be as much as before with stock", groupRuntime,
			map[string][]int{"ContainerStatus": {4, 5, 6, 7}}, map[string][]int{"ContainerStatus": {7, 7, 7, 9}}, nil, nil,
		},
		{
			"a question that stock never asks is seen", groupRuntime,
			map[string][]int{"ListContainers by pod": {4, 4, 4, 4}}, map[string][]int{"ListContainers by container": {5, 5, 5, 5}}, nil,
			[]string{
				"protected pod, runtime: 5 more than stock, allowed are 2: 5 ListContainers by container",
				"unprotected pod, runtime: 5 more than stock, allowed are 0: 5 ListContainers by container",
			},
		},
		{
			"two more runtime calls for a protected pod", groupRuntime,
			map[string][]int{"ListContainers by pod": {4, 4, 4, 4}}, map[string][]int{"ListContainers by pod": {4, 6, 4, 6}}, nil, nil,
		},
		{
			"no more requests", groupAPI,
			map[string][]int{"patch pods/status": {4, 4, 4, 4}}, map[string][]int{"patch pods/status": {4, 5, 4, 5}}, nil,
			[]string{"protected pod, API: 1 more than stock, allowed are 0: 1 patch pods/status"},
		},
		{
			"writes", groupState, map[string][]int{rowSyncs: {0, 0}}, map[string][]int{rowSyncs: {1, 5}},
			func(t *countersTable) {
				t.guarded.shared, t.guarded.lived = counts{groupState: {rowSyncs: 2}}, 50*time.Second
			},
			[]string{"protected pod, state directory: 7.0 fsyncs in 1 minutes, allowed are 6", "unprotected pod, state directory: 1 fsyncs"},
		},
		{
			"the node's rates", groupAPI, map[string][]int{"get pods": {1, 1}}, map[string][]int{"get pods": {1, 1}},
			func(t *countersTable) {
				t.stock.node = counts{groupRuntime: {"ListContainers": 30, "Status": 6}}
				t.guarded.node = counts{groupRuntime: {"ListContainers": 36, "Status": 8}}
			},
			[]string{"whole node, runtime: 36 ListContainers in 30s, with stock 30"},
		},
		{
			"decisions", groupAPI, map[string][]int{"get pods": {1, 1}}, map[string][]int{"get pods": {1, 1}},
			func(t *countersTable) {
				t.decisions = readDecisions("BenchmarkRefuseUnprotected-2 \t 1 \t 52.1 ns/op \t 16 B/op \t 1 allocs/op\nBenchmarkRefuseHeldRetry-2 1 900 ns/op 0 B/op 0 allocs/op\n")
			},
			[]string{"decision about an unprotected pod: 1 allocations"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := newCountersTable(block(tc.group, tc.stock), block(tc.group, tc.guarded))
			if tc.change != nil {
				tc.change(table)
			}
			if diff := cmp.Diff(tc.want, table.violations()); diff != "" {
				t.Error(diff)
			}
			if table.markdown() == "" {
				t.Error("no table")
			}
		})
	}
}
