package specreport

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/reporters"
	"github.com/onsi/ginkgo/v2/types"
)

// Log reports on the specs of this process: a line of progress for each on standard
// error, and Ginkgo's JSON and JUnit reports, in which Final failures count.
type Log struct {
	progress    io.Writer
	final       Final
	json, junit string
}

// NewLog makes the log of this program's suite and registers it with Ginkgo. It must be
// called before the specs run, so it is best the value of a package variable.
func NewLog() *Log {
	l := &Log{progress: os.Stderr}
	ginkgo.ReportAfterEach(func(spec types.SpecReport) { l.specEnded(spec) })
	ginkgo.ReportAfterSuite("report", func(report types.Report) {
		if err := l.suiteEnded(report); err != nil {
			ginkgo.Fail(err.Error())
		}
	})
	return l
}

// TakeReports takes the files of -ginkgo.json-report and -ginkgo.junit-report over: Ginkgo
// would write them without the Final failures. It returns the configuration for Ginkgo.
func (l *Log) TakeReports(config types.ReporterConfig) types.ReporterConfig {
	l.json, l.junit = config.JSONReport, config.JUnitReport
	config.JSONReport, config.JUnitReport = "", ""
	return config
}

func (l *Log) specEnded(spec types.SpecReport) {
	if line := Progress(spec); line != "" {
		fmt.Fprintln(l.progress, line)
	}
}

// Stand makes a failure of the running spec final: its next attempt cannot clear it.
func (l *Log) Stand(format string, args ...any) {
	l.final.Add(ginkgo.CurrentSpecReport(), fmt.Sprintf(format, args...))
}

// suiteEnded writes the reports. The error fails a suite whose specs passed too late.
func (l *Log) suiteEnded(report types.Report) error {
	report, overruled := l.final.Overrule(report)
	var errs []error
	if l.json != "" {
		errs = append(errs, reporters.GenerateJSONReport(report, l.json))
	}
	if l.junit != "" {
		errs = append(errs, reporters.GenerateJUnitReport(report, l.junit))
	}
	if overruled > 0 {
		errs = append(errs, fmt.Errorf("%d specs passed at their last attempt, but an earlier one failed for good", overruled))
	}
	return errors.Join(errs...)
}

// NewArtifacts is the function NewArtifacts for the running spec, whose attempt has
// failed. It reports whether the spec is repeated, since what is reported when it ends is
// then about another attempt.
func (l *Log) NewArtifacts(parent string) Artifacts {
	spec := ginkgo.CurrentSpecReport()
	l.Repeated(spec)
	return NewArtifacts(parent, spec)
}

// Repeated reports that a failed attempt at a spec is repeated, unless it was the last one.
func (l *Log) Repeated(spec types.SpecReport) {
	if line := Repeated(spec); line != "" {
		fmt.Fprintln(l.progress, line)
	}
}

// Final collects failures that the next attempt at a spec cannot clear, because
// what must never happen has happened. The zero value is empty. Its methods may be
// called from several goroutines.
type Final struct {
	lock sync.Mutex
	// messages has the messages of each spec, by its text, each once, in the order of their arrival.
	messages map[string][]string
}

// Add notes such a failure of the spec that runs.
func (f *Final) Add(spec types.SpecReport, message string) {
	f.lock.Lock()
	defer f.lock.Unlock()
	if f.messages == nil {
		f.messages = map[string][]string{}
	}
	text := spec.FullText()
	if !slices.Contains(f.messages[text], message) {
		f.messages[text] = append(f.messages[text], message)
	}
}

// Overrule returns the report with failures in place of the specs that did not fail in the
// end although something was added about them, and how many those are.
func (f *Final) Overrule(report types.Report) (types.Report, int) {
	f.lock.Lock()
	defer f.lock.Unlock()
	overruled := 0
	report.SpecReports = slices.Clone(report.SpecReports)
	for i := range report.SpecReports {
		spec := &report.SpecReports[i]
		messages := f.messages[spec.FullText()]
		if len(messages) == 0 || spec.Failed() {
			continue
		}
		spec.State = types.SpecStateFailed
		spec.Failure.Message = "failed for good at an earlier attempt: " + strings.Join(messages, "; ")
		overruled++
	}
	return report, overruled
}
