package guard

import (
	"cmp"
	"slices"
)

// exemption is what earlier decisions about a pod let through, so that later hooks on the
// way of the same attempt do not refuse it. It belongs to one life of the pod. The zero
// value exempts nothing.
type exemption struct {
	// end is the cause of the attempt that ends the pod; completed when it ended by
	// itself; empty while nothing ends it.
	end Cause
	// restart: its containers may be stopped until it has a new sandbox.
	restart bool
}

// completed is the end of a pod that ended by itself.
const completed Cause = "Completed"

// covers reports whether an attempt of the cause is exempt.
func (e exemption) covers(cause Cause) bool {
	return e.end != "" || e.restart && cause == RuntimeStop
}

// add records an attempt that was let through. It reports whether that ends the pod; the
// first end stands.
func (e *exemption) add(cause Cause) (ends bool) {
	switch {
	case cause == completed, cause.endsPod():
		e.end = cmp.Or(e.end, cause)
		return true
	case cause == PodCgroupMissing, cause == SandboxChanged:
		e.restart = true
	}
	return false
}

// revokeEnd withdraws the end of the pod when it has one of the causes, which have turned
// out to be wrong.
func (e *exemption) revokeEnd(causes ...Cause) {
	if slices.Contains(causes, e.end) {
		e.end = ""
	}
}
