package guard

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// effects follow from a change of the records, in their order. The methods that change
// records under the lock return them; apply carries them out without it.
type effects []effect

// effect is a log line, with the event and the sync of the pod that belong to it, or the
// removal of the pod's files.
type effect struct {
	kind   effectKind
	record *podRecord
	// hold is the hold that the effect is about, text its detail or why it ended.
	hold  *hold
	cause Cause
	text  string
}

// effectKind is the closed set of effects. The zero value is invalid.
type effectKind int

const (
	holdStarted effectKind = iota + 1
	holdEnded
	attemptAudited
	podForgotten
)

// apply carries out the effects. It must be called without the lock.
func (g *Guard) apply(all effects) {
	for _, e := range all {
		r := e.record
		switch e.kind {
		case holdStarted:
			klog.InfoS("Refused to stop a protected pod", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "cause", e.cause, "detail", e.text)
			g.event(r, e.hold, v1.EventTypeWarning, EventKillRefused,
				fmt.Sprintf("The kubelet did not stop this pod (%s): %s. It keeps running until its deletion is requested.", e.cause, e.text))
			// A rejected pod is synced next anyway, and not before its resources are
			// allocated.
			if e.cause != AdmissionRejected {
				g.requestSync(r.uid)
			}
		case holdEnded:
			held := e.hold.ended.Sub(e.hold.since).Round(time.Second)
			klog.InfoS("Hold of a protected pod ended", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "cause", e.cause, "why", e.text, "held", held)
			g.event(r, nil, v1.EventTypeNormal, EventHoldReleased, fmt.Sprintf("No longer held (%s) after %s: %s.", e.cause, held, e.text))
			g.requestSync(r.uid)
		case attemptAudited:
			klog.InfoS("Audit: mode Enforce would have refused to stop this pod", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "cause", e.cause, "detail", e.text)
		case podForgotten:
			g.forget(r)
		}
	}
}
