package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"gotest.tools/gotestsum/testjson"
)

// packageTimeout ends a test binary that hangs. The slowest upstream package takes about
// two minutes.
const packageTimeout = 8 * time.Minute

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

func (t testID) compare(o testID) int {
	return strings.Compare(t.Package+" "+t.Test, o.Package+" "+o.Test)
}

// top returns the test that -run must select to run t.
func (t testID) top() string {
	name, _, _ := strings.Cut(t.Test, "/")
	return name
}

// shortPackage drops the module from an import path.
func shortPackage(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, "k8s.io/kubernetes/"), ModulePath+"/")
}

// testRun has the results of go test for some packages.
type testRun struct {
	*testjson.Execution
	// results are those of all tests that ended.
	results map[testID]testjson.Action
}

func newTestRun(e *testjson.Execution) testRun {
	run := testRun{e, map[testID]testjson.Action{}}
	for _, name := range e.Packages() {
		p := e.Package(name)
		for action, tests := range map[testjson.Action][]testjson.TestCase{testjson.ActionPass: p.Passed, testjson.ActionFail: p.Failed, testjson.ActionSkip: p.Skipped} {
			for _, test := range tests {
				run.results[testID{name, test.Test.Name()}] = action
			}
		}
	}
	return run
}

// failures returns the tests that failed: the innermost ones, since a subtest that
// fails makes its parents fail, and packages that failed without a test to blame, or ended
// before their last test. The list is sorted.
func (r testRun) failures() []testID {
	var failed []testID
	for _, test := range testjson.FilterFailedUnique(r.Failed()) {
		failed = append(failed, testID{test.Package, test.Test.Name()})
	}
	for _, pkg := range r.Packages() {
		// By a panic, an exit or the timeout: a run that finished prints FAIL on a line.
		if r.Package(pkg).Result() == testjson.ActionFail && !strings.Contains("\n"+r.packageOutput(pkg), "\nFAIL\n") {
			failed = append(failed, testID{pkg, ""})
		}
	}
	slices.SortFunc(failed, testID.compare)
	return slices.Compact(failed)
}

// output returns what a failed test wrote, or its package and the compiler.
func (r testRun) output(id testID) string {
	if id.Test == "" {
		return strings.Join(r.Errors(), "") + r.packageOutput(id.Package)
	}
	return strings.Join(r.OutputLines(r.Package(id.Package).LastFailedByName(id.Test)), "")
}

// packageOutput returns what a package wrote outside its tests.
func (r testRun) packageOutput(pkg string) string {
	return strings.Join(r.OutputLines(testjson.TestCase{Package: pkg}), "")
}

// counts returns the number of tests and subtests by result.
func (r testRun) counts() (passed, failed, skipped int) {
	count := map[testjson.Action]int{}
	for _, result := range r.results {
		count[result]++
	}
	return count[testjson.ActionPass], count[testjson.ActionFail], count[testjson.ActionSkip]
}

// progress prints a line per finished package, and collects what is no event.
type progress struct {
	testjson.EventFormatter
	stray strings.Builder
}

// Event takes one event in.
func (p *progress) Event(e testjson.TestEvent, run *testjson.Execution) error {
	return p.Format(e, run)
}

// Err takes a line in that the go command wrote and that is no event.
func (p *progress) Err(text string) error {
	_, err := fmt.Fprintln(&p.stray, text)
	return err
}

// testKind is how some packages are tested.
type testKind struct {
	// tags are the build tags.
	tags string
	// env is added to the environment of the go command, flags to its arguments.
	env, flags []string
}

// testRunner runs go test in one tree.
type testRunner struct {
	dir string
	log io.Writer
	// kind is how packages are tested, otherKind how those of other are.
	kind, otherKind testKind
	other           map[string]bool
	// skip is the pattern of the tests that are not run, in any package; empty runs all.
	skip string
	// rerun runs tests whose results the go command has, too.
	rerun bool
}

