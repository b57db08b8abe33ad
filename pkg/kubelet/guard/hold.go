package guard

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
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
	since time.Time
	last  time.Time
	// details describe the attempts, see addDetail.
	details []detail
	// ended is when the hold was over; zero while it lasts.
	ended time.Time
}

// maxDetails bounds how many different details of one hold are kept.
const maxDetails = 4

// detail describes attempts of one hold: the first and the newest of those that start
// alike up to a colon. Attempts that start differently are reasons of their own, as when
// several admission handlers reject a pod; the same start comes with newer figures, as
// in the messages of the eviction manager.
type detail struct{ first, newest string }

// addDetail takes the detail of another attempt.
func (h *hold) addDetail(text string) {
	reason, _, _ := strings.Cut(text, ":")
	i := slices.IndexFunc(h.details, func(known detail) bool {
		prefix, _, _ := strings.Cut(known.first, ":")
		return prefix == reason
	})
	switch {
	case text == "":
	case i >= 0:
		h.details[i].newest = text
	case len(h.details) < maxDetails:
		h.details = append(h.details, detail{first: text, newest: text})
	}
}

// reason is what the hold is for, without newer figures: the pod's condition shows
// it, and every change of that is a request to the API server.
func (h *hold) reason() string {
	return h.joined(func(d detail) string { return d.first })
}

// newest is reason with the newest figures.
func (h *hold) newest() string {
	return h.joined(func(d detail) string { return d.newest })
}

func (h *hold) joined(text func(detail) string) string {
	texts := make([]string, len(h.details))
	for i, d := range h.details {
		texts[i] = text(d)
	}
	return strings.Join(texts, "; ")
}

// newHold returns a hold that starts now.
func newHold(now time.Time, text string) *hold {
	h := &hold{since: now, last: now}
	h.addDetail(text)
	return h
}

// countVanishedLocked brings Guard.vanished up to date.
func (g *Guard) countVanishedLocked() {
	n := int32(0)
	for _, r := range g.records {
		if r.lost && !r.present {
			n++
		}
	}
	g.vanished.Store(n)
	if n == 0 {
		clear(g.waiting)
	}
}

// noteLocked records the outcome: holds, exemptions, metrics, events.
func (g *Guard) noteLocked(r *podRecord, cause Cause, detail string, verdict Verdict) effects {
	switch verdict {
	case Refused:
		return g.holdLocked(r, cause, detail)
	case AllowedByAudit:
		return append(g.auditLocked(r, cause, detail), g.exemptLocked(r, cause, "mode Audit lets the kubelet end it")...)
	case AllowedByConfiguration:
		g.countAllowedLocked(r, cause)
		return g.exemptLocked(r, cause, fmt.Sprintf("allowedCauses lets the kubelet end it (%s)", cause))
	case AllowedByEvidence:
		// The kubelet before this one has counted what it was allowed to stop.
		if !r.evidenceOver {
			g.countAllowedLocked(r, ExplicitDeletion)
		}
	case AllowedNothingRuns:
		// A candidate of a preemption may not be chosen in the end. When it is, the pod
		// workers check again before they stop it.
		if cause.endsPod() && cause != Preempted {
			return g.exemptLocked(r, cause, "nothing of the pod runs any more")
		}
	}
	return nil
}

// exemptLocked makes later decisions about the same attempt consistent with this one.
// A pod that may end is not held any more.
func (g *Guard) exemptLocked(r *podRecord, cause Cause, why string) effects {
	if r.exemption.add(cause) {
		return g.releaseAllLocked(r, why)
	}
	return nil
}

func (g *Guard) countAllowedLocked(r *podRecord, cause Cause) {
	if !r.allowed[cause] {
		r.allowed[cause] = true
		g.metrics.allowed.WithLabelValues(string(cause)).Inc()
	}
}

// holdLocked records a refusal.
func (g *Guard) holdLocked(r *podRecord, cause Cause, detail string) effects {
	now := g.clock.Now()
	if h := r.holds[cause]; h != nil {
		h.last = now
		h.addDetail(detail)
		return nil
	}
	if len(r.holds) == 0 {
		r.heldSince = now
	}
	h := newHold(now, detail)
	r.holds[cause] = h
	if cause == PodVanished {
		r.lost = true
		g.countVanishedLocked()
	}
	g.metrics.refused.WithLabelValues(string(cause)).Inc()
	if !r.present {
		g.wakeLookups()
	}
	return effects{{holdStarted, r, h, cause, detail}}
}

// auditLocked records an attempt that Enforce would have refused.
func (g *Guard) auditLocked(r *podRecord, cause Cause, detail string) effects {
	now := g.clock.Now()
	if h := r.audited[cause]; h != nil {
		h.last = now
		h.addDetail(detail)
		return nil
	}
	r.audited[cause] = newHold(now, detail)
	g.metrics.audited.WithLabelValues(string(cause)).Inc()
	return effects{{attemptAudited, r, nil, cause, detail}}
}

// releaseLocked ends one hold.
func (g *Guard) releaseLocked(r *podRecord, cause Cause, why string) effects {
	h := r.holds[cause]
	if h == nil {
		return nil
	}
	delete(r.holds, cause)
	h.ended = g.clock.Now()
	return effects{{holdEnded, r, h, cause, why}}
}

// releaseAllLocked ends all holds of a pod.
func (g *Guard) releaseAllLocked(r *podRecord, why string) effects {
	var after effects
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

// requestSync has the pod synced, so that its condition is true soon and not only with
// the next resync. A full queue costs no more than that.
func (g *Guard) requestSync(uid types.UID) {
	select {
	case g.syncs <- uid:
	default:
	}
}
