package kuberuntime

import (
	"context"
	"testing"

	cadvisorapi "github.com/google/cadvisor/info/v1"
	noopoteltrace "go.opentelemetry.io/otel/trace/noop"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	internalapi "k8s.io/cri-api/pkg/apis"
	apitest "k8s.io/cri-api/pkg/apis/testing"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func newGuardTestManager(ctx context.Context, runtime internalapi.RuntimeService) (*kubeGenericRuntimeManager, error) {
	return newFakeKubeRuntimeManager(ctx, runtime, apitest.NewFakeImageService(), &cadvisorapi.MachineInfo{MemoryCapacity: 1 << 34},
		&containertest.FakeOS{}, &containertest.FakeRuntimeHelper{}, noopoteltrace.NewTracerProvider().Tracer(""))
}

func setGuardTestPod(t *testing.T, _ ktesting.TContext, m *kubeGenericRuntimeManager, runtime *apitest.FakeRuntimeService, pod *v1.Pod) (*apitest.FakePodSandbox, []*apitest.FakeContainer) {
	return makeAndSetFakePod(t, m, runtime, pod)
}

func getPodStatus(ctx context.Context, m *kubeGenericRuntimeManager, pod *v1.Pod) (*kubecontainer.PodStatus, error) {
	return m.GetPodStatus(ctx, pod.UID, pod.Name, pod.Namespace)
}

func setActuated(_ context.Context, m *kubeGenericRuntimeManager, uid types.UID, container string, resources v1.ResourceRequirements) error {
	return m.actuatedState.SetContainerResources(uid, container, resources)
}

func removeContainer(ctx context.Context, m *kubeGenericRuntimeManager, id string) error {
	return m.removeContainer(ctx, id)
}
