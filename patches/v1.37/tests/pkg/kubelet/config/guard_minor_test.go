package config

import "k8s.io/client-go/tools/record"

// What the tests of the hooks need of this minor version; see patches/README.md.

func newGuardTestConfig(recorder record.EventRecorderLogger) *PodConfig {
	return NewPodConfig(recorder, &mockPodStartupSLIObserver{})
}
