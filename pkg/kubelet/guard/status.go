package guard

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// PodKillRefused is the pod condition that is True while the pod is held.
	PodKillRefused v1.PodConditionType = "kubelet-guard.io/KillRefused"
	// NodeHoldingPods is the node condition that is True while pods are held.
	NodeHoldingPods v1.NodeConditionType = "kubelet-guard.io/HoldingPods"
)

// CompletePodStatus adds to a status that the kubelet has just generated: the condition
// KillRefused, and, when the sandbox is gone while containers run, the addresses that
// the pod still has.
func (g *Guard) CompletePodStatus(pod *v1.Pod, old, status *v1.PodStatus) {
	g.addWaiting(pod, status)
	if !g.Protects(pod) {
		return
	}
	g.mu.Lock()
	r := g.records[pod.UID]
	if r == nil || len(r.holds) == 0 {
		g.mu.Unlock()
		return
	}
	_, sandboxLost := r.holds[SandboxChanged]
	since := r.heldSince
	var parts []string
	held := r.heldLocked()
	for _, cause := range held {
		h := r.holds[cause]
		parts = append(parts, fmt.Sprintf("%s since %s (%s)", cause, h.since.UTC().Format(time.RFC3339), h.reason()))
	}
	g.mu.Unlock()

	if sandboxLost && status.PodIP == "" {
		status.PodIP, status.PodIPs = old.PodIP, append([]v1.PodIP(nil), old.PodIPs...)
	}
	status.Conditions = append(status.Conditions, v1.PodCondition{
		Type:               PodKillRefused,
		Status:             v1.ConditionTrue,
		Reason:             string(held[0]),
		Message:            strings.Join(parts, "; "),
		LastTransitionTime: metav1.NewTime(since),
		ObservedGeneration: pod.Generation,
	})
}

// statusUnknown is the reason that the kubelet gives a container status when the
// runtime no longer knows the container; upstream defines it as
// ContainerReasonStatusUnknown in pkg/kubelet/container.
const statusUnknown = "ContainerStatusUnknown"

// addWaiting adds the condition of a pod whose start waits for a held pod.
func (g *Guard) addWaiting(pod *v1.Pod, status *v1.PodStatus) {
	if g.vanished.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.waiting[pod.UID]
	if w == nil {
		return
	}
	status.Conditions = append(status.Conditions, v1.PodCondition{
		Type:               PodWaitingForHeldPod,
		Status:             v1.ConditionTrue,
		Reason:             "SharesWithHeldPod",
		Message:            w.message(),
		LastTransitionTime: metav1.NewTime(w.since),
		ObservedGeneration: pod.Generation,
	})
}

// CorrectPhase corrects a status that the kubelet has just computed from its containers.
// A container in an unknown state counts there as terminated
// (convertToAPIContainerStatuses in pkg/kubelet/kubelet_pods.go), and with a restart
// policy that does not start it again the pod counts as ended, although the container
// may run. While it runs, the phase of a protected pod is not terminal.
func (g *Guard) CorrectPhase(pod *v1.Pod, status *v1.PodStatus) {
	if status.Phase != v1.PodFailed && status.Phase != v1.PodSucceeded || !g.Protects(pod) {
		return
	}
	for _, c := range status.ContainerStatuses {
		if isLost(c) && g.refuseLost(pod, c.Name) {
			status.Phase = v1.PodRunning
			return
		}
	}
	for _, c := range status.InitContainerStatuses {
		if isLost(c) && g.refuseLost(pod, c.Name) {
			status.Phase = v1.PodPending
			if slices.ContainsFunc(status.ContainerStatuses, func(c v1.ContainerStatus) bool { return c.State.Running != nil }) {
				status.Phase = v1.PodRunning
			}
			return
		}
	}
}

func isLost(c v1.ContainerStatus) bool {
	return c.State.Terminated != nil && c.State.Terminated.Reason == statusUnknown ||
		c.LastTerminationState.Terminated != nil && c.LastTerminationState.Terminated.Reason == statusUnknown && c.State.Running == nil
}

// refuseLost reports whether a container runs that counts as terminated.
func (g *Guard) refuseLost(pod *v1.Pod, name string) bool {
	r := g.recordOf(pod)
	return r != nil && g.refuse(r, ContainerStateUnknown, "the state of container "+name+" is unknown", func() bool {
		newest, err := g.newestContainers(r.uid)
		switch {
		case err != nil:
			return true
		case len(newest) == 0:
			return g.alive(r, true)
		}
		return newest[name] != nil && g.mayRun(newest[name])
	})
}

// SetNodeCondition updates the condition HoldingPods of a node. It is True while pods are
// held and False otherwise; mode Off removes it.
func (g *Guard) SetNodeCondition(node *v1.Node) {
	if g.config.Mode == Off {
		node.Status.Conditions = slices.DeleteFunc(node.Status.Conditions, func(c v1.NodeCondition) bool { return c.Type == NodeHoldingPods })
		return
	}
	held := g.heldPods()
	condition := v1.NodeCondition{
		Type:    NodeHoldingPods,
		Status:  v1.ConditionFalse,
		Reason:  "NoPodsHeld",
		Message: "kubelet guard holds no pods",
	}
	if held > 0 {
		condition.Status = v1.ConditionTrue
		condition.Reason = "PodsHeld"
		condition.Message = fmt.Sprintf("kubelet guard holds pods that the kubelet would have stopped: %d, see GET %s on the kubelet", held, PodsPath)
	}
	now := metav1.NewTime(g.clock.Now())
	condition.LastHeartbeatTime, condition.LastTransitionTime = now, now
	for i := range node.Status.Conditions {
		if old := &node.Status.Conditions[i]; old.Type == NodeHoldingPods {
			if old.Status == condition.Status {
				condition.LastTransitionTime = old.LastTransitionTime
			}
			*old = condition
			return
		}
	}
	node.Status.Conditions = append(node.Status.Conditions, condition)
}

// heldPods returns the number of pods with at least one hold.
func (g *Guard) heldPods() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, r := range g.records {
		if len(r.holds) > 0 {
			n++
		}
	}
	return n
}
