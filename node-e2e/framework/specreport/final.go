package specreport

import (
	"slices"
	"strings"
	"sync"

	"github.com/onsi/ginkgo/v2/types"
)

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
