package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gotest.tools/gotestsum/testjson"
	"sigs.k8s.io/yaml"
)

// upstreamTestPackages are the patterns of packages whose tests must pass in the
// guarded tree: everything that the hooks are in, and the guard package.
var upstreamTestPackages = []string{"./pkg/kubelet/...", "./cmd/kubelet/..."}

// aloneRuns is how often a failed test is run again, apart from the others. Some upstream
// tests depend on timing and fail when the machine is busy.
const aloneRuns = 2

// SpecialTest is an upstream test that cannot be judged like the others.
type SpecialTest struct {
	// Package is the import path.
	Package string `json:"package"`
	// Test is the name of the test, with slashes before subtests.
	Test string `json:"test"`
	// Reason is what is special about it.
	Reason string `json:"reason"`
}

func (t SpecialTest) id() testID { return testID{t.Package, t.Test} }

// UpstreamTests are the exceptions among upstream's tests that a patch directory lists, in
// upstream-tests.yaml.
type UpstreamTests struct {
	// Deviations are tests that are expected to fail in the guarded tree, because the
	// guarded kubelet must differ there. The default is none.
	Deviations []SpecialTest `json:"deviations,omitempty"`
	// Unsteady are tests that pass by chance in the stock tree as well, so that neither a
	// pass nor a failure means anything. They are not run in either tree. The default is
	// none.
	Unsteady []SpecialTest `json:"unsteady,omitempty"`
	// Fuzzing lists packages (import paths) that fill objects at random. They need
	// code that the build tag notest leaves out of the binaries, and are compiled
	// without that tag.
	Fuzzing []string `json:"fuzzing,omitempty"`
}

// LoadUpstreamTests reads an upstream-tests.yaml. A missing file means that nothing
// is special.
func LoadUpstreamTests(file string) (UpstreamTests, error) {
	var t UpstreamTests
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	if err := yaml.UnmarshalStrict(data, &t); err != nil {
		return t, fmt.Errorf("%s: %w", file, err)
	}
	for field, list := range map[string][]SpecialTest{"deviations": t.Deviations, "unsteady": t.Unsteady} {
		for i, special := range list {
			if special.Package == "" || special.Test == "" || special.Reason == "" {
				return t, fmt.Errorf("%s: %s[%d]: package, test and reason are all required", file, field, i)
			}
		}
	}
	return t, nil
}

// TestSummary is the outcome of a run of the upstream tests.
type TestSummary struct {
	// Packages is the number of packages that have tests.
	Packages int
	// Passed, Failed and Skipped count tests and subtests. Failed counts only those
	// that are neither expected nor fail in the stock tree as well, each without its
	// parents.
	Passed, Failed, Skipped int
	// Retried lists tests that failed among the others and passed alone.
	Retried []string
	// FailUpstream lists tests that were run in the stock tree and fail there too.
	FailUpstream []string
	// Expected lists failed tests that upstream-tests.yaml names.
	Expected []string
	// LeftOut lists the unsteady tests of the packages, which were not run.
	LeftOut []string
	// Unexpected lists what remains: failures of the guarded tree.
	Unexpected []string
}

// TestUpstream runs upstream's kubelet tests and the in-tree hook tests in a
// prepared tree. Full output goes to _output/test. The error is set when tests
// could not be run; failed tests are in the summary. Progress is written to out.
func (r Repo) TestUpstream(ctx context.Context, u Upstream, t Tree, patterns []string, out io.Writer) (TestSummary, error) {
	if len(patterns) == 0 {
		patterns = upstreamTestPackages
	}
	return r.testTree(ctx, u, t, patterns, nil, out)
}

// TestHooks runs the in-tree hook tests alone in the guarded tree, otherwise as TestUpstream
// does. Another minor version than the default is checked with them between releases.
func (r Repo) TestHooks(ctx context.Context, u Upstream, out io.Writer) (TestSummary, error) {
	src, err := r.source(u, Guarded)
	if err != nil {
		return TestSummary{}, err
	}
	packages := src.hookTestPackages()
	if len(packages) == 0 {
		return TestSummary{}, fmt.Errorf("%s has no in-tree tests in patches", u.Version)
	}
	return r.testTree(ctx, u, Guarded, packages, []string{"-run", guardTests}, out)
}

