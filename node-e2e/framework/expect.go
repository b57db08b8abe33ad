package framework

import (
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
)

// Must returns the value of a call that the spec cannot go on without. An error fails the
// spec at the caller's line.
func Must[T any](value T, err error) T {
	ginkgo.GinkgoHelper()
	return Try(value, err).In(gomega.Default)
}

// Try is Must for a function of Eventually or Consistently: Try(f()).In(g).
func Try[T any](value T, err error) Result[T] { return Result[T]{value, err} }

// Result is what a call returned.
type Result[T any] struct {
	value T
	err   error
}

// In returns the value. An error fails the attempt.
func (r Result[T]) In(g gomega.Gomega) T {
	ginkgo.GinkgoHelper()
	g.Expect(r.err).NotTo(gomega.HaveOccurred())
	return r.value
}

// ErrorOf returns only the error of a call. Gomega's own Expect(f()).Error() does not fit
// clients of Kubernetes, which return an empty object with an error.
func ErrorOf[T any](_ T, err error) error { return err }
