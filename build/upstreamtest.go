package build

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// upstreamTestPackages are the patterns of packages whose tests must pass in the
// guarded tree: everything that the hooks are in, and the guard package.
var upstreamTestPackages = []string{"./pkg/kubelet/...", "./cmd/kubelet/..."}

const (
	// aloneRuns is how often a failed test is run again, apart from the others. Some
	// upstream tests depend on timing and fail when the machine is busy.
	aloneRuns = 2
	// packageTimeout ends a test binary that hangs. The slowest upstream package
	// takes about two minutes.
	packageTimeout = 8 * time.Minute
)

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

// testID names one test or subtest. The test is empty for a package that failed
// as a whole: it does not compile, or it exited.
type testID struct {
	Package, Test string
}

// String returns a short form: paths without the module, the test after a blank.
func (t testID) String() string {
	pkg := shortPackage(t.Package)
	if t.Test == "" {
		return pkg + " (the package as a whole)"
	}
	return pkg + " " + t.Test
}

// top returns the test that -run must select to run t.
func (t testID) top() string {
	name, _, _ := strings.Cut(t.Test, "/")
	return name
}

// testEvent is one line of go test -json.
type testEvent struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// testRun collects the results of one go test.
type testRun struct {
	results map[testID]string
	output  map[testID]*strings.Builder
	// packages has the result of each package: pass, fail or skip.
	packages map[string]string
}

func newTestRun() *testRun {
	return &testRun{results: map[testID]string{}, output: map[testID]*strings.Builder{}, packages: map[string]string{}}
}

// add takes one event in, and reports whether it ends a package.
func (r *testRun) add(e testEvent) (packageDone bool) {
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		// Names the package by its import path and comes before the package's own
		// events; "p [p.test]" is p compiled for its test.
		name, _, _ := strings.Cut(e.ImportPath, " ")
		r.write(testID{name, ""}, e.Output)
	case "output":
		r.write(id, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.packages[e.Package] = e.Action
			return true
		}
		r.results[id] = e.Action
	}
	return false
}

func (r *testRun) write(id testID, s string) {
	b := r.output[id]
	if b == nil {
		b = &strings.Builder{}
		r.output[id] = b
	}
	b.WriteString(s)
}

// failures returns the tests that failed: the innermost ones, since a subtest that
// fails makes its parents fail, and packages that failed without a test to blame.
// The list is sorted.
func (r *testRun) failures() []testID {
	failed := map[testID]bool{}
	blamed := map[string]bool{}
	for id, result := range r.results {
		if result == "fail" {
			failed[id] = true
			blamed[id.Package] = true
		}
	}
	for id := range failed {
		for parent := id.Test; strings.Contains(parent, "/"); {
			parent = parent[:strings.LastIndexByte(parent, '/')]
			delete(failed, testID{id.Package, parent})
		}
	}
	for pkg, result := range r.packages {
		if result == "fail" && (!blamed[pkg] || r.died(pkg)) {
			failed[testID{pkg, ""}] = true
		}
	}
	out := make([]testID, 0, len(failed))
	for id := range failed {
		out = append(out, id)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Package != out[j].Package {
			return out[i].Package < out[j].Package
		}
		return out[i].Test < out[j].Test
	})
	return out
}

// died reports a package whose test binary ended before its last test, by a panic,
// an exit or the timeout: tests that it did not come to have no result. A run that
// finished prints FAIL on a line of its own.
func (r *testRun) died(pkg string) bool {
	b := r.output[testID{pkg, ""}]
	return r.packages[pkg] == "fail" && (b == nil || !strings.Contains("\n"+b.String(), "\nFAIL\n"))
}

// cached reports a package whose tests did not run, because the go command has the result
// of the same program with the same inputs.
func (r *testRun) cached(pkg string) bool {
	b := r.output[testID{pkg, ""}]
	return b != nil && strings.HasSuffix(strings.TrimSpace(b.String()), "(cached)")
}

// takePasses overwrites results with those of a later run that passed or skipped.
func (r *testRun) takePasses(later *testRun) {
	for id, result := range later.results {
		if result != "fail" {
			r.results[id] = result
		}
	}
}

