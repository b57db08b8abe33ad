// Package containers decides whether containers that ran before a change of the kubelet
// and do not run any more were stopped by the change. It is pure.
package containers

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
)

// Evidence is what is known about the pods whose containers are missing.
type Evidence struct {
	// Pods of the node as the API has them.
	Pods []corev1.Pod
	// Events of pods that have missing containers.
	Events []corev1.Event
	// Held are the pods that the guard held before the change, and Released says that
	// they may stop.
	Held     []types.UID
	Released bool
	// Since is when the change began.
	Since time.Time
}

// Missing returns the containers of before that are not in now.
func Missing(before, now []cri.Container) []cri.Container {
	running := make(map[string]bool, len(now))
	for _, c := range now {
		running[c.ID] = true
	}
	var missing []cri.Container
	for _, c := range before {
		if !running[c.ID] {
			missing = append(missing, c)
		}
	}
	return missing
}

// Verdict about a missing container. The zero value is invalid.
type Verdict int

const (
	// Expected: the deletion of its pod was asked for, or its author's rules ended it.
	Expected Verdict = iota + 1
	// Stopped: the kubelet stopped it, and nobody asked for that.
	Stopped
	// Unclear: it ended, and nothing says yet that the kubelet stopped it. A report of
	// that may come later; when none comes, it ended by itself.
	Unclear
)

// Judge decides about one missing container.
func Judge(c cri.Container, evidence Evidence) Verdict {
	if slices.Contains(evidence.Held, c.PodUID) {
		if evidence.Released {
			return Expected
		}
		// Evidence of an explicit deletion may have come meanwhile; below.
		if pod := find(c.PodUID, evidence.Pods); pod != nil && pod.DeletionTimestamp != nil {
			return Expected
		}
		return Stopped
	}
	pod := find(c.PodUID, evidence.Pods)
	if pod == nil || pod.DeletionTimestamp != nil {
		return Expected
	}
	terminal := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case pod.Status.Reason == "DeadlineExceeded":
		return Expected
	case terminal && pod.Spec.RestartPolicy != corev1.RestartPolicyNever && pod.Spec.RestartPolicy != corev1.RestartPolicyOnFailure:
		// It never ends by itself. That it may count as succeeded says only that its
		// containers did as they were told when they were stopped.
		return Stopped
	case pod.Status.Phase == corev1.PodFailed && pod.Status.Reason != "":
		// The kubelet gives a reason when it rejects or evicts a pod; a pod that ended
		// by itself has none.
		return Stopped
	case pod.Status.Phase == corev1.PodSucceeded && sidecar(pod, c.Name):
		return Expected // stopped when the others had ended
	}
	verdict := Unclear
	for _, event := range evidence.Events {
		if event.InvolvedObject.UID != c.PodUID || at(event).Before(evidence.Since.Truncate(time.Second)) {
			continue
		}
		switch event.Reason {
		case "Evicted", "Preempting", "SandboxChanged":
			return Stopped
		case "Killing":
			if path := event.InvolvedObject.FieldPath; path != "" && !strings.HasSuffix(path, "{"+c.Name+"}") {
				continue
			}
			if asAuthorSays(event.Message) {
				verdict = Expected
				continue
			}
			return Stopped
		}
	}
	return verdict
}

// asAuthorSays reports whether a container was stopped as the probes of its pod say.
func asAuthorSays(message string) bool {
	return strings.Contains(message, "failed liveness probe") || strings.Contains(message, "failed startup probe")
}

// sidecar reports whether a container is one that runs beside the others of its pod.
func sidecar(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return true
		}
	}
	return false
}

// mirrorAnnotation on a mirror pod has the UID that the kubelet gave its static pod.
const mirrorAnnotation = "kubernetes.io/config.mirror"

func find(uid types.UID, pods []corev1.Pod) *corev1.Pod {
	for i := range pods {
		if pods[i].UID == uid || pods[i].Annotations[mirrorAnnotation] == string(uid) {
			return &pods[i]
		}
	}
	return nil
}

func at(event corev1.Event) time.Time {
	latest := event.EventTime.Time
	if t := event.LastTimestamp.Time; t.After(latest) {
		latest = t
	}
	if event.Series != nil && event.Series.LastObservedTime.After(latest) {
		latest = event.Series.LastObservedTime.Time
	}
	return latest
}
