// Package containers decides whether containers that ran before a change of the kubelet
// and do not run any more were stopped by the change. It is pure.
package containers

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
)

// Evidence is what is known about the pods whose containers are missing. None of it can be
// written by a tenant: events are no evidence, since anybody who may create them in a
// namespace may write them in the kubelet's name.
type Evidence struct {
	// Pods of the node as its kubelet has them. One that the kubelet does not have any
	// more, and whose deletion was not requested, is here as the API server has it.
	Pods []corev1.Pod
	// Deleted are the pods whose deletion was requested, and those that the API server
	// does not have any more.
	Deleted map[types.UID]bool
	// Running are the containers that run now.
	Running []cri.Container
	// FailedProbes are the containers whose liveness or startup probe has failed.
	FailedProbes map[Key]bool
	// Audited are the pods that the guard would have kept from being stopped.
	Audited map[types.UID]bool
	// Held are the pods that the guard held before the change, and Released reports that
	// they may stop.
	Held     []types.UID
	Released bool
}

// Key names a container, whatever its run.
type Key struct {
	Pod  types.UID
	Name string
}

// Missing returns the containers that are in before and not in now.
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
	// Expected: the deletion of its pod was requested, or its author's rules stop it.
	Expected Verdict = iota + 1
	// Stopped: the kubelet stopped it without a request.
	Stopped
	// Unclear: it ended by itself, unless the kubelet has stopped more containers than
	// are expected.
	Unclear
)

// Judge decides about one container that does not run any more, or is about to end.
func Judge(c cri.Container, evidence Evidence) Verdict {
	if slices.Contains(evidence.Held, c.PodUID) {
		if evidence.Released || evidence.Deleted[c.PodUID] {
			return Expected
		}
		return Stopped
	}
	if evidence.Deleted[c.PodUID] {
		return Expected
	}
	if evidence.Audited[c.PodUID] {
		return Stopped
	}
	pod := find(c.PodUID, evidence.Pods)
	if pod == nil {
		return Unclear
	}
	status := pod.Status
	switch {
	case status.Phase == corev1.PodFailed && (status.Reason == "DeadlineExceeded" || status.Reason == "Evicted" && overItsOwnLimit(status.Message)):
		return Expected
	case status.Phase == corev1.PodFailed && status.Reason != "":
		// The kubelet gives a reason when it rejects or evicts a pod; a pod that ended by
		// itself has none. It ran before, so what it is rejected for is new.
		return Stopped
	case (status.Phase == corev1.PodFailed || status.Phase == corev1.PodSucceeded) && pod.Spec.RestartPolicy != corev1.RestartPolicyNever && pod.Spec.RestartPolicy != corev1.RestartPolicyOnFailure:
		// It never ends by itself. That it may count as succeeded says only that its
		// containers handled the signal to end when they were stopped.
		return Stopped
	case sidecar(pod, c.Name) && !mainRuns(pod, evidence.Running):
		return Expected // stopped when the others had ended
	case evidence.FailedProbes[Key{c.PodUID, c.Name}], updated(pod, c):
		return Expected
	default:
		return Unclear
	}
}

// Unexplained returns how many containers the kubelet has stopped beyond those that may
// have been stopped for a reason: the expected ones of all that were seen since the
// change, whether they still run or not. stops is the kubelet's own count.
func Unexplained(stops int, seen []cri.Container, evidence Evidence) int {
	for _, c := range seen {
		if Judge(c, evidence) == Expected {
			stops--
		}
	}
	return max(stops, 0)
}

// Annotate adds to containers what their pods say about them.
func Annotate(list []cri.Container, pods []corev1.Pod) []cri.Container {
	list = slices.Clone(list)
	for i := range list {
		pod := find(list[i].PodUID, pods)
		if pod == nil {
			continue
		}
		list[i].Generation = pod.Generation
		if source := pod.Annotations[sourceAnnotation]; source != "" && source != "api" {
			list[i].Static = true
		}
		if spec := specOf(pod, list[i].Name); spec != nil {
			list[i].Image = spec.Image
		}
	}
	return list
}

// Foreign explains why the containers of a runtime are not those of the kubelet; "" when
// they are. With another runtime than the kubelet's, no container would ever be missing.
func Foreign(running []cri.Container, pods []corev1.Pod) string {
	shown := make(map[types.UID]bool, len(running))
	for _, c := range running {
		shown[c.PodUID] = true
	}
	run := 0
	for i := range pods {
		if !slices.ContainsFunc(pods[i].Status.ContainerStatuses, func(s corev1.ContainerStatus) bool { return s.State.Running != nil }) {
			continue
		}
		run++
		if shown[pods[i].UID] || shown[types.UID(pods[i].Annotations[mirrorAnnotation])] {
			return ""
		}
	}
	if run == 0 {
		return ""
	}
	return fmt.Sprintf("it shows %d containers, and none of the %d pods that run by the word of the kubelet", len(running), run)
}

// overItsOwnLimit reports whether the message of an eviction reports that the pod has used
// more than its author allows it, and not that the node is short of something.
func overItsOwnLimit(message string) bool {
	return strings.Contains(message, "exceeds the total limit of containers") ||
		strings.Contains(message, "exceeded its local ephemeral storage limit") ||
		strings.Contains(message, "Usage of EmptyDir volume") && strings.Contains(message, "exceeds the limit")
}

// updated reports whether the author of the pod has changed the container in a way that
// restarts it: another image, or resources that are not resized in place.
func updated(pod *corev1.Pod, c cri.Container) bool {
	spec := specOf(pod, c.Name)
	if spec == nil || c.Image == "" || pod.Generation == c.Generation {
		return false
	}
	return spec.Image != c.Image || slices.ContainsFunc(spec.ResizePolicy, func(p corev1.ContainerResizePolicy) bool { return p.RestartPolicy == corev1.RestartContainer })
}

func specOf(pod *corev1.Pod, name string) *corev1.Container {
	all := slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers)
	if i := slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

// mainRuns reports whether a container of the pod runs that is no init container.
func mainRuns(pod *corev1.Pod, running []cri.Container) bool {
	return slices.ContainsFunc(running, func(c cri.Container) bool {
		return find(c.PodUID, []corev1.Pod{*pod}) != nil && !sidecar(pod, c.Name)
	})
}

// sidecar reports whether a container is one that runs next to the others of its pod.
func sidecar(pod *corev1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
}

// mirrorAnnotation on a mirror pod has the UID that the kubelet gave its static pod.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// sourceAnnotation on a pod of the kubelet says where it has it from.
const sourceAnnotation = "kubernetes.io/config.source"

func find(uid types.UID, pods []corev1.Pod) *corev1.Pod {
	for i := range pods {
		if pods[i].UID == uid || pods[i].Annotations[mirrorAnnotation] == string(uid) {
			return &pods[i]
		}
	}
	return nil
}
