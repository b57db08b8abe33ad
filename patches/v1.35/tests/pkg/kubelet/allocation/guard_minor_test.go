package allocation

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func (h *recordingAdmitHandler) Admit(attrs *lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	return h.judge(attrs)
}

func (h *countingAdmitHandler) Admit(attrs *lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	return h.judge(attrs)
}

func addPod(_ *testing.T, m Manager, active []*v1.Pod, pod *v1.Pod) (admitted bool, reason, message string) {
	return m.AddPod(active, pod)
}

func setAllocated(_ *testing.T, m Manager, pod *v1.Pod) error {
	return m.SetAllocatedResources(pod)
}

func admitResize(_ *testing.T, m *manager, pod *v1.Pod) (admitted bool, reason, message string) {
	return m.canAdmitPod(nil, pod)
}
