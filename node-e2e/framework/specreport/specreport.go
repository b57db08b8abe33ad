// Package specreport reports on the specs of a Ginkgo suite: a line of progress for each,
// Ginkgo's own JSON and JUnit reports, and the folder that a failed spec leaves behind.
// It also reads the JSON report. All suites of this project report through it.
package specreport

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
)

// messageLimit is the number of characters of a failure message that fit a line.
const messageLimit = 400

// labelOwnTitle is the label of specs whose own text is their title: the incidents.
const labelOwnTitle = "incident"

// Progress is the line about a spec that has ended; empty for one that did not run.
func Progress(spec types.SpecReport) string {
	seconds := fmt.Sprintf("%.1f s", spec.RunTime.Seconds())
	switch {
	case skipped(spec):
		return fmt.Sprintf("%s: skipped: %s", Title(spec), Message(spec))
	case spec.State.Is(types.SpecStatePending | types.SpecStateSkipped):
		return ""
	case spec.Failed():
		return fmt.Sprintf("%s: FAILED after %s: %s", Title(spec), seconds, Message(spec))
	case spec.NumAttempts > 1:
		return fmt.Sprintf("%s: ok at attempt %d, %s", Title(spec), spec.NumAttempts, seconds)
	}
	return fmt.Sprintf("%s: ok, %s", Title(spec), seconds)
}

// Repeated is the line about an attempt at a spec that failed and is made again; empty
// for the last attempt.
func Repeated(spec types.SpecReport) string {
	if spec.NumAttempts >= spec.MaxFlakeAttempts {
		return ""
	}
	return fmt.Sprintf("%s: failed at attempt %d and is repeated: %s", Title(spec), spec.NumAttempts, Message(spec))
}

// Message is why a spec failed, on one line that is cut after 400 characters.
func Message(spec types.SpecReport) string {
	line := []rune(strings.Join(strings.Fields(spec.FailureMessage()), " "))
	if len(line) > messageLimit {
		return string(line[:messageLimit]) + "..."
	}
	return string(line)
}

// Failure is the title and the message of a spec, on one line.
func Failure(spec types.SpecReport) string {
	return Title(spec) + ": " + Message(spec)
}

// Failures has one Failure for each spec that failed, and for what failed before or
// after the specs.
func Failures(report types.Report) []string {
	var failures []string
	for _, spec := range report.SpecReports {
		if spec.Failed() {
			failures = append(failures, Failure(spec))
		}
	}
	return failures
}

// Title names a spec in lines for people. Incidents have titles of their own, other specs
// read as a sentence with their containers, and what comes before and after all specs has
// no text.
func Title(spec types.SpecReport) string {
	if slices.Contains(spec.Labels(), labelOwnTitle) {
		return spec.LeafNodeText
	}
	if text := spec.FullText(); text != "" {
		return text
	}
	return spec.LeafNodeType.String()
}

// Counts is what came of a suite.
type Counts struct {
	// Passed counts specs, Failed also what comes before and after them.
	Passed, Failed int
	// Skipped counts specs that were to run and did not. Those that a filter left out are
	// no part of the run.
	Skipped int
}

// Count adds up a report.
func Count(report types.Report) Counts {
	var c Counts
	for _, spec := range report.SpecReports {
		switch {
		case spec.Failed():
			c.Failed++
		case skipped(spec):
			c.Skipped++
		case spec.State.Is(types.SpecStatePassed) && spec.LeafNodeType.Is(types.NodeTypeIt):
			c.Passed++
		}
	}
	return c
}

// String is the last line of a run's log.
func (c Counts) String() string {
	text := fmt.Sprintf("%d passed, %d failed", c.Passed, c.Failed)
	if c.Skipped > 0 {
		text += fmt.Sprintf(", %d skipped", c.Skipped)
	}
	return text
}

// Plus adds up two runs.
func (c Counts) Plus(other Counts) Counts {
	return Counts{Passed: c.Passed + other.Passed, Failed: c.Failed + other.Failed, Skipped: c.Skipped + other.Skipped}
}

// skipped reports whether a spec gave a reason not to run, or could not run after another
// had failed; one that a filter left out did not.
func skipped(spec types.SpecReport) bool {
	return spec.State.Is(types.SpecStateSkipped) && spec.Failure.Message != ""
}

var notInFileNames = regexp.MustCompile(`[^a-zA-Z0-9]+`)

// FileName is a name for a file or folder about something with a title.
func FileName(title string) string {
	return strings.Trim(notInFileNames.ReplaceAllString(title, "-"), "-")
}

// Artifacts is the folder with what explains one failed spec. It is written when
// something is broken already, so it never fails: what it cannot write, it writes
// to Ginkgo's writer.
type Artifacts struct {
	// Dir is the folder's path.
	Dir string
}

// NewArtifacts makes the folder for a failed spec in a folder for all of them, with
// the failure in it.
func NewArtifacts(parent string, spec types.SpecReport) Artifacts {
	a := Artifacts{Dir: filepath.Join(parent, FileName(spec.LeafNodeText))}
	if err := os.MkdirAll(a.Dir, 0o755); err != nil {
		logError(err)
		return a
	}
	a.Keep("failure.txt", []byte(spec.StartTime.Format(time.RFC3339)+"\n"+spec.FailureMessage()+"\n"), nil)
	return a
}

// Keep writes a file of the folder, or, under a name that says so, why there is
// nothing to write.
func (a Artifacts) Keep(name string, data []byte, err error) {
	if err != nil {
		name, data = name+".error", []byte(err.Error()+"\n")
	}
	if err := os.WriteFile(filepath.Join(a.Dir, name), data, 0o644); err != nil {
		logError(err)
	}
}

func logError(err error) { ginkgo.GinkgoWriter.Printf("artifacts: %v\n", err) }