// counts returns the number of tests and subtests by result.
func (r *testRun) counts(pkg string) (passed, failed, skipped int) {
	for id, result := range r.results {
		if pkg != "" && id.Package != pkg {
			continue
		}
		switch result {
		case "pass":
			passed++
		case "fail":
			failed++
		case "skip":
			skipped++
		}
	}
	return passed, failed, skipped
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
	special, err := LoadUpstreamTests(filepath.Join(r.patchDir(u), "upstream-tests.yaml"))
	if err != nil {
		return TestSummary{}, err
	}
	src, err := r.source(u, t)
	if err != nil {
		return TestSummary{}, err
	}
	dir, release, err := r.hold(ctx, src, out)
	if err != nil {
		return TestSummary{}, err
	}
	defer release()
	logDir := r.path("_output", "test")
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return TestSummary{}, err
	}
	logFile := filepath.Join(logDir, "upstream-"+string(t)+".jsonl")
	log, err := os.Create(logFile)
	if err != nil {
		return TestSummary{}, err
	}
	defer log.Close()
	runner := testRunner{dir: dir, log: log, tags: buildTags, fuzzing: map[string]bool{}, skip: skipPattern(special.Unsteady), rerun: r.Cache == ""}
	for _, pkg := range special.Fuzzing {
		runner.fuzzing[pkg] = true
	}

	packages, err := runner.packages(ctx, patterns)
	if err != nil {
		return TestSummary{}, err
	}
	fmt.Fprintf(out, "Running the tests of %d packages in the %s tree of %s; full output in %s\n", len(packages), t, u.Version, r.rel(logFile))
	run, err := runner.run(ctx, packages, nil, progress(len(packages), out))
	if err != nil {
		return TestSummary{}, err
	}
	s := TestSummary{Packages: len(packages)}
	for _, unsteady := range special.Unsteady {
		if !slices.Contains(packages, unsteady.Package) {
			continue
		}
		s.LeftOut = append(s.LeftOut, unsteady.id().String()+": "+unsteady.Reason)
		if top := (testID{unsteady.Package, unsteady.id().top()}); top != unsteady.id() && run.results[top] == "" {
			fmt.Fprintf(out, "%s: listed in upstream-tests.yaml, but there is no %s; take it off the list\n", unsteady.id(), top.Test)
		}
	}
	err = r.judge(ctx, u, t, run, runner, special.Deviations, &s, out)
	s.Passed, _, s.Skipped = run.counts("")
	return s, err
}

// progress returns a callback that prints a line per finished package.
func progress(packages int, out io.Writer) func(*testRun, testEvent) {
	width := len(fmt.Sprint(packages))
	done := 0
	return func(run *testRun, e testEvent) {
		done++
		passed, failed, skipped := run.counts(e.Package)
		word := map[string]string{"pass": "ok  ", "fail": "FAIL", "skip": "none"}[e.Action]
		fmt.Fprintf(out, "[%*d/%d] %s %-52s %5d tests %6.1f s", width, done, packages, word, shortPackage(e.Package), passed+failed+skipped, e.Elapsed)
		switch {
		case failed > 0:
			fmt.Fprintf(out, "  %d failed", failed)
		case run.cached(e.Package):
			fmt.Fprint(out, "  (cached)")
		}
		fmt.Fprintln(out)
	}
}

// shortPackage drops the module from an import path.
func shortPackage(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, "k8s.io/kubernetes/"), ModulePath+"/")
}

