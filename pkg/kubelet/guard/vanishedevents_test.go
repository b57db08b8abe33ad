package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
)

func TestEventsOfTheKubeletAboutVanishedPods(t *testing.T) {
	f := newFixture(t)
	vanished, other := f.vanished("vanished"), protectedPod("other")
	inner := record.NewFakeRecorder(1000)
	recorder := f.EventRecorder(inner)
	reference := &v1.ObjectReference{Kind: "Pod", UID: vanished.UID}
	for range 100 {
		recorder.Event(vanished, v1.EventTypeWarning, "FailedMount", "m")
		recorder.Eventf(reference, v1.EventTypeWarning, "FailedMount", "%d", 1)
		recorder.AnnotatedEventf(vanished, nil, v1.EventTypeWarning, "FailedMount", "m")
		recorder.WithLogger(klog.Background()).Event(vanished, v1.EventTypeWarning, "FailedMount", "m")
	}
	assert.Len(t, inner.Events, vanishedEventBurst, "all ways have one limit")
	for range 100 {
		recorder.Event(other, v1.EventTypeWarning, "FailedMount", "m")
		recorder.Eventf(&v1.ObjectReference{Kind: "Node"}, v1.EventTypeNormal, "NodeReady", "m")
	}
	assert.Len(t, inner.Events, vanishedEventBurst+200, "nothing else is limited")
	f.clock.Step(time.Minute)
	for range 100 {
		recorder.Event(vanished, v1.EventTypeWarning, "FailedMount", "m")
	}
	assert.Len(t, inner.Events, vanishedEventBurst+200+6)
}

// The kubelet of Kubernetes 1.35 has the narrower interface, and in its tests a recorder
// with no more than that.
func TestEventsOfARecorderWithoutLogger(t *testing.T) {
	type narrow struct{ record.EventRecorder }
	for _, mode := range []Mode{Enforce, Off} {
		f := newFixture(t, inMode(mode))
		inner := record.NewFakeRecorder(10)
		recorder := f.EventRecorder(narrow{inner})
		recorder.WithLogger(klog.Background()).Event(protectedPod("other"), v1.EventTypeWarning, "FailedMount", "m")
		assert.Len(t, inner.Events, 1, mode)
	}
}
