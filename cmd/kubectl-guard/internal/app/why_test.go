package app

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/pkg/kubelet/guard"
)

func TestWhy(t *testing.T) {
	t.Parallel()
	event := func(n int, before time.Duration, reason, message string) corev1.Event {
		return corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: "web", Name: reason},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "web", Name: "pod", UID: uidOf(n)},
			Reason:         reason, Message: message, Count: 1, Source: corev1.EventSource{Component: "kubelet", Host: "worker-1"},
			LastTimestamp: metav1.NewTime(now.Add(-before)),
		}
	}
	for name, test := range map[string]struct {
		pod     string
		prepare func(*cluster)
	}{
		"why-protected":     {pod: "front-1"},
		"why-held-gone":     {pod: "cache"},
		"why-held-replaced": {pod: "pod/db-0"},
		"why-ended": {pod: "past", prepare: func(c *cluster) {
			c.events = []corev1.Event{
				event(9, time.Minute, guard.EventHoldReleased, "No longer held (PodVanished) after 2m: its deletion was requested (PodDeletionRecord)."),
				event(9, 3*time.Minute, guard.EventKillRefused, "The kubelet did not stop this pod (PodVanished): its object is gone from the API."),
			}
			c.records[string(uidOf(9))] = []byte(`{"apiVersion":"kubelet-guard.io/v1alpha1","kind":"PodDeletion","metadata":{"name":"` + string(uidOf(9)) +
				`","creationTimestamp":"2026-11-22T11:58:00Z"},"spec":{"namespace":"web","name":"past","requestedBy":"ada","reason":"moved away"}}`)
		}},
		"why-unlabelled": {pod: "plain", prepare: func(c *cluster) { c.addPod("web", "plain", 8, "worker-1") }},
		"why-unguarded": {pod: "plain", prepare: func(c *cluster) {
			c.addPod("web", "plain", 8, "worker-3", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
		}},
		"why-no-answer": {pod: "plain", prepare: func(c *cluster) {
			c.addPod("web", "plain", 8, "worker-4", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
		}},
		"why-no-definition": {pod: "front-1", prepare: func(c *cluster) { c.records = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := everyState(t)
			if test.prepare != nil {
				test.prepare(c)
			}
			r := c.mustRun("", "why", test.pod)
			golden(t, name+".txt", r.out, false)
		})
	}
}

func TestWhyOfAPodThatNobodyKnows(t *testing.T) {
	t.Parallel()
	r := everyState(t).run("", "why", "nobody", "--node", "worker-1")
	require.EqualError(t, r.err, "pod web/nobody: neither the API, nor a node that responds, nor an event of the guard knows it")
	require.Empty(t, r.out)
}
