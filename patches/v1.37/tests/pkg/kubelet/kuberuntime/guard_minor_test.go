package kuberuntime

import (
	"context"
	"testing"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	noopoteltrace "go.opentelemetry.io/otel/trace/noop"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	internalapi "k8s.io/cri-api/pkg/apis"
	apitest "k8s.io/cri-api/pkg/apis/testing"
	"k8s.io/klog/v2"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func newGuardTestManager(ctx context.Context, runtime internalapi.RuntimeService) (*kubeGenericRuntimeManager, error) {
	return newFakeKubeRuntimeManager(ctx, runtime, apitest.NewFakeImageService(), &cadvisorapi.MachineInfo{MemoryCapacity: 1 << 34},
		&containertest.FakeOS{}, &containertest.FakeRuntimeHelper{}, noopoteltrace.NewTracerProvider().Tracer(""), &record.FakeRecorder{})
}

func setGuardTestPod(_ *testing.T, ctx ktesting.TContext, m *kubeGenericRuntimeManager, runtime *apitest.FakeRuntimeService, pod *v1.Pod) (*apitest.FakePodSandbox, []*apitest.FakeContainer) {
	return makeAndSetFakePod(ctx, m, runtime, pod)
}

func getPodStatus(ctx context.Context, m *kubeGenericRuntimeManager, pod *v1.Pod) (*kubecontainer.PodStatus, error) {
	running, err := m.GetPod(ctx, pod.UID)
	if err != nil {
		return nil, err
	}
	return m.GetPodStatus(ctx, running)
}

func setActuated(ctx context.Context, m *kubeGenericRuntimeManager, uid types.UID, container string, resources v1.ResourceRequirements) error {
	return m.actuatedState.SetContainerResources(klog.FromContext(ctx), uid, container, resources)
}

func removeContainer(ctx context.Context, m *kubeGenericRuntimeManager, id string) error {
	return m.removeContainer(ctx, id, false)
}