// judge sorts failures into those that pass alone, those that are expected, those
// that upstream has too, and the rest. What passes alone becomes a pass in first.
func (r Repo) judge(ctx context.Context, u Upstream, t Tree, first *testRun, runner testRunner, deviations []SpecialTest, s *TestSummary, out io.Writer) error {
	expected := map[testID]string{}
	for _, d := range deviations {
		expected[d.id()] = d.Reason
		if first.results[d.id()] == "pass" {
			fmt.Fprintf(out, "%s: listed in upstream-tests.yaml but passes; take it off the list\n", d.id())
		}
	}
	var open []testID
	for _, id := range first.failures() {
		if reason, ok := expected[id]; ok && t == Guarded {
			s.Expected = append(s.Expected, id.String()+": "+reason)
			continue
		}
		open = append(open, id)
	}
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
		first.takePasses(run)
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
		var rest []testID
		for _, id := range open {
			// A test that the stock tree does not have cannot fail there.
			if _, exists := run.results[id]; slices.Contains(failsThere, id) && (exists || id.Test == "") {
				s.FailUpstream = append(s.FailUpstream, id.String())
			} else {
				rest = append(rest, id)
			}
		}
		open = rest
	}
	for _, id := range open {
		s.Unexpected = append(s.Unexpected, id.String())
		s.Failed++
		fmt.Fprintf(out, "\n--- %s\n", id)
		if b := last.output[id]; b != nil {
			fmt.Fprintln(out, tail(b.String(), 60))
		}
	}
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
	var s TestSummary
	logDir := r.path("_output", "test")
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return s, err
	}
	log, err := os.Create(filepath.Join(logDir, "unit.jsonl"))
	if err != nil {
		return s, err
	}
	defer log.Close()
	plain := testRunner{dir: r.Root, log: log, rerun: r.Cache == ""}
	// The race detector is the one reason to need a C compiler here.
	raced := testRunner{dir: r.Root, log: log, env: []string{"CGO_ENABLED=1"}, rerun: r.Cache == ""}
	packages, err := plain.packages(ctx, patterns)
	if err != nil {
		return s, err
	}
	withRace := map[string]bool{}
	if len(race) > 0 {
		list, err := plain.packages(ctx, race)
		if err != nil {
			return s, err
		}
		for _, pkg := range list {
			withRace[pkg] = true
		}
	}
	var a, b []string
	for _, pkg := range packages {
		if withRace[pkg] {
			b = append(b, pkg)
		} else {
			a = append(a, pkg)
		}
	}
	s.Packages = len(packages)
	report := progress(len(packages), out)
	run := newTestRun()
	if len(a) > 0 {
		if err := plain.goTest(ctx, run, "", a, nil, report); err != nil {
			return s, err
		}
	}
	if len(b) > 0 {
		if err := raced.goTest(ctx, run, "", b, []string{"-race"}, report); err != nil {
			return s, err
		}
	}
	s.Passed, _, s.Skipped = run.counts("")
	for _, id := range run.failures() {
		s.Unexpected = append(s.Unexpected, id.String())
		s.Failed++
		fmt.Fprintf(out, "\n--- %s\n", id)
		if b := run.output[id]; b != nil {
			fmt.Fprintln(out, tail(b.String(), 60))
		}
	}
	return s, nil
}

// testRunner runs go test in one tree.
type testRunner struct {
	dir string
	log io.Writer
	// fuzzing are packages whose tests fail with the tag notest.
	fuzzing map[string]bool
	// tags are the build tags.
	tags string
	// skip is the pattern of the tests that are not run, in any package; empty runs all.
	skip string
	// env is added to the environment of the go command.
	env []string
	// rerun runs tests whose results the go command has, too.
	rerun bool
}

// packages returns the packages that have tests.
func (r testRunner) packages(ctx context.Context, patterns []string) ([]string, error) {
	// With the tag, a package could look as if it had no tests.
	args := append([]string{"list", "-mod=readonly", "-tags", withoutNotest(r.tags), "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}"}, patterns...)
	cmd := goCommand(ctx, r.dir, runtime.GOARCH, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	data, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list in %s: %w\n%s", r.dir, err, stderr.String())
	}
	packages := strings.Fields(string(data))
	if len(packages) == 0 {
		return nil, fmt.Errorf("no package in %s has tests among %s", r.dir, strings.Join(patterns, " "))
	}
	return packages, nil
}

