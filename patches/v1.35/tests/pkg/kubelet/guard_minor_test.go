package kubelet

import (
	"context"

	cadvisorapi "github.com/google/cadvisor/info/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
)

// What the tests of the hooks need of this minor version; see patches/README.md.

func newGuardTestWorkers(_ klog.Logger) (guardTestWorkers, *containertest.FakeRuntime, map[types.UID][]syncPodRecord) {
	workers, runtime, processed := createPodWorkers()
	return guardTestWorkers{workers}, runtime, processed
}

// completeAtOnce makes the pods complete with their first sync.
func (w guardTestWorkers) completeAtOnce() {
	syncers := newPodSyncerFuncs(w.podSyncer)
	syncers.syncPod = func(context.Context, kubetypes.SyncPodType, *v1.Pod, *v1.Pod, *kubecontainer.PodStatus) (bool, error) {
		return true, nil
	}
	w.podSyncer = &syncers
}

func (w guardTestWorkers) killPodNow(_ context.Context) eviction.KillPodFunc {
	return killPodNow(w.podWorkers, &record.FakeRecorder{})
}

func setGuardTestMachine(kubelet *Kubelet) {
	kubelet.setCachedMachineInfo(&cadvisorapi.MachineInfo{NumCores: 2, MemoryCapacity: 1 << 30})
}

func allPodsFromCgroups(cgroups *cm.FakePodContainerManager) (map[types.UID]cm.CgroupName, error) {
	return cgroups.GetAllPodsFromCgroups()
}

func (w guardTestWorkers) UpdatePod(_ context.Context, options UpdatePodOptions) {
	w.podWorkers.UpdatePod(options)
}

func (w guardTestWorkers) SyncKnownPods(_ klog.Logger, desired []*v1.Pod) map[types.UID]PodWorkerSync {
	return w.podWorkers.SyncKnownPods(desired)
}

func (k guardTestKubelet) Run(_ context.Context, updates <-chan kubetypes.PodUpdate) {
	k.Kubelet.Run(updates)
}

func (k guardTestKubelet) SyncPod(ctx context.Context, updateType kubetypes.SyncPodType, pod, mirrorPod *v1.Pod, status *kubecontainer.PodStatus) (isTerminal bool, postSync func(), err error) {
	isTerminal, err = k.Kubelet.SyncPod(ctx, updateType, pod, mirrorPod, status)
	return isTerminal, nil, err
}

func (k guardTestKubelet) HandlePodAdditions(_ context.Context, pods []*v1.Pod) {
	k.Kubelet.HandlePodAdditions(pods)
}

func (k guardTestKubelet) HandlePodUpdates(_ context.Context, pods []*v1.Pod) {
	k.Kubelet.HandlePodUpdates(pods)
}

func (k guardTestKubelet) generateAPIPodStatus(_ context.Context, pod *v1.Pod, status *kubecontainer.PodStatus, isTerminal bool) v1.PodStatus {
	return k.Kubelet.generateAPIPodStatus(pod, status, isTerminal)
}

func (k guardTestKubelet) cleanupOrphanedPodCgroups(_ klog.Logger, pcm cm.PodContainerManager, cgroupPods map[types.UID]cm.CgroupName, running map[types.UID]sets.Empty) {
	k.Kubelet.cleanupOrphanedPodCgroups(pcm, cgroupPods, running)
}

func (k guardTestKubelet) cleanupOrphanedPodDirs(_ klog.Logger, pods []*v1.Pod, running []*kubecontainer.Pod) error {
	return k.Kubelet.cleanupOrphanedPodDirs(pods, running)
}
