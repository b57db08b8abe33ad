package operationexecutor

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/pkg/volume"
	volumetesting "k8s.io/kubernetes/pkg/volume/testing"
)

// attachedVolumes notes what is marked as attached. Only what the operation needs
// is there.
type attachedVolumes struct {
	ActualStateOfWorldAttacherUpdater
	attached bool
	size     resource.Quantity
}

func (a *attachedVolumes) GetClaimSize(v1.UniqueVolumeName) resource.Quantity {
	return resource.Quantity{}
}

func (a *attachedVolumes) MarkVolumeAsAttached(klog.Logger, v1.UniqueVolumeName, *volume.Spec, types.NodeName, string) error {
	a.attached = true
	return nil
}

func (a *attachedVolumes) InitializeClaimSize(_ klog.Logger, _ v1.UniqueVolumeName, size resource.Quantity) {
	a.size = size
}

// volumeOfPod returns a volume behind the claim of a protected pod, as an operation
// gets it, and the claim. The pod is vanished or present.
func volumeOfPod(t *testing.T, vanished bool) (VolumeToMount, *v1.PersistentVolumeClaim) {
	t.Helper()
	guarded := guardtest.Install(t)
	pvc, pv := getTestPVC("volume", "1G", "1G", "", nil), getTestPV("volume", "1G")
	pv.Spec.ClaimRef = &v1.ObjectReference{Namespace: pvc.Namespace, Name: pvc.Name, UID: pvc.UID}
	pod := getTestPod("pod", pvc.Name)
	guardtest.Protect(pod)
	guarded.Run(pod)
	guard.ObserveSource("api", []*v1.Pod{pod})
	guard.SaveVolume(pod, pvc, pv)
	if vanished {
		guard.ObserveSource("api", nil)
		if !guard.HoldVanished("api", pod) {
			t.Fatal("the guard does not hold the pod")
		}
	}
	return VolumeToMount{Pod: pod, VolumeName: "volume", VolumeSpec: volume.NewSpecFromPersistentVolume(pv, false)}, pvc
}

// generatorWithoutClaims is one whose API server serves no claim.
func generatorWithoutClaims(t *testing.T) *operationGenerator {
	plugins, _ := volumetesting.GetTestKubeletVolumePluginMgr(t)
	return getTestOperationGenerator(plugins).(*operationGenerator)
}

// After a restart, the size of a claim is read before its volume is taken for
// attached. The API server does not serve it for a pod that is gone.
func TestGuardSizeOfVanishedPodsClaim(t *testing.T) {
	for _, vanished := range []bool{true, false} {
		t.Run(map[bool]string{true: "vanished", false: "present"}[vanished], func(t *testing.T) {
			mount, pvc := volumeOfPod(t, vanished)
			state := &attachedVolumes{}
			operations, err := generatorWithoutClaims(t).GenerateVerifyControllerAttachedVolumeFunc(klog.Background(), mount, "node", state)
			if err != nil {
				t.Fatal(err)
			}

			_, err = operations.Run()

			if vanished && err != nil {
				t.Errorf("the saved claim is not used: %v", err)
			}
			if state.attached != vanished {
				t.Errorf("attached: %v, want %v", state.attached, vanished)
			}
			if want := pvc.Status.Capacity.Storage(); vanished && state.size.Cmp(*want) != 0 {
				t.Errorf("size %s, want that of the claim, %s", &state.size, want)
			}
		})
	}
}

// It is read again with every mount of a volume that a node can expand.
func TestGuardMountOfVanishedPodsExpandableVolume(t *testing.T) {
	for _, vanished := range []bool{true, false} {
		t.Run(map[bool]string{true: "vanished", false: "present"}[vanished], func(t *testing.T) {
			mount, pvc := volumeOfPod(t, vanished)
			size := *pvc.Status.Capacity.Storage()
			_, err := generatorWithoutClaims(t).expandVolumeDuringMount(mount, newFakeActualStateOfWorld(), volume.NodeResizeOptions{NewSize: size, OldSize: size})
			if vanished && err != nil {
				t.Errorf("the saved claim is not used: %v", err)
			}
			if !vanished && err == nil {
				t.Error("the API is not queried about a pod that it has")
			}
		})
	}
}
