package guard

import (
	"fmt"
	"sort"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
)

// Reasons of the events.
const (
	// EventKillRefused is a Warning, once per hold.
	EventKillRefused = "KillRefused"
	// EventHoldReleased is Normal, once per hold.
	EventHoldReleased = "HoldReleased"
)

// hold is one refused attempt whose reason persists.
type hold struct {
	since  time.Time
	last   time.Time
	detail string
	// ended is when the hold was over; zero while it lasts.
	ended time.Time
}

// holdLocked takes note of a refusal. The returned functions report it and are
// to be called without the lock.
func (g *Guard) holdLocked(r *podRecord, cause Cause, detail string) []func() {
	now := g.clock.Now()
	if h := r.holds[cause]; h != nil {
		h.last = now
		return nil
	}
	if len(r.holds) == 0 {
		r.heldSince = now
	}
	h := &hold{since: now, last: now, detail: detail}
	r.holds[cause] = h
	g.metrics.refused.WithLabelValues(string(cause)).Inc()
	if !r.present {
		g.wakeLookups()
	}
	return []func(){
		func() {
			klog.InfoS("Refused to stop a protected pod", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "cause", cause, "detail", detail)
			g.event(r, h, v1.EventTypeWarning, EventKillRefused,
				fmt.Sprintf("The kubelet did not stop this pod (%s): %s. It keeps running until its deletion is asked for.", cause, detail))
		},
		func() {
			// A rejected pod is synced next anyway, and not before its resources
			// are allocated.
			if cause != AdmissionRejected {
				g.requestSync(r)
			}
		},
	}
}

// auditLocked takes note of an attempt that Enforce would have refused.
func (g *Guard) auditLocked(r *podRecord, cause Cause, detail string) []func() {
	now := g.clock.Now()
	if h := r.audited[cause]; h != nil {
		h.last = now
		return nil
	}
	r.audited[cause] = &hold{since: now, last: now, detail: detail}
	g.metrics.audited.WithLabelValues(string(cause)).Inc()
	return []func(){func() {
		klog.InfoS("Audit: mode Enforce would have refused to stop this pod", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "cause", cause, "detail", detail)
	}}
}

// releaseLocked ends one hold.
func (g *Guard) releaseLocked(r *podRecord, cause Cause, why string) []func() {
	h := r.holds[cause]
	if h == nil {
		return nil
	}
	delete(r.holds, cause)
	h.ended = g.clock.Now()
	held := h.ended.Sub(h.since).Round(time.Second)
	return []func(){
		func() {
			klog.InfoS("Hold of a protected pod ended", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "cause", cause, "why", why, "held", held)
			g.event(r, nil, v1.EventTypeNormal, EventHoldReleased, fmt.Sprintf("No longer held (%s) after %s: %s.", cause, held, why))
		},
		func() { g.requestSync(r) },
	}
}

// releaseAllLocked ends all holds of a pod.
func (g *Guard) releaseAllLocked(r *podRecord, why string) []func() {
	var after []func()
	for _, cause := range r.heldLocked() {
		after = append(after, g.releaseLocked(r, cause, why)...)
	}
	return after
}

// heldLocked returns the causes of the holds, sorted.
func (r *podRecord) heldLocked() []Cause {
	held := make([]Cause, 0, len(r.holds))
	for cause := range r.holds {
		held = append(held, cause)
	}
	sort.Slice(held, func(i, j int) bool { return held[i] < held[j] })
	return held
}

// requestSync asks for a sync of the pod, so that its condition is true soon
// and not with the next resync only. A full queue is no loss beyond that.
func (g *Guard) requestSync(r *podRecord) {
	select {
	case g.syncs <- r.uid:
	default:
	}
}