// testTree runs tests of a prepared tree; flags go to go test.
func (r Repo) testTree(ctx context.Context, u Upstream, t Tree, patterns, flags []string, out io.Writer) (TestSummary, error) {
	special, err := LoadUpstreamTests(filepath.Join(r.patchDir(u), "upstream-tests.yaml"))
	if err != nil {
		return TestSummary{}, err
	}
	_, dir, release, err := r.holdTree(ctx, u, t, out)
	if err != nil {
		return TestSummary{}, err
	}
	defer release()
	log, err := r.testLog("upstream-" + u.Minor() + "-" + string(t) + ".jsonl")
	if err != nil {
		return TestSummary{}, err
	}
	defer log.Close()
	runner := testRunner{
		dir: dir, log: log, skip: skipPattern(special.Unsteady), rerun: r.Cache == "",
		kind: testKind{tags: buildTags}, otherKind: testKind{tags: withoutNotest(buildTags)}, other: set(special.Fuzzing),
	}
	packages, err := runner.packages(ctx, patterns)
	if err != nil {
		return TestSummary{}, err
	}
	fmt.Fprintf(out, "Running the tests of %d packages in the %s tree of %s; full output in %s\n", len(packages), t, u.Version, r.rel(log.Name()))
	run, err := runner.run(ctx, packages, flags, out)
	if err != nil {
		return TestSummary{}, err
	}
	s := TestSummary{Packages: len(packages)}
	s.leaveOut(special.Unsteady, packages, run, out)
	err = r.judge(ctx, u, t, run, runner, special.Deviations, &s, out)
	s.Passed, _, s.Skipped = run.counts()
	return s, err
}

// leaveOut lists the unsteady tests of the packages.
func (s *TestSummary) leaveOut(unsteady []SpecialTest, packages []string, run testRun, out io.Writer) {
	for _, test := range unsteady {
		if !slices.Contains(packages, test.Package) {
			continue
		}
		s.LeftOut = append(s.LeftOut, test.id().String()+": "+test.Reason)
		if top := (testID{test.Package, test.id().top()}); top != test.id() && run.results[top] == "" {
			fmt.Fprintf(out, "%s: listed in upstream-tests.yaml, but there is no %s; remove it from the list\n", test.id(), top.Test)
		}
	}
}

// fail counts tests as failures and prints their output.
func (s *TestSummary) fail(tests []testID, run testRun, out io.Writer) {
	for _, id := range tests {
		s.Unexpected = append(s.Unexpected, id.String())
		s.Failed++
		fmt.Fprintf(out, "\n--- %s\n%s\n", id, tail(run.output(id), 60))
	}
}

func set(names []string) map[string]bool {
	m := map[string]bool{}
	for _, name := range names {
		m[name] = true
	}
	return m
}

func withoutNotest(tags string) string {
	return strings.Replace(tags, "notest,", "", 1)
}

