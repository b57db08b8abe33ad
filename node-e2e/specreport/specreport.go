// Package specreport says what became of the specs of a Ginkgo suite: a line of
// progress for each, the lines that the log of a run ends with, and the folder that
// a failed spec leaves behind. All suites of this project report through it, so that
// whoever reads one log can read the others, and make can, too.
package specreport

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
)

// Format is how a suite tells about its specs. Its methods do not change it and may
// be called from several goroutines.
type Format struct {
	// Title names a spec; nil means Title.
	Title func(types.SpecReport) string
	// Decimals is the number of decimals of a spec's seconds.
	Decimals int
	// MessageLimit is the number of characters of a failure message that fit a line.
	MessageLimit int
	// Skips says that specs which skip themselves are told about and counted.
	Skips bool
}

func (f Format) title(spec types.SpecReport) string {
	if f.Title == nil {
		return Title(spec)
	}
	return f.Title(spec)
}

// Progress is the line about a spec that has ended; empty for one that did not run.
func (f Format) Progress(spec types.SpecReport) string {
	seconds := fmt.Sprintf("%.*f s", f.Decimals, spec.RunTime.Seconds())
	switch {
	case f.skipped(spec):
		return fmt.Sprintf("%s: skipped: %s", f.title(spec), f.Message(spec))
	case spec.State.Is(types.SpecStatePending | types.SpecStateSkipped):
		return ""
	case spec.Failed():
		return fmt.Sprintf("%s: FAILED after %s: %s", f.title(spec), seconds, f.Message(spec))
	case spec.NumAttempts > 1:
		return fmt.Sprintf("%s: ok at attempt %d, %s", f.title(spec), spec.NumAttempts, seconds)
	}
	return fmt.Sprintf("%s: ok, %s", f.title(spec), seconds)
}

// Repeated is the line about an attempt at a spec that failed and is made again; empty
// for the last attempt.
func (f Format) Repeated(spec types.SpecReport) string {
	if spec.NumAttempts >= spec.MaxFlakeAttempts {
		return ""
	}
	return fmt.Sprintf("%s: failed at attempt %d and is repeated: %s", f.title(spec), spec.NumAttempts, f.Message(spec))
}

// Message is why a spec failed, on one line.
func (f Format) Message(spec types.SpecReport) string {
	return Brief(spec.FailureMessage(), f.MessageLimit)
}

// Failure is the title and the message of a spec, on one line.
func (f Format) Failure(spec types.SpecReport) string {
	return f.title(spec) + ": " + f.Message(spec)
}

// Failures has one Failure for each spec that failed, and for what failed before or
// after the specs.
func (f Format) Failures(report types.Report) []string {
	var failures []string
	for _, spec := range report.SpecReports {
		if spec.Failed() {
			failures = append(failures, f.Failure(spec))
		}
	}
	return failures
}

// Title is how a person is told about a spec; what comes before and after all specs
// has no text of its own.
func Title(spec types.SpecReport) string {
	if text := spec.FullText(); text != "" {
		return text
	}
	return spec.LeafNodeType.String()
}

// Brief is a message on one line, cut after so many characters.
func Brief(message string, limit int) string {
	line := []rune(strings.Join(strings.Fields(message), " "))
	if len(line) > limit {
		return string(line[:limit]) + "..."
	}
	return string(line)
}

// Counts is what came of a suite.
type Counts struct {
	// Passed counts specs, Failed also what comes before and after them.
	Passed, Failed int
	// Skipped counts specs that were to run and did not, if the Format has Skips. Those
	// that a filter left out are no part of the run.
	Skipped int
}

// Count adds up a report.
func (f Format) Count(report types.Report) Counts {
	var c Counts
	for _, spec := range report.SpecReports {
		switch {
		case spec.Failed():
			c.Failed++
		case f.skipped(spec):
			c.Skipped++
		case spec.State.Is(types.SpecStatePassed) && spec.LeafNodeText != "":
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

// ParseCounts reads the last line of a run's log.
func ParseCounts(line string) (Counts, error) {
	var c Counts
	if _, err := fmt.Sscanf(line, "%d passed, %d failed, %d skipped", &c.Passed, &c.Failed, &c.Skipped); err == nil && line == c.String() {
		return c, nil
	}
	c = Counts{}
	if _, err := fmt.Sscanf(line, "%d passed, %d failed", &c.Passed, &c.Failed); err != nil || line != c.String() {
		return Counts{}, fmt.Errorf("%q does not tell how many specs passed and failed", line)
	}
	return c, nil
}

// Plus adds up two runs.
func (c Counts) Plus(other Counts) Counts {
	return Counts{Passed: c.Passed + other.Passed, Failed: c.Failed + other.Failed, Skipped: c.Skipped + other.Skipped}
}

// skipped tells a spec that said why it does not run, or that could not run after
// another had failed, from one that a filter left out.
func (f Format) skipped(spec types.SpecReport) bool {
	return f.Skips && spec.State.Is(types.SpecStateSkipped) && spec.Failure.Message != ""
}

var notInFileNames = regexp.MustCompile(`[^a-zA-Z0-9]+`)

// FileName is a name for a file or folder about something with a title.
func FileName(title string) string {
	return strings.Trim(notInFileNames.ReplaceAllString(title, "-"), "-")
}

// Artifacts is the folder with what explains one failed spec. It is written when
// something is broken already, so it never fails: what it cannot write, it tells
// Ginkgo's writer.
type Artifacts struct {
	// Dir is the folder's path.
	Dir string
}

// NewArtifacts makes the folder for a failed spec in a folder for all of them, with
// the failure in it.
func NewArtifacts(parent string, spec types.SpecReport) Artifacts {
	a := Artifacts{Dir: filepath.Join(parent, FileName(spec.LeafNodeText))}
	if err := os.MkdirAll(a.Dir, 0o755); err != nil {
		tell(err)
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
		tell(err)
	}
}

func tell(err error) { ginkgo.GinkgoWriter.Printf("artifacts: %v\n", err) }
