package guard

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record/util"
	"k8s.io/klog/v2"
)

// Events of holds.
//
// client-go's recorder is best-effort: it drops an event that the API refuses, gives up
// after two minutes without an API server, aggregates more than ten on one object, and
// drops more than 25. Faults that make the guard hold pods do all of that: an emptied
// storage has no namespace for events at first, and a node can lose all of its pods at
// once. So the guard writes the events of holds itself, and retries until they are
// accepted.
//
// Producers only enqueue; one goroutine of Run writes.
//
// A fault that makes a node hold many pods at once does the same to other nodes, and a
// control plane that is being repaired must not carry that load (eventcrowd.go): the
// first few pods within a minute have their events at once; the others are counted in
// one event on the node, and their own events are written slowly.

const (
	// eventRetry is how long after a refusal an event is written again. It doubles up
	// to maxEventRetry.
	eventRetry    = time.Second
	maxEventRetry = 30 * time.Second
	eventTimeout  = 5 * time.Second
	// eventPatience is how long an event is still written after its hold is over.
	eventPatience = 10 * time.Minute
	// eventBatch is how many events are written before a pause of eventPause. The
	// kubelet reports its pods with the same client, at most 50 requests a second.
	eventBatch = 20
	eventPause = time.Second
	// maxEvents is how many events wait at most. Beyond that those go first whose
	// hold is over.
	maxEvents = 4096
)

// eventQueue has the events that the API has not accepted yet.
type eventQueue struct {
	// added has an element when there is something new.
	added chan struct{}

	mu      sync.Mutex
	pending []*pendingEvent
	// pausedUntil: nothing is written before; slowUntil: no slow event is.
	pausedUntil, slowUntil time.Time
	// recent has, by reason, the pods that had events of their own within the last
	// crowdWindow.
	recent map[string]map[types.UID]time.Time
}

// pendingEvent is one event. Its name stays the same over all attempts, so that one
// that was accepted without a response does not exist twice.
type pendingEvent struct {
	event *v1.Event
	// hold, when not nil, keeps the event from being given up while it lasts.
	hold *hold
	// slow events are written one every slowEvent. An event for others as well has
	// its crowd, until it is first written.
	slow  bool
	crowd *eventCrowd
	// tried: there was an attempt.
	tried bool
	// next is when it is written next, wait how long that is after the last attempt.
	next time.Time
	wait time.Duration
}

// podReference is what events on a pod are about.
func podReference(namespace, name string, uid types.UID) v1.ObjectReference {
	return v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: namespace, Name: name, UID: uid}
}

// nodeReference is what events on the node are about. As in the kubelet's own events
// the node's name is in place of its UID: kubectl describe node selects by that.
func (g *Guard) nodeReference() v1.ObjectReference {
	return v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: string(g.nodeName), UID: types.UID(g.nodeName)}
}

// event reports on the pod, and on the node when the pod's object is gone: an event on
// an object that cannot be looked up is easily missed. While the hold h lasts, if there
// is one, the event is not given up.
func (g *Guard) event(r *podRecord, h *hold, eventType, reason, message string) {
	g.mu.Lock()
	present := r.present
	g.mu.Unlock()
	if g.events == nil {
		return
	}
	if g.queue.crowded(reason, r.uid, g.clock.Now()) {
		g.writeSlowly(r, h, eventType, reason, message)
		return
	}
	g.writeSoon(podReference(r.namespace, r.name, r.uid), h, eventType, reason, message)
	if !present {
		g.writeSoon(g.nodeReference(), h, eventType, reason, fmt.Sprintf("Pod %s/%s (UID %s): %s", r.namespace, r.name, r.uid, message))
	}
}

// writeSoon puts an event into the queue. It never waits for the API. Without an API
// server there is nothing to write to.
func (g *Guard) writeSoon(about v1.ObjectReference, h *hold, eventType, reason, message string) {
	if g.events == nil {
		return
	}
	now := g.clock.Now()
	g.enqueue(&pendingEvent{event: g.newEvent(about, eventType, reason, message, now), hold: h, next: now})
}

func (g *Guard) enqueue(pending *pendingEvent) {
	q := &g.queue
	q.mu.Lock()
	q.pending = append(q.pending, pending)
	tooMany := len(q.pending) > maxEvents
	q.mu.Unlock()
	if tooMany {
		g.dropOneEvent()
	}
	select {
	case q.added <- struct{}{}:
	default:
	}
}