// run executes go test and returns all results. It is no error when tests fail.
func (r testRunner) run(ctx context.Context, packages, flags []string, onPackage func(*testRun, testEvent)) (*testRun, error) {
	run := newTestRun()
	var plain, fuzzing []string
	for _, pkg := range packages {
		if r.fuzzing[pkg] {
			fuzzing = append(fuzzing, pkg)
		} else {
			plain = append(plain, pkg)
		}
	}
	if len(plain) > 0 {
		if err := r.goTest(ctx, run, r.tags, plain, flags, onPackage); err != nil {
			return nil, err
		}
	}
	if len(fuzzing) > 0 {
		if err := r.goTest(ctx, run, withoutNotest(r.tags), fuzzing, flags, onPackage); err != nil {
			return nil, err
		}
	}
	return run, nil
}

func withoutNotest(tags string) string {
	return strings.Replace(tags, "notest,", "", 1)
}

// goTest adds the results of one go test to run.
func (r testRunner) goTest(ctx context.Context, run *testRun, tags string, packages, flags []string, onPackage func(*testRun, testEvent)) error {
	args := []string{"test", "-json", "-mod=readonly", "-trimpath", "-vet=off", "-tags", tags, "-timeout", packageTimeout.String()}
	if r.skip != "" {
		args = append(args, "-skip", r.skip)
	}
	if r.rerun {
		args = append(args, "-count=1")
	}
	args = append(append(args, flags...), packages...)
	cmd := goCommand(ctx, r.dir, runtime.GOARCH, args...)
	cmd.Env = append(cmd.Env, r.env...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	failed := false
	scanner := bufio.NewScanner(io.TeeReader(pipe, r.log))
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var e testEvent
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			// What is not an event comes from the go command itself.
			fmt.Fprintln(&stderr, scanner.Text())
			continue
		}
		if run.add(e) {
			failed = failed || e.Action == "fail"
			if onPackage != nil {
				onPackage(run, e)
			}
		}
	}
	// The pipe must be empty before Wait, also after a line that was too long.
	_, _ = io.Copy(r.log, pipe)
	waitErr := cmd.Wait()
	if err := errors.Join(ctx.Err(), scanner.Err()); err != nil {
		return err
	}
	if waitErr != nil && !failed {
		return fmt.Errorf("go test in %s: %w\n%s", r.dir, waitErr, tail(stderr.String(), 40))
	}
	return nil
}

// again runs tests again, package by package, and returns those that fail.
func (r testRunner) again(ctx context.Context, tests []testID) (still []testID, all *testRun, err error) {
	all = newTestRun()
	byPackage := map[string][]testID{}
	var order []string
	for _, id := range tests {
		if byPackage[id.Package] == nil {
			order = append(order, id.Package)
		}
		byPackage[id.Package] = append(byPackage[id.Package], id)
	}
	for _, pkg := range order {
		flags := []string{"-count=1"}
		if pattern := runPattern(byPackage[pkg]); pattern != "" {
			flags = append(flags, "-run", pattern)
		}
		run, err := r.run(ctx, []string{pkg}, flags, nil)
		if err != nil {
			return nil, nil, err
		}
		for _, id := range byPackage[pkg] {
			// A test that no longer appears did not pass: its package may have exited.
			if run.packages[pkg] != "pass" && run.results[id] != "pass" {
				still = append(still, id)
			}
		}
		for id, result := range run.results {
			all.results[id] = result
		}
		for id, b := range run.output {
			all.output[id] = b
		}
		all.packages[pkg] = run.packages[pkg]
	}
	return still, all, nil
}

// runPattern returns the -run expression for tests of one package, or nothing when
// the package failed as a whole.
func runPattern(tests []testID) string {
	seen := map[string]bool{}
	var names []string
	for _, id := range tests {
		if id.Test == "" {
			return ""
		}
		if top := id.top(); !seen[top] {
			seen[top] = true
			names = append(names, regexp.QuoteMeta(top))
		}
	}
	sort.Strings(names)
	return "^(" + strings.Join(names, "|") + ")$"
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

// tail returns the last lines of a text.
func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(all) > lines {
		all = append([]string{fmt.Sprintf("(%d lines before)", len(all)-lines)}, all[len(all)-lines:]...)
	}
	return strings.Join(all, "\n")
}
