package preemption

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func admitCritical(ctx context.Context, handler *CriticalPodAdmissionHandler, pod *v1.Pod, reasons []lifecycle.PredicateFailureReason) ([]lifecycle.PredicateFailureReason, error) {
	return handler.HandleAdmissionFailure(ctx, pod, reasons)
}
