package specreport

import (
	"fmt"
	"io"
	"os"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
)

// Log is what the program of a suite tells about its specs: to the person who waits,
// on standard error, a line for each as it ends; to make, on standard output behind
// Ginkgo's report, a line for each failure and, last, the Counts.
type Log struct {
	Format
	progress, results io.Writer
	final             Final
	counts            Counts
}

// NewLog makes the log of this program's suite and has Ginkgo report to it. It must be
// called before the specs run, so it is best the value of a package variable. What
// findings returns follows the failures, line by line; it may be nil.
func NewLog(format Format, findings func() []string) *Log {
	l := &Log{Format: format, progress: os.Stderr, results: os.Stdout}
	ginkgo.ReportAfterEach(func(spec types.SpecReport) { l.specEnded(spec) })
	ginkgo.ReportAfterSuite("count", func(report types.Report) {
		var lines []string
		if findings != nil {
			lines = findings()
		}
		l.suiteEnded(report, lines)
	})
	return l
}

func (l *Log) specEnded(spec types.SpecReport) {
	if line := l.Progress(spec); line != "" {
		fmt.Fprintln(l.progress, line)
	}
}

// Stand makes a failure of the running spec one that stands whatever its next attempt
// says.
func (l *Log) Stand(format string, args ...any) {
	l.final.Add(ginkgo.CurrentSpecReport(), fmt.Sprintf(format, args...))
}

func (l *Log) suiteEnded(report types.Report, findings []string) {
	report, _ = l.final.Overrule(report)
	l.counts = l.Count(report)
	// Ginkgo may have left a line of dots open.
	fmt.Fprintln(l.results)
	for _, failure := range l.Failures(report) {
		// Once more, where the last lines of a log are all that is kept.
		fmt.Fprintf(l.results, "FAILED: %s\n", failure)
	}
	for _, line := range findings {
		fmt.Fprintln(l.results, line)
	}
}

// Finish prints the Counts, the line that all suites end with, and returns the code that
// TestMain exits with. It is given that of the run: a suite that broke before a spec could
// fail has failed, and so has one whose specs passed too late.
func (l *Log) Finish(code int) int {
	if code != 0 && l.counts.Failed == 0 {
		l.counts.Failed = 1
	}
	fmt.Fprintln(l.results, l.counts)
	if code == 0 && l.counts.Failed > 0 {
		return 1
	}
	return code
}

// NewArtifacts is the function NewArtifacts for the running spec, whose attempt has
// failed. It tells when the spec is made again, since what is told about its end is
// then about another attempt.
func (l *Log) NewArtifacts(parent string) Artifacts {
	spec := ginkgo.CurrentSpecReport()
	if line := l.Repeated(spec); line != "" {
		fmt.Fprintln(l.progress, line)
	}
	return NewArtifacts(parent, spec)
}
