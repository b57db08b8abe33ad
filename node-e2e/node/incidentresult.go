package node

import (
	"strings"

	"github.com/onsi/ginkgo/v2/types"

	"kubelet-guard.io/node-e2e/framework/specreport"
)

// Fate is what became of a pod's process under a fault.
type Fate struct {
	// Killed reports whether the process ended.
	Killed bool `json:"killed"`
	// Seconds is the time from the fault to the end of the process; 0 if it was kept.
	Seconds float64 `json:"seconds,omitempty"`
	// Refused is the number of kill attempts that the guard counted as refused.
	Refused int `json:"refused,omitempty"`
}

// Deletion is what became of an explicit deletion after the fault.
type Deletion struct {
	// Honoured reports whether the process ended within its grace period.
	Honoured bool `json:"honoured"`
	// Seconds is the time from the request to the end of the process.
	Seconds float64 `json:"seconds,omitempty"`
}

// IncidentResult is the outcome of one incident on one kubelet.
type IncidentResult struct {
	Incident string `json:"incident"`
	// Observed is false when the spec ended before it saw the fates.
	Observed bool `json:"observed"`
	// Protected and Unprotected are the two pods of the incident. Both carry the
	// same specification, one of them the label for protection.
	Protected   Fate `json:"protected"`
	Unprotected Fate `json:"unprotected"`
	// Alone: there was no unprotected pod.
	Alone    bool     `json:"alone,omitempty"`
	Deletion Deletion `json:"deletion"`
	// Failure is what the failed assertion said, shortened; empty if the spec passed.
	Failure string `json:"failure,omitempty"`
}

// Names of the entries that the suite adds to its report.
const (
	incidentEntry       = "incident"
	kubeletVersionEntry = "kubelet version"
)

// Incidents returns the incidents in a report of the suite, in their order.
func Incidents(report types.Report) ([]IncidentResult, error) {
	var incidents []IncidentResult
	for _, spec := range report.SpecReports {
		attempts, err := specreport.Entries[IncidentResult](spec, incidentEntry)
		if err != nil {
			return nil, err
		}
		if len(attempts) == 0 {
			continue
		}
		last := attempts[len(attempts)-1]
		last.Failure = specreport.Message(spec)
		incidents = append(incidents, last)
	}
	return incidents, nil
}

// KubeletVersion returns what the node of a report reported of its kubelet; empty if no
// node was ready.
func KubeletVersion(report types.Report) (string, error) {
	for _, spec := range report.SpecReports {
		versions, err := specreport.Entries[string](spec, kubeletVersionEntry)
		if err != nil || len(versions) > 0 {
			return strings.Join(versions, ""), err
		}
	}
	return "", nil
}