// testLog makes a file for the output of tests.
func (r Repo) testLog(name string) (*os.File, error) {
	dir := r.path("_output", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return os.Create(filepath.Join(dir, name))
}

// packages returns the packages that have tests.
func (r testRunner) packages(ctx context.Context, patterns []string) ([]string, error) {
	args := append([]string{"list", "-mod=readonly", "-tags", r.otherKind.tags, "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}"}, patterns...)
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

// run executes go test and returns all results. It is no error when tests fail. Progress is
// written to out.
func (r testRunner) run(ctx context.Context, packages, flags []string, out io.Writer) (testRun, error) {
	e, err := r.add(ctx, nil, packages, flags, out)
	if err != nil {
		return testRun{}, err
	}
	return newTestRun(e), nil
}

// add adds the results of go test to e, which may be nil.
func (r testRunner) add(ctx context.Context, e *testjson.Execution, packages, flags []string, out io.Writer) (*testjson.Execution, error) {
	var plain, other []string
	for _, pkg := range packages {
		if r.other[pkg] {
			other = append(other, pkg)
		} else {
			plain = append(plain, pkg)
		}
	}
	var err error
	if len(plain) > 0 {
		e, err = r.goTest(ctx, e, r.kind, plain, flags, out)
	}
	if len(other) > 0 && err == nil {
		e, err = r.goTest(ctx, e, r.otherKind, other, flags, out)
	}
	return e, err
}

func (r testRunner) goTest(ctx context.Context, e *testjson.Execution, kind testKind, packages, flags []string, out io.Writer) (*testjson.Execution, error) {
	args := []string{"test", "-json", "-mod=readonly", "-trimpath", "-vet=off", "-tags", kind.tags, "-timeout", packageTimeout.String()}
	if r.skip != "" {
		args = append(args, "-skip", r.skip)
	}
	if r.rerun {
		args = append(args, "-count=1")
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	cmd := goCommand(running, r.dir, runtime.GOARCH, slices.Concat(args, kind.flags, flags, packages)...)
	cmd.Env = append(cmd.Env, kind.env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &progress{EventFormatter: testjson.NewEventFormatter(out, "pkgname", testjson.FormatOptions{Icons: "text"})}
	known := len(e.Failed())
	e, scanErr := testjson.ScanTestOutput(testjson.ScanConfig{Stdout: io.TeeReader(pipe, r.log), Handler: p, Execution: e, IgnoreNonJSONOutputLines: true, Stop: stop})
	waitErr := cmd.Wait()
	if err := errors.Join(ctx.Err(), scanErr); err != nil {
		return nil, err
	}
	if waitErr != nil && len(e.Failed()) == known {
		return nil, fmt.Errorf("go test in %s: %w\n%s", r.dir, waitErr, tail(stderr.String()+p.stray.String(), 40))
	}
	return e, nil
}

// again runs tests again, package by package, and returns those that fail.
func (r testRunner) again(ctx context.Context, tests []testID) (still []testID, run testRun, err error) {
	var e *testjson.Execution
	for left := tests; len(left) > 0; {
		n := slices.IndexFunc(left, func(id testID) bool { return id.Package != left[0].Package })
		if n < 0 {
			n = len(left)
		}
		flags := []string{"-count=1"}
		if pattern := runPattern(left[:n]); pattern != "" {
			flags = append(flags, "-run", pattern)
		}
		if e, err = r.add(ctx, e, []string{left[0].Package}, flags, io.Discard); err != nil {
			return nil, testRun{}, err
		}
		left = left[n:]
	}
	run = newTestRun(e)
	for _, id := range tests {
		// A test that no longer appears did not pass: its package may have exited.
		if run.Package(id.Package).Result() != testjson.ActionPass && run.results[id] != testjson.ActionPass {
			still = append(still, id)
		}
	}
	return still, run, nil
}

// runPattern returns the -run expression for tests of one package, or nothing when
// the package failed as a whole.
func runPattern(tests []testID) string {
	var names []string
	for _, id := range tests {
		if id.Test == "" {
			return ""
		}
		names = append(names, regexp.QuoteMeta(id.top()))
	}
	slices.Sort(names)
	return "^(" + strings.Join(slices.Compact(names), "|") + ")$"
}

// tail returns the last lines of a text.
func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(all) > lines {
		all = append([]string{fmt.Sprintf("(%d lines before)", len(all)-lines)}, all[len(all)-lines:]...)
	}
	return strings.Join(all, "\n")
}
