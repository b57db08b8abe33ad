package config

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func newGuardTestConfig(recorder record.EventRecorderLogger) *PodConfig {
	return NewPodConfig(PodConfigNotificationIncremental, recorder, &mockPodStartupSLIObserver{})
}

// sourceUpdate is a message of a source.
type sourceUpdate = interface{}

func createSourceUpdate(pods ...*v1.Pod) sourceUpdate {
	return kubetypes.PodUpdate{Pods: pods, Op: kubetypes.SET}
}
