package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"golang.org/x/sync/errgroup"

	"kubelet-guard.io/node-e2e/framework/specreport"
)

// cleanupTime is how long an interrupted suite may take to remove its cluster,
// before it is killed.
const cleanupTime = 4 * time.Minute

// options are the flags of all subcommands.
type options struct {
	outputDir, provider string
	// cluster is the cluster that the suites of both kubelets use; empty gives each one
	// of its own.
	cluster        string
	keep, failFast bool
}

// suiteRun is a run of the compiled program of a suite.
type suiteRun struct {
	// name is that of the run in lines for people.
	name string
	// program is the name of the program in <output>/bin, test that of its test function,
	// and target what builds it.
	program, test, target string
	// files is the path of the log and the reports, without their extensions.
	files string
	// labels is the filter that selects specs.
	labels    string
	arguments []string
	// cleanUp removes what is left after a run without a report; it may be nil.
	cleanUp func(context.Context) error
}

// log, json and junit are the files of a run.
func (r suiteRun) log() string   { return r.files + ".log" }
func (r suiteRun) json() string  { return r.files + ".json" }
func (r suiteRun) junit() string { return r.files + ".xml" }

// outcome is the result of a run.
type outcome struct {
	name   string
	report types.Report
	// err is set when the suite failed, and when there is no report to trust.
	err error
}

// counts has at least one failure for a suite that failed before its specs could.
func (o outcome) counts() specreport.Counts {
	counts := specreport.Count(o.report)
	if o.err != nil && counts.Failed == 0 {
		counts.Failed = 1
	}
	return counts
}

// runAll runs suites side by side, so many at a time and in their order. Progress goes to
// w, which several goroutines do not use at once.
func (o *options) runAll(ctx context.Context, w io.Writer, atOnce int, runs []suiteRun) []outcome {
	outcomes := make([]outcome, len(runs))
	var lock sync.Mutex
	var group errgroup.Group
	group.SetLimit(atOnce)
	started := time.Now()
	for i, run := range runs {
		group.Go(func() error {
			progress := func(line string) {
				lock.Lock()
				defer lock.Unlock()
				fmt.Fprintf(w, "%s %-9s %s\n", elapsed(started), run.name, line)
			}
			outcomes[i].name = run.name
			outcomes[i].report, outcomes[i].err = o.run(ctx, run, progress)
			return nil
		})
	}
	_ = group.Wait()
	return outcomes
}

func elapsed(since time.Time) string {
	seconds := int(time.Since(since).Seconds())
	return fmt.Sprintf("%02d:%02d", seconds/60, seconds%60)
}

// run runs a suite to its end and returns its report. It also fails if specs did, in which
// case the report holds which.
func (o *options) run(ctx context.Context, run suiteRun, progress func(string)) (report types.Report, err error) {
	program := filepath.Join(o.outputDir, "bin", run.program)
	if _, err := os.Stat(program); err != nil {
		return report, fmt.Errorf("%s is not built (%s): %w", run.program, run.target, err)
	}
	if err := os.MkdirAll(filepath.Dir(run.files), 0o755); err != nil {
		return report, err
	}
	if err := os.Remove(run.json()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return report, fmt.Errorf("remove the report of the last run: %w", err)
	}
	log, err := os.Create(run.log())
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	cmd := exec.CommandContext(ctx, program, append(o.suiteArguments(run), run.arguments...)...)
	cmd.Stdout = log
	started, failed := runAttended(cmd, progress)
	if !started {
		return report, failed
	}
	report, err = run.readReport(ctx)
	switch {
	case ctx.Err() != nil:
		return report, fmt.Errorf("the %s suite was interrupted: %w", run.name, failed)
	case err != nil:
		return report, fmt.Errorf("the %s suite ended without a report, see %s: %w", run.name, log.Name(), errors.Join(failed, err))
	case failed != nil:
		return report, fmt.Errorf("the %s suite failed, see %s: %w", run.name, log.Name(), failed)
	}
	return report, nil
}

// suiteArguments are the arguments of every suite.
func (o *options) suiteArguments(run suiteRun) []string {
	return []string{
		"-test.run=^" + run.test + "$",
		"-test.timeout=0",
		"-output=" + o.outputDir,
		fmt.Sprintf("-keep=%t", o.keep),
		"-ginkgo.label-filter=" + run.labels,
		fmt.Sprintf("-ginkgo.fail-fast=%t", o.failFast),
		"-ginkgo.no-color",
		"-ginkgo.json-report=" + run.json(),
		"-ginkgo.junit-report=" + run.junit(),
	}
}

// runAttended runs a suite, whose lines of progress it passes on. When the context of the
// command ends, the suite gets an interrupt and time to clean up.
func runAttended(cmd *exec.Cmd, progress func(string)) (started bool, err error) {
	lines, err := cmd.StderrPipe()
	if err != nil {
		return false, err
	}
	// Held open until the suite has ended; the suite cleans up when it closes
	// because this program was killed.
	if _, err := cmd.StdinPipe(); err != nil {
		return false, err
	}
	// A group of its own keeps the terminal's Ctrl-C from the suite, which would
	// take a second one, from here, as an order to leave its cluster behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		progress("interrupted, cleaning up")
		return cmd.Process.Signal(os.Interrupt)
	}
	cmd.WaitDelay = cleanupTime
	if err := cmd.Start(); err != nil {
		return false, err
	}
	for scanner := bufio.NewScanner(lines); scanner.Scan(); {
		progress(scanner.Text())
	}
	return true, cmd.Wait()
}

// readReport reads the report of a suite that ended. Without a report, the suite may not
// have come to its clean-up either, so that is done here.
func (r suiteRun) readReport(ctx context.Context) (types.Report, error) {
	report, err := specreport.Read(r.json())
	if err != nil && r.cleanUp != nil {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		err = errors.Join(err, r.cleanUp(cleanup))
	}
	return report, err
}

// finish prints the results of runs, and returns their errors. The counts are the last line,
// by which CI counts.
func finish(out io.Writer, outcomes []outcome) error {
	var sum specreport.Counts
	var errs []error
	var reports []types.Report
	for _, outcome := range outcomes {
		for _, spec := range outcome.report.SpecReports {
			figures, err := specreport.Entries[string](spec, "found")
			errs = append(errs, err)
			for _, figure := range figures {
				fmt.Fprintf(out, "FOUND: %s\n", figure)
			}
		}
		for _, failure := range specreport.Failures(outcome.report) {
			fmt.Fprintf(out, "FAILED in %s: %s\n", outcome.name, failure)
		}
		reports = append(reports, outcome.report)
		sum = sum.Plus(outcome.counts())
		errs = append(errs, outcome.err)
	}
	printSlowest(out, reports)
	fmt.Fprintln(out, sum)
	return errors.Join(errs...)
}

func printSlowest(out io.Writer, reports []types.Report) {
	lines := specreport.Slowest(reports...)
	if len(lines) == 0 {
		return
	}
	fmt.Fprintln(out, "Slowest specs of those that took over 30 s:")
	for _, line := range lines {
		fmt.Fprintln(out, line)
	}
}
