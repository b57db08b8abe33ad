package guard

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// crowdAfter pods with an event of one reason within crowdWindow have events of their
	// own at once; the pods after them are a crowd.
	crowdAfter  = 5
	crowdWindow = time.Minute
	// crowdDelay is how long the event that counts a crowd waits for more of it.
	crowdDelay = 5 * time.Second
	// slowEvent is the shortest time between two events of a crowd on its pods, and
	// between two events that were refused more than once.
	slowEvent = 10 * time.Second
	// crowdNames is how many pods of a crowd are named.
	crowdNames = 5
	// eventMessageLimit is that of the API for the message of an event, in bytes.
	eventMessageLimit = 1024
)

// eventCrowd is the content of one event on the node about many pods.
type eventCrowd struct {
	pods  map[types.UID]bool
	names []string
	// message is that of the first pod's event, for the reason.
	message string
}

// crowded reports whether the pod's event of this reason is one of many.
func (q *eventQueue) crowded(reason string, uid types.UID, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	recent := q.recent[reason]
	maps.DeleteFunc(recent, func(_ types.UID, at time.Time) bool { return now.Sub(at) >= crowdWindow })
	if _, own := recent[uid]; !own && len(recent) >= crowdAfter {
		return true
	}
	if recent == nil {
		recent = map[types.UID]time.Time{}
		if q.recent == nil {
			q.recent = map[string]map[types.UID]time.Time{}
		}
		q.recent[reason] = recent
	}
	recent[uid] = now
	return false
}

// writeSlowly puts the event of a pod of a crowd into the queue, and counts the pod
// in the event on the node.
func (g *Guard) writeSlowly(r *podRecord, h *hold, eventType, reason, message string) {
	now := g.clock.Now()
	q := &g.queue
	q.mu.Lock()
	i := slices.IndexFunc(q.pending, func(p *pendingEvent) bool { return p.crowd != nil && p.event.Reason == reason })
	var crowd *eventCrowd
	if i >= 0 {
		crowd = q.pending[i].crowd
		crowd.add(r)
		if h != nil {
			q.pending[i].hold = h
		}
	}
	q.mu.Unlock()
	if crowd == nil {
		crowd = &eventCrowd{pods: map[types.UID]bool{}, message: message}
		crowd.add(r)
		g.enqueue(&pendingEvent{event: g.newEvent(g.nodeReference(), eventType, reason, message, now), next: now.Add(crowdDelay), crowd: crowd, hold: h})
	}
	if reason == EventHoldReleased && q.forgetHold(r.uid) {
		// The hold was reported by the event on the node only.
		return
	}
	g.enqueue(&pendingEvent{event: g.newEvent(podReference(r.namespace, r.name, r.uid), eventType, reason, message, now), hold: h, next: now, slow: true})
}

func (c *eventCrowd) add(r *podRecord) {
	if c.pods[r.uid] {
		return
	}
	c.pods[r.uid] = true
	if len(c.names) < crowdNames {
		c.names = append(c.names, fmt.Sprintf("%s/%s (UID %s)", r.namespace, r.name, r.uid))
	}
}

// forgetHold takes the event of a hold out of the queue that was never tried to be
// written. It reports whether there was one.
func (q *eventQueue) forgetHold(uid types.UID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := len(q.pending)
	q.pending = slices.DeleteFunc(q.pending, func(p *pendingEvent) bool {
		return p.slow && !p.tried && p.event.Reason == EventKillRefused && p.event.InvolvedObject.UID == uid
	})
	return len(q.pending) < before
}

// try is called before an attempt to write the event. It reports whether the event is
// still to be written, and gives that of a crowd its last message: later pods have
// another one.
func (q *eventQueue) try(p *pendingEvent) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p.crowd != nil {
		p.event.Message = p.crowd.text(p.event.Type)
		p.crowd = nil
	}
	p.tried = true
	return slices.Contains(q.pending, p)
}

// text is the message of the event.
func (c *eventCrowd) text(eventType string) string {
	what := "no longer held"
	if eventType == v1.EventTypeWarning {
		what = "held: the kubelet did not stop them, and they keep running until their deletion is requested"
	}
	text := fmt.Sprintf("%d more pods within a minute are %s. GET %s on the kubelet and kubectl guard holds have all of them. ", len(c.pods), what, PodsPath)
	names := strings.Join(c.names, ", ")
	if others := len(c.pods) - len(c.names); others > 0 {
		names += fmt.Sprintf(" and %d others", others)
	}
	text += names + ". The first: " + c.message
	if len(text) > eventMessageLimit {
		text = strings.ToValidUTF8(text[:eventMessageLimit], "")
	}
	return text
}

// isSlow reports whether the event has to wait for its turn among the slow ones: those
// of a crowd, and those that are refused again and again.
func (q *eventQueue) isSlow(p *pendingEvent) bool { return p.slow || p.wait >= slowEvent }

// takeSlow reports whether a slow event may be written now.
func (q *eventQueue) takeSlow(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Before(q.slowUntil) {
		return false
	}
	q.slowUntil = now.Add(slowEvent + jitter(slowEvent)/5 - slowEvent/5)
	return true
}

// when is the time at which the event is written at the earliest.
func (q *eventQueue) when(p *pendingEvent) time.Time {
	if q.isSlow(p) && p.next.Before(q.slowUntil) {
		return q.slowUntil
	}
	return p.next
}
