// Package check is the form in which preflight and access report what they found.
package check

import "fmt"

// Result of a check.
type Result string

// The results. Unknown: it could not be found out, and Detail says why.
const (
	OK      Result = "OK"
	Warning Result = "Warning"
	Problem Result = "Problem"
	Unknown Result = "Unknown"
)

// Check is one.
type Check struct {
	Name   string `json:"name"`
	Result Result `json:"result"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Remedy is what to do; empty if there is nothing to do.
	Remedy string `json:"remedy,omitempty"`
}

// List is a report.
type List []Check

// Add appends a check.
func (l *List) Add(name string, result Result, remedy, detail string, arguments ...any) {
	*l = append(*l, Check{Name: name, Result: result, Detail: fmt.Sprintf(detail, arguments...), Remedy: remedy})
}

// Problems returns how many checks are one.
func (l List) Problems() int {
	n := 0
	for _, c := range l {
		if c.Result == Problem {
			n++
		}
	}
	return n
}
