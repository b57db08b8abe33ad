package cli

import "errors"

// Exit codes of the program, as docs/kubectl-guard.md lists them.
const (
	exitError = 1
	// exitStopped: a pool stands still at a node that failed or refused.
	exitStopped = 3
	// exitTimeout: what was awaited was not there in time. It may come later.
	exitTimeout = 4
)

// codedError is an error with an exit code of its own.
type codedError struct {
	error
	code int
}

func (e *codedError) Unwrap() error { return e.error }

func withCode(err error, code int) error { return &codedError{err, code} }

// ExitCode returns the exit code for what a command returned: 0 for nil.
func ExitCode(err error) int {
	var coded *codedError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		return coded.code
	}
	return exitError
}
