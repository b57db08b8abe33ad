package guard

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Refuse reports whether the kubelet must not stop the pod for the cause. It is the
// decision of most hooks. detail goes into the event and the condition.
func (g *Guard) Refuse(pod *v1.Pod, cause Cause, detail string) bool {
	r := g.recordOf(pod)
	return r != nil && g.refuse(r, cause, detail, nil)
}

// RefuseUID is Refuse for callers that know the pod's UID only. It is also true while
// it is unknown whether the pod is protected.
func (g *Guard) RefuseUID(uid types.UID, cause Cause, detail string) bool {
	r, err := g.recordByUID(uid)
	if err != nil {
		return g.enforces(cause)
	}
	return r != nil && g.refuse(r, cause, detail, nil)
}

// RefuseTermination reports whether the pod workers must not make the pod terminating.
// runtimeOnly: the kubelet has no object of the pod. kill: the update is a kill, evict:
// on behalf of the eviction manager.
func (g *Guard) RefuseTermination(pod *v1.Pod, runtimeOnly, kill, evict bool) bool {
	switch {
	case runtimeOnly:
		return g.RefuseUID(pod.UID, OrphanedRuntimePod, "the kubelet has no object of this running pod")
	case pod.DeletionTimestamp != nil:
		g.Refuse(pod, PodVanished, "")
		return false
	case pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded:
		return g.Refuse(pod, TerminalPhaseReported, fmt.Sprintf("the API object says %s", pod.Status.Phase))
	case kill && evict:
		return g.Refuse(pod, Evicted, "the kubelet evicts the pod, or preempts it")
	case kill:
		return g.Refuse(pod, PodVanished, "the pod is gone from the API source")
	}
	return false
}

// refuse decides about one attempt and records the outcome. alive reports whether the
// attempt would stop something; it is called only when that matters, and without the
// lock. When it is nil the runtime is queried, unless it has reported the pod lately.
func (g *Guard) refuse(r *podRecord, cause Cause, detail string, alive func() bool) bool {
	start := g.clock.Now()
	defer func() { g.metrics.decision.Observe(g.clock.Since(start).Seconds()) }()

	g.mu.Lock()
	facts := g.factsLocked(r, cause)
	lately := r.aliveLatelyLocked(cause, start)
	g.mu.Unlock()

	isAlive := true
	if verdict := Decide(facts); verdict == Refused || verdict == AllowedByAudit {
		switch {
		case alive != nil:
			isAlive = alive()
		case !lately:
			isAlive = g.alive(r, cause.needsRunningContainer())
		}
	}

	// Evidence may have arrived during the query of the runtime. Deciding and recording
	// are one step, or a hold could start after the evidence that was to release it.
	g.mu.Lock()
	_, unprotected := g.unprotected[r.uid]
	current := g.records[r.uid]
	if current != nil {
		r = current
	}
	facts = g.factsLocked(r, cause)
	facts.Alive, facts.Protected = isAlive, !unprotected
	verdict := Decide(facts)
	switch {
	case current != nil || unprotected:
	case verdict == AllowedNothingRuns:
		if !cause.needsRunningContainer() {
			g.dead[r.uid] = g.clock.Now().Add(confirmInterval)
		}
		g.mu.Unlock()
		return false
	default:
		g.records[r.uid] = r
	}
	after := g.noteLocked(r, cause, detail, verdict)
	g.mu.Unlock()
	g.apply(after)
	return verdict == Refused
}

func (g *Guard) factsLocked(r *podRecord, cause Cause) Facts {
	return Facts{
		Mode:         g.config.Mode,
		Protected:    true,
		Evidence:     r.evidence != nil,
		Exempted:     r.exemption.covers(cause),
		CauseAllowed: g.allowedCauses[cause],
		Alive:        true,
	}
}

// enforces reports whether attempts of the cause are refused.
func (g *Guard) enforces(cause Cause) bool {
	return g.config.Mode == Enforce && !g.allowedCauses[cause]
}

// FilterStoppable returns the pods that may be stopped for the cause, in the same order, and
// records a refusal for each of the others.
func (g *Guard) FilterStoppable(pods []*v1.Pod, cause Cause, detail string) []*v1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(pod *v1.Pod) bool { return g.Refuse(pod, cause, detail) })
}

// FilterUnprotected returns the pods that would not be refused for the cause. It records
// nothing: it is for the choice among candidates.
func (g *Guard) FilterUnprotected(pods []*v1.Pod, cause Cause) []*v1.Pod {
	return slices.DeleteFunc(slices.Clone(pods), func(pod *v1.Pod) bool {
		r := g.recordOf(pod)
		if r == nil {
			return false
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		return Decide(g.factsLocked(r, cause)) == Refused
	})
}

// AllowCompletion notes that a pod ended by itself: SyncPod found it terminal. What is
// left of it may be cleaned up.
func (g *Guard) AllowCompletion(uid types.UID) {
	var after effects
	g.mu.Lock()
	if r := g.records[uid]; r != nil {
		after = g.exemptLocked(r, completed, "the pod ended by itself")
	}
	g.mu.Unlock()
	g.apply(after)
}

// AllowStop notes that the pod's author declared the stop of one container: a failed
// probe, a restart rule, a resize, a changed image.
func (g *Guard) AllowStop(pod *v1.Pod, containerID string) {
	if pod == nil || !g.Protects(pod) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stops[containerID] = g.clock.Now()
}

// AllowRestart notes that the containers and the sandbox of a pod may be stopped until a
// new sandbox is made: nothing in it is to be kept.
func (g *Guard) AllowRestart(pod *v1.Pod) {
	r := g.recordOf(pod)
	if r == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	r.exemption.restart = true
}
