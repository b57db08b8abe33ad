package specreport

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// Read reads Ginkgo's JSON report of one run of a suite.
func Read(file string) (types.Report, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return types.Report{}, err
	}
	var reports []types.Report
	if err := json.Unmarshal(data, &reports); err != nil {
		return types.Report{}, fmt.Errorf("report %s: %w", file, err)
	}
	if len(reports) != 1 {
		return types.Report{}, fmt.Errorf("report %s: has %d suites, not one", file, len(reports))
	}
	return reports[0], nil
}

// Entries returns the values of a spec's report entries with a name, in their order. All
// attempts at the spec have theirs.
func Entries[T any](spec types.SpecReport, name string) ([]T, error) {
	var values []T
	for _, entry := range spec.ReportEntries {
		if entry.Name != name {
			continue
		}
		var value T
		if err := json.Unmarshal([]byte(entry.Value.AsJSON), &value); err != nil {
			return nil, fmt.Errorf("entry %q of %q: %w", name, Title(spec), err)
		}
		values = append(values, value)
	}
	return values, nil
}

// A spec is slow when it took longer than slow; Slowest returns no more than slowest.
const (
	slow    = 30 * time.Second
	slowest = 20
)

// Slowest has one line for each of the twenty slowest specs, and of what comes before and
// after them, that took over 30 seconds.
func Slowest(reports ...types.Report) []string {
	type timed struct {
		title string
		took  time.Duration
	}
	var all []timed
	for _, report := range reports {
		for _, spec := range report.SpecReports {
			if spec.RunTime > slow {
				all = append(all, timed{report.SuiteDescription + ": " + Title(spec), spec.RunTime})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b timed) int { return cmp.Compare(b.took, a.took) })
	var lines []string
	for _, spec := range all[:min(len(all), slowest)] {
		lines = append(lines, fmt.Sprintf("%4.0f s  %s", spec.took.Seconds(), spec.title))
	}
	return lines
}
