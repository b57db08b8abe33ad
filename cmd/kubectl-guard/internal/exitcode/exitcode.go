// Package exitcode has the exit codes of kubectl guard.
package exitcode

import "errors"

// Exit codes of the program, as docs/kubectl-guard.md lists them.
const (
	Error = 1
	// Stopped: a pool is stopped at a node that failed or refused.
	Stopped = 3
	// Timeout: what was awaited was not there in time. It may come later.
	Timeout = 4
)

// codedError is an error with an exit code of its own.
type codedError struct {
	error
	code int
}

// Unwrap returns the error without its code.
func (e *codedError) Unwrap() error { return e.error }

// With gives an error an exit code.
func With(err error, code int) error { return &codedError{err, code} }

// Of returns the exit code for what a command returned: 0 for nil.
func Of(err error) int {
	var coded *codedError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.code
	}
	return Error
}
