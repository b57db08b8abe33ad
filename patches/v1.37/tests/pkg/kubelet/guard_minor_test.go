package kubelet

import (
	"context"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func newGuardTestWorkers(logger klog.Logger) (guardTestWorkers, *containertest.FakeRuntime, map[types.UID][]syncPodRecord) {
	workers, runtime, processed := createPodWorkers(logger)
	return guardTestWorkers{workers}, runtime, processed
}

// completeAtOnce makes the pods complete with their first sync.
func (w guardTestWorkers) completeAtOnce() {
	syncers := newPodSyncerFuncs(w.podSyncer)
	syncers.syncPod = func(context.Context, kubetypes.SyncPodType, *v1.Pod, *v1.Pod, *kubecontainer.PodStatus) (bool, func(), error) {
		return true, nil, nil
	}
	w.podSyncer = &syncers
}

func (w guardTestWorkers) killPodNow(ctx context.Context) eviction.KillPodFunc {
	return killPodNow(ctx, w.podWorkers, &record.FakeRecorder{})
}

func setGuardTestMachine(kubelet *Kubelet) {
	kubelet.setCachedMachineInfo(&cadvisorapi.MachineInfo{NumCores: 2, MemoryCapacity: 1 << 30})
}

func allPodsFromCgroups(cgroups *cm.FakePodContainerManager) (map[types.UID]cm.CgroupName, error) {
	return cgroups.GetAllPodsFromCgroups(klog.Background())
}
