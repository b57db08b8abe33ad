package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2/reporters"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
)

// newReport has a spec that passed after a time and found a figure, and one that failed.
func newReport(suite string, took time.Duration) types.Report {
	return types.Report{SuiteDescription: suite, StartTime: time.Now(), PreRunStats: types.PreRunStats{SpecsThatWillRun: 2}, SpecReports: types.SpecReports{
		{
			LeafNodeType: types.NodeTypeIt, LeafNodeText: "comes back", State: types.SpecStatePassed, RunTime: took,
			ReportEntries: types.ReportEntries{{Name: "found", Value: types.WrapEntryValue("3 of 4")}},
		},
		{LeafNodeType: types.NodeTypeIt, LeafNodeText: "stays", State: types.SpecStateFailed, Failure: types.Failure{Message: "it went"}},
	}}
}

// newSuite writes a program that takes a report as its own and ends with an exit code, and
// returns the run of it.
func newSuite(t *testing.T, o *options, name string, report *types.Report, code int) suiteRun {
	t.Helper()
	copied := "true"
	if report != nil {
		made := filepath.Join(t.TempDir(), "made.json")
		require.NoError(t, reporters.GenerateJSONReport(*report, made))
		copied = fmt.Sprintf(`for arg; do case $arg in -ginkgo.json-report=*) cp %s "${arg#*=}";; esac; done`, made)
	}
	script := fmt.Sprintf("#!/bin/sh\n%s\necho \"$@\"\necho 'a spec ended' >&2\nexit %d\n", copied, code)
	require.NoError(t, os.MkdirAll(filepath.Join(o.outputDir, "bin"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(o.outputDir, "bin", name+".test"), []byte(script), 0o755))
	return suiteRun{name: name, program: name + ".test", test: "TestIt", target: "make it", files: filepath.Join(o.outputDir, "e2e", name, "suite"), labels: "a || b"}
}

func TestRunSuites(t *testing.T) {
	o := &options{outputDir: t.TempDir()}
	node, fleet := newReport("Node suite", 31*time.Second), newReport("Fleet suite", 83*time.Second)
	fleet.SpecReports = fleet.SpecReports[:1]
	var progress, out bytes.Buffer
	outcomes := o.runAll(t.Context(), &progress, 1, []suiteRun{newSuite(t, o, "node", &node, 1), newSuite(t, o, "fleet", &fleet, 0)})
	require.EqualError(t, finish(&out, outcomes), "the node suite failed, see "+filepath.Join(o.outputDir, "e2e/node/suite.log")+": exit status 1")
	require.Equal(t, "00:00 node      a spec ended\n00:00 fleet     a spec ended\n", progress.String())
	require.Equal(t, `FOUND: 3 of 4
FAILED in node: stays: it went
FOUND: 3 of 4
Slowest specs of those that took over 30 s:
  83 s  Fleet suite: comes back
  31 s  Node suite: comes back
2 passed, 1 failed
`, out.String())
	log, err := os.ReadFile(filepath.Join(o.outputDir, "e2e", "node", "suite.log"))
	require.NoError(t, err)
	require.Contains(t, string(log), "-test.run=^TestIt$ -test.timeout=0")
	require.Contains(t, string(log), "-ginkgo.label-filter=a || b")

	reports, err := readReports(filepath.Join(o.outputDir, "e2e"), time.Now().Add(-time.Minute))
	require.NoError(t, err)
	require.Len(t, reports, 2)
	reports, err = readReports(filepath.Join(o.outputDir, "e2e"), time.Now())
	require.NoError(t, err)
	require.Empty(t, reports, "suites of an earlier run")
}

func TestRunOfABrokenSuite(t *testing.T) {
	o := &options{outputDir: t.TempDir()}
	passing := newReport("Node suite", time.Second)
	passing.SpecReports = passing.SpecReports[:1]
	for name, tc := range map[string]struct {
		report *types.Report
		want   string
		counts string
	}{
		"broke before a report":       {nil, "ended without a report", "0 passed, 1 failed"},
		"failed with specs that pass": {&passing, "the suite suite failed", "FOUND: 3 of 4\n1 passed, 1 failed"},
	} {
		t.Run(name, func(t *testing.T) {
			// The report of an earlier run is no report of this one.
			run := newSuite(t, o, "suite", tc.report, 2)
			old := newReport("Node suite", time.Second)
			require.NoError(t, reporters.GenerateJSONReport(old, run.json()))
			var out bytes.Buffer
			require.ErrorContains(t, finish(&out, o.runAll(t.Context(), &bytes.Buffer{}, 1, []suiteRun{run})), tc.want)
			require.Equal(t, tc.counts+"\n", out.String())
		})
	}

	var out bytes.Buffer
	require.ErrorContains(t, finish(&out, o.runAll(t.Context(), &bytes.Buffer{}, 1, []suiteRun{{name: "node", program: "none.test", target: "make node-e2e"}})), "none.test is not built (make node-e2e)")
	require.Equal(t, "0 passed, 1 failed\n", out.String())
}