// judge sorts failures into those that pass alone, those that are expected, those
// that upstream has too, and the rest. What passes alone becomes a pass in first.
func (r Repo) judge(ctx context.Context, u Upstream, t Tree, first testRun, runner testRunner, deviations []SpecialTest, s *TestSummary, out io.Writer) error {
	expected := map[testID]string{}
	for _, d := range deviations {
		expected[d.id()] = d.Reason
		if first.results[d.id()] == testjson.ActionPass {
			fmt.Fprintf(out, "%s: listed in upstream-tests.yaml but passes; remove it from the list\n", d.id())
		}
	}
	open := slices.DeleteFunc(first.failures(), func(id testID) bool {
		reason, ok := expected[id]
		if ok = ok && t == Guarded; ok {
			s.Expected = append(s.Expected, id.String()+": "+reason)
		}
		return ok
	})
	last := first
	for n := 1; n <= aloneRuns && len(open) > 0; n++ {
		fmt.Fprintf(out, "Running %d failed tests again, alone (%d of at most %d)\n", len(open), n, aloneRuns)
		still, run, err := runner.again(ctx, open)
		if err != nil {
			return err
		}
		for _, id := range open {
			if !slices.Contains(still, id) {
				s.Retried = append(s.Retried, id.String())
			}
		}
		for id, result := range run.results {
			if result != testjson.ActionFail {
				first.results[id] = result
			}
		}
		open, last = still, run
	}
	if len(open) > 0 && t == Guarded {
		dir, err := r.Prepare(ctx, u, Stock, out)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "Running %d failed tests in the stock tree, to see whether they fail there too\n", len(open))
		stock := runner
		stock.dir = dir
		failsThere, run, err := stock.again(ctx, open)
		if err != nil {
			return err
		}
		open = slices.DeleteFunc(slices.Clone(open), func(id testID) bool {
			// A test that the stock tree does not have cannot fail there.
			_, exists := run.results[id]
			if exists = slices.Contains(failsThere, id) && (exists || id.Test == ""); exists {
				s.FailUpstream = append(s.FailUpstream, id.String())
			}
			return exists
		})
	}
	s.fail(open, last, out)
	return nil
}

// Print writes the summary. Its last line is "N passed, N failed, N skipped".
func (s TestSummary) Print(out io.Writer) {
	for _, list := range []struct {
		title string
		items []string
	}{
		{"Failed among the others and passed alone", s.Retried},
		{"Expected to fail (upstream-tests.yaml)", s.Expected},
		{"Not run, a matter of chance upstream too (upstream-tests.yaml)", s.LeftOut},
		{"Fails upstream too (measured in the stock tree)", s.FailUpstream},
		{"FAILED", s.Unexpected},
	} {
		if len(list.items) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n%s: %d\n", list.title, len(list.items))
		for _, item := range list.items {
			fmt.Fprintf(out, "  %s\n", item)
		}
	}
	fmt.Fprintf(out, "\n%d packages, %d tests run (subtests included)", s.Packages, s.Passed+s.Failed+len(s.Expected)+len(s.FailUpstream))
	if n := len(s.Expected); n > 0 {
		fmt.Fprintf(out, ", %d expected deviations", n)
	}
	if n := len(s.FailUpstream); n > 0 {
		fmt.Fprintf(out, ", %d fail upstream too", n)
	}
	fmt.Fprintln(out)
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", s.Passed, s.Failed, s.Skipped)
}

// TestUnit runs the unit tests of this repository, with the race detector where a
// package is one of race (import path patterns). Full output goes to _output/test.
// Progress is written to out.
func (r Repo) TestUnit(ctx context.Context, patterns, race []string, out io.Writer) (TestSummary, error) {
	log, err := r.testLog("unit.jsonl")
	if err != nil {
		return TestSummary{}, err
	}
	defer log.Close()
	// The race detector is the one reason to need a C compiler here.
	runner := testRunner{dir: r.Root, log: log, rerun: r.Cache == "", otherKind: testKind{env: []string{"CGO_ENABLED=1"}, flags: []string{"-race"}}}
	packages, err := runner.packages(ctx, patterns)
	if err != nil {
		return TestSummary{}, err
	}
	if len(race) > 0 {
		withRace, err := runner.packages(ctx, race)
		if err != nil {
			return TestSummary{}, err
		}
		runner.other = set(withRace)
	}
	run, err := runner.run(ctx, packages, nil, out)
	if err != nil {
		return TestSummary{}, err
	}
	s := TestSummary{Packages: len(packages)}
	s.Passed, _, s.Skipped = run.counts()
	s.fail(run.failures(), run, out)
	return s, nil
}

// skipPattern returns the -skip expression for tests, or nothing for none. Each part of
// a name is a pattern of its own.
func skipPattern(tests []SpecialTest) string {
	var patterns []string
	for _, test := range tests {
		var parts []string
		for part := range strings.SplitSeq(test.Test, "/") {
			parts = append(parts, "^"+regexp.QuoteMeta(part)+"$")
		}
		patterns = append(patterns, strings.Join(parts, "/"))
	}
	return strings.Join(patterns, "|")
}
