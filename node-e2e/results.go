package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Fate is what became of a pod's process under a fault.
type Fate struct {
	// Killed tells whether the process ended.
	Killed bool `json:"killed"`
	// Seconds is the time from the fault to the end of the process; 0 if it was kept.
	Seconds float64 `json:"seconds,omitempty"`
	// Refused is the number of kill attempts that the guard counted as refused.
	Refused int `json:"refused,omitempty"`
}

// Deletion is what became of an explicit deletion after the fault.
type Deletion struct {
	// Honoured tells whether the process ended within its grace period.
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
	// same specification, one of them the label that asks for protection.
	Protected   Fate `json:"protected"`
	Unprotected Fate `json:"unprotected"`
	// Alone: there was no unprotected pod.
	Alone    bool     `json:"alone,omitempty"`
	Deletion Deletion `json:"deletion"`
	// Failure is what the failed assertion said, shortened; empty if the spec passed.
	Failure string `json:"failure,omitempty"`
}

// Results is what one run of the suite found.
type Results struct {
	Kubelet Variant `json:"kubelet"`
	// Version is what the node reports of its kubelet.
	Version string `json:"version"`
	// Passed counts specs, Failed also what comes before and after them.
	Passed int `json:"passed"`
	Failed int `json:"failed"`
	// Failures has one line for each that failed.
	Failures  []string         `json:"failures,omitempty"`
	Duration  time.Duration    `json:"durationNanoseconds"`
	Incidents []IncidentResult `json:"incidents"`
}

// WriteResults stores results as JSON. The file appears whole or not at all.
func WriteResults(file string, results Results) error {
	data, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	partial := file + ".partial"
	if err := os.WriteFile(partial, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(partial, file)
}

// ReadResults reads what WriteResults stored.
func ReadResults(file string) (Results, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Results{}, err
	}
	var results Results
	if err := json.Unmarshal(data, &results); err != nil {
		return Results{}, fmt.Errorf("results file %s: %w", file, err)
	}
	return results, nil
}
