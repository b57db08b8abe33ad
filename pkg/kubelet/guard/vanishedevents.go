package guard

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
)

const (
	// vanishedEventRate is how many of the kubelet's own events about vanished pods are
	// written per second and node, after vanishedEventBurst of them.
	vanishedEventRate  = 0.1
	vanishedEventBurst = 10
)

// EventRecorder returns the recorder for the kubelet's own events. The kubelet retries
// what it cannot do for a vanished pod, such as a refresh of its token, and emits an
// event each time: these are limited, for all vanished pods together. They are in the
// kubelet's log. The events of the guard do not pass through it.
//
// The kubelet of Kubernetes 1.35 declares its recorder as the narrower interface.
func (g *Guard) EventRecorder(recorder record.EventRecorder) record.EventRecorderLogger {
	inner, ok := recorder.(record.EventRecorderLogger)
	if !ok && recorder != nil {
		inner = loglessRecorder{recorder}
	}
	if g.config.Mode == Off {
		return inner
	}
	return &limitedRecorder{EventRecorderLogger: inner, guard: g,
		limit: flowcontrol.NewTokenBucketPassiveRateLimiterWithClock(vanishedEventRate, vanishedEventBurst, g.clock)}
}

// loglessRecorder is a recorder that takes no logger.
type loglessRecorder struct{ record.EventRecorder }

// WithLogger implements record.EventRecorderLogger.
func (r loglessRecorder) WithLogger(klog.Logger) record.EventRecorderLogger { return r }

type limitedRecorder struct {
	record.EventRecorderLogger
	guard *Guard
	limit flowcontrol.PassiveRateLimiter
}

// allows reports whether an event about the object is to be written.
func (r *limitedRecorder) allows(object runtime.Object) bool {
	var uid types.UID
	switch about := object.(type) {
	case *v1.Pod:
		uid = about.UID
	case *v1.ObjectReference:
		uid = about.UID
	}
	return uid == "" || !r.guard.Vanished(uid) || r.limit.TryAccept()
}

func (r *limitedRecorder) Event(object runtime.Object, eventType, reason, message string) {
	if r.allows(object) {
		r.EventRecorderLogger.Event(object, eventType, reason, message)
	}
}

func (r *limitedRecorder) Eventf(object runtime.Object, eventType, reason, format string, args ...any) {
	r.Event(object, eventType, reason, fmt.Sprintf(format, args...))
}

func (r *limitedRecorder) AnnotatedEventf(object runtime.Object, annotations map[string]string, eventType, reason, format string, args ...any) {
	if r.allows(object) {
		r.EventRecorderLogger.AnnotatedEventf(object, annotations, eventType, reason, format, args...)
	}
}

// WithLogger implements record.EventRecorderLogger.
func (r *limitedRecorder) WithLogger(logger klog.Logger) record.EventRecorderLogger {
	return &limitedRecorder{EventRecorderLogger: r.EventRecorderLogger.WithLogger(logger), guard: r.guard, limit: r.limit}
}
