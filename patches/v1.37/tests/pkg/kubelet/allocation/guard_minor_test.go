package allocation

import (
	"context"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func (h *recordingAdmitHandler) Admit(_ context.Context, attrs *lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	return h.judge(attrs)
}

func (h *countingAdmitHandler) Admit(_ context.Context, attrs *lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	return h.judge(attrs)
}

func addPod(t *testing.T, m Manager, active []*v1.Pod, pod *v1.Pod) (admitted bool, reason, message string) {
	return m.AddPod(ktesting.Init(t), active, pod)
}

func setAllocated(t *testing.T, m Manager, pod *v1.Pod) error {
	return m.SetAllocatedResources(ktesting.Init(t).Logger(), pod)
}

func admitResize(t *testing.T, m *manager, pod *v1.Pod) (admitted bool, reason, message string) {
	return m.canAdmitPod(ktesting.Init(t), nil, pod, lifecycle.ResizeOperation)
}
