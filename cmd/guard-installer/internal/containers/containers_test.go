package containers

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/cri"
)

func TestMissingTellsRunsApart(t *testing.T) {
	before := []cri.Container{{ID: "1", Name: "a"}, {ID: "2", Name: "b"}}
	now := []cri.Container{{ID: "1", Name: "a"}, {ID: "3", Name: "b"}}
	assert.Equal(t, []cri.Container{{ID: "2", Name: "b"}}, Missing(before, now))
	assert.Empty(t, Missing(before, before))
}

func TestJudge(t *testing.T) {
	since := time.Date(2026, 11, 26, 12, 0, 0, 500, time.UTC)
	c := cri.Container{ID: "1", PodUID: "uid", Name: "web"}
	pod := func(change func(*corev1.Pod)) []corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		if change != nil {
			change(&p)
		}
		return []corev1.Pod{p}
	}
	event := func(reason, message, path string, offset time.Duration) []corev1.Event {
		return []corev1.Event{{
			InvolvedObject: corev1.ObjectReference{UID: "uid", FieldPath: path}, Reason: reason, Message: message,
			LastTimestamp: metav1.NewTime(since.Add(offset).Truncate(time.Second)),
		}}
	}
	held := []types.UID{"uid"}
	succeeded := func(policy corev1.RestartPolicy) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Status.Phase, p.Spec.RestartPolicy = corev1.PodSucceeded, policy }
	}
	for name, test := range map[string]struct {
		evidence Evidence
		want     Verdict
	}{
		"its pod is gone":                            {Evidence{}, Expected},
		"its pod is being deleted":                   {Evidence{Pods: pod(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} })}, Expected},
		"its pod succeeded by itself, maybe":         {Evidence{Pods: pod(succeeded(corev1.RestartPolicyNever))}, Unclear},
		"its pod succeeded when it was stopped":      {Evidence{Pods: pod(succeeded(corev1.RestartPolicyNever)), Events: event("Killing", "Stopping container web", "spec.containers{web}", time.Second)}, Stopped},
		"its pod succeeded and never ends by itself": {Evidence{Pods: pod(succeeded(corev1.RestartPolicyAlways))}, Stopped},
		"a sidecar of a pod that succeeded": {Evidence{Pods: pod(func(p *corev1.Pod) {
			succeeded(corev1.RestartPolicyNever)(p)
			p.Spec.InitContainers = []corev1.Container{{Name: "web"}}
		}), Events: event("Killing", "Stopping container web", "spec.initContainers{web}", time.Second)}, Expected},
		"its pod failed by itself, maybe": {Evidence{Pods: pod(func(p *corev1.Pod) {
			p.Status.Phase, p.Spec.RestartPolicy = corev1.PodFailed, corev1.RestartPolicyNever
		})}, Unclear},
		"its pod was rejected": {Evidence{Pods: pod(func(p *corev1.Pod) {
			p.Status.Phase, p.Status.Reason, p.Spec.RestartPolicy = corev1.PodFailed, "OutOfcpu", corev1.RestartPolicyNever
		})}, Stopped},
		"its pod was over its time":            {Evidence{Pods: pod(func(p *corev1.Pod) { p.Status.Phase, p.Status.Reason = corev1.PodFailed, "DeadlineExceeded" })}, Expected},
		"nothing is told":                      {Evidence{Pods: pod(nil)}, Unclear},
		"the kubelet stopped it":               {Evidence{Pods: pod(nil), Events: event("Killing", "Stopping container web", "spec.containers{web}", time.Second)}, Stopped},
		"in the second of the change":          {Evidence{Pods: pod(nil), Events: event("Killing", "Stopping container web", "spec.containers{web}", 0)}, Stopped},
		"before the change":                    {Evidence{Pods: pod(nil), Events: event("Killing", "Stopping container web", "spec.containers{web}", -2*time.Second)}, Unclear},
		"another container of its pod":         {Evidence{Pods: pod(nil), Events: event("Killing", "Stopping container x", "spec.containers{x}", time.Second)}, Unclear},
		"its liveness probe failed":            {Evidence{Pods: pod(nil), Events: event("Killing", "Container web failed liveness probe, will be restarted", "spec.containers{web}", time.Second)}, Expected},
		"its definition counts as changed":     {Evidence{Pods: pod(nil), Events: event("Killing", "Container web definition changed, will be restarted", "spec.containers{web}", time.Second)}, Stopped},
		"its sandbox changed":                  {Evidence{Pods: pod(nil), Events: event("SandboxChanged", "Pod sandbox changed", "", time.Second)}, Stopped},
		"evicted":                              {Evidence{Pods: pod(nil), Events: event("Evicted", "The node was low on resource", "", time.Second)}, Stopped},
		"held, and its object is gone":         {Evidence{Held: held}, Stopped},
		"held, and released":                   {Evidence{Held: held, Released: true}, Expected},
		"held, and its deletion was asked for": {Evidence{Held: held, Pods: pod(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} })}, Expected},
		"a static pod, by its mirror":          {Evidence{Pods: pod(func(p *corev1.Pod) { p.UID, p.Annotations = "other", map[string]string{mirrorAnnotation: "uid"} })}, Unclear},
		"an event of another pod":              {Evidence{Pods: pod(nil), Events: []corev1.Event{{InvolvedObject: corev1.ObjectReference{UID: "x"}, Reason: "Evicted", LastTimestamp: metav1.NewTime(since.Add(time.Second))}}}, Unclear},
	} {
		t.Run(name, func(t *testing.T) {
			test.evidence.Since = since
			assert.Equal(t, test.want, Judge(c, test.evidence))
		})
	}
}