// newEvent returns the event as the kubelet's recorder would make it. Two events of
// one moment differ in their names.
func (g *Guard) newEvent(about v1.ObjectReference, eventType, reason, message string, now time.Time) *v1.Event {
	hash := fnv.New64a()
	fmt.Fprintln(hash, now.UnixNano(), about.Kind, about.UID, reason, message)
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	at := metav1.NewTime(now)
	return &v1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: util.GenerateEventName(about.Name, int64(hash.Sum64()>>1))},
		InvolvedObject:      about,
		Type:                eventType,
		Reason:              reason,
		Message:             message,
		FirstTimestamp:      at,
		LastTimestamp:       at,
		Count:               1,
		Source:              v1.EventSource{Component: eventSource, Host: string(g.nodeName)},
		ReportingController: eventSource,
		ReportingInstance:   string(g.nodeName),
	}
}

// eventSource is the component that events of the kubelet come from.
const eventSource = "kubelet"

// writeEvents writes the events of the queue until the context ends.
func (g *Guard) writeEvents(ctx context.Context) {
	if g.events == nil {
		return
	}
	for ctx.Err() == nil {
		var again <-chan time.Time
		if wait, some := g.writeDueEvents(ctx); some {
			again = g.clock.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-g.queue.added:
		case <-again:
		}
	}
}

// writeDueEvents writes the events whose time has come, and returns how long to wait
// for the next one, if there is one.
func (g *Guard) writeDueEvents(ctx context.Context) (wait time.Duration, some bool) {
	q := &g.queue
	now := g.clock.Now()
	q.mu.Lock()
	var due []*pendingEvent
	if !now.Before(q.pausedUntil) {
		for _, p := range q.pending {
			if !now.Before(p.next) && !(q.isSlow(p) && now.Before(q.slowUntil)) {
				due = append(due, p)
			}
		}
	}
	q.mu.Unlock()
	// Those that were refused wait behind those that have not been tried.
	slices.SortStableFunc(due, func(a, b *pendingEvent) int { return a.next.Compare(b.next) })
	written := 0
	for _, p := range due {
		if q.isSlow(p) && !q.takeSlow(now) {
			continue
		}
		if written++; written > eventBatch {
			q.pause(now.Add(eventPause))
			break
		}
		if !q.try(p) {
			continue
		}
		err := g.writeEvent(ctx, p.event)
		if ctx.Err() != nil {
			return 0, false
		}
		now = g.clock.Now()
		if err == nil || g.givenUp(p, now, err) {
			q.remove(p)
			continue
		}
		if p.wait == 0 {
			klog.InfoS("An event of the guard was not accepted; it is written again", "event", klog.KObj(p.event), "object", klog.KRef(p.event.InvolvedObject.Namespace, p.event.InvolvedObject.Name), "reason", p.event.Reason, "err", err)
		}
		p.wait = min(max(2*p.wait, eventRetry), maxEventRetry)
		p.next = now.Add(jitter(p.wait))
		if status := apierrors.APIStatus(nil); !errors.As(err, &status) {
			// The API server does not respond; the others would time out, too.
			q.pause(p.next)
			break
		}
	}
	return q.wait(g.clock.Now())
}

// writeEvent makes one attempt. An event that is there has been accepted before.
func (g *Guard) writeEvent(ctx context.Context, event *v1.Event) error {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	_, err := g.events.Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// givenUp reports whether an event that was not accepted is not written any more.
func (g *Guard) givenUp(p *pendingEvent, now time.Time, err error) bool {
	since := p.event.FirstTimestamp.Time
	if p.hold != nil {
		g.mu.Lock()
		since = p.hold.ended
		g.mu.Unlock()
	}
	if since.IsZero() || now.Sub(since) <= eventPatience {
		return false
	}
	klog.ErrorS(err, "An event of the guard was never accepted", "event", klog.KObj(p.event), "reason", p.event.Reason, "message", p.event.Message)
	return true
}

// dropOneEvent takes the oldest event out of a queue that is too long, if there is one
// by preference that is not about a hold that lasts.
func (g *Guard) dropOneEvent() {
	q := &g.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		return
	}
	g.mu.Lock()
	i := slices.IndexFunc(q.pending, func(p *pendingEvent) bool { return p.hold == nil || !p.hold.ended.IsZero() })
	g.mu.Unlock()
	i = max(i, 0)
	klog.InfoS("Too many events of the guard wait to be accepted, dropping one", "event", klog.KObj(q.pending[i].event), "message", q.pending[i].event.Message)
	q.pending = slices.Delete(q.pending, i, i+1)
}

func (q *eventQueue) pause(until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pausedUntil = until
}

func (q *eventQueue) remove(p *pendingEvent) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.Index(q.pending, p); i >= 0 {
		q.pending = slices.Delete(q.pending, i, i+1)
	}
}

// wait returns how long it is until something is to be written, if anything is.
func (q *eventQueue) wait(now time.Time) (time.Duration, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		return 0, false
	}
	next := q.when(slices.MinFunc(q.pending, func(a, b *pendingEvent) int { return q.when(a).Compare(q.when(b)) }))
	if next.Before(q.pausedUntil) {
		next = q.pausedUntil
	}
	return next.Sub(now), true
}
