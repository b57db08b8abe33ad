package framework

import (
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
)

// Must returns the value of a call that the spec cannot go on without. An error fails the
// spec at the caller's line.
func Must[T any](value T, err error) T {
	ginkgo.GinkgoHelper()
	gomega.Expect(err).NotTo(gomega.HaveOccurred())
	return value
}

// ErrorOf returns only the error of a call. Gomega's own Expect(f()).Error() does not fit
// clients of Kubernetes, which return an empty object with an error.
func ErrorOf[T any](_ T, err error) error { return err }
