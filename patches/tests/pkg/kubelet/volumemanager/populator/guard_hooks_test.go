package populator

import (
	"errors"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	core "k8s.io/client-go/testing"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/pkg/volume/util"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// The API server refuses a kubelet the claim, or the volume, of
// a pod that is gone.
func TestGuardClaimOfVanishedPod(t *testing.T) {
	for _, refused := range []string{"persistentvolumeclaims", "persistentvolumes"} {
		for _, vanished := range []bool{true, false} {
			t.Run(map[bool]string{true: "vanished, no ", false: "present, no "}[vanished]+refused, func(t *testing.T) {
				ctx := ktesting.Init(t)
				guarded := guardtest.Install(t)
				mode := v1.PersistentVolumeFilesystem
				pv := &v1.PersistentVolume{
					ObjectMeta: metav1.ObjectMeta{Name: "volume"},
					Spec: v1.PersistentVolumeSpec{
						ClaimRef:   &v1.ObjectReference{Namespace: "ns", Name: "claim", UID: "claim-uid"},
						VolumeMode: &mode,
					},
				}
				pvc := &v1.PersistentVolumeClaim{
					ObjectMeta: metav1.ObjectMeta{Name: "claim", UID: "claim-uid"},
					Spec:       v1.PersistentVolumeClaimSpec{VolumeName: pv.Name},
					Status:     v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound},
				}
				dswp, pods, dsw, _, _ := createDswpWithVolume(t, pv, pvc)
				pod := createPodWithVolume("pod", "volume", "claim", []v1.Container{{
					Name: "container", VolumeMounts: []v1.VolumeMount{{Name: "volume", MountPath: "/mnt"}},
				}})
				guardtest.Protect(pod)
				guarded.Run(pod)
				guard.ObserveSource("api", []*v1.Pod{pod})
				pods.AddPod(pod)
				dswp.findAndAddNewPods(ctx)
				name := util.GetUniquePodName(pod)
				if !dsw.VolumeExistsWithSpecName(name, "volume") {
					t.Fatal("the volume is not desired before the fault")
				}

				if vanished {
					guard.ObserveSource("api", nil)
					if !guard.HoldVanished("api", pod) {
						t.Fatal("the guard does not hold the pod")
					}
				}
				dswp.kubeClient.(*fake.Clientset).PrependReactor("get", refused, func(core.Action) (bool, runtime.Object, error) {
					return true, nil, errors.New("no relationship found between node and this object")
				})
				mounts, devices, _ := util.GetPodVolumeNames(pod, false)
				_, spec, _, err := dswp.createVolumeSpec(ctx, pod.Spec.Volumes[0], pod, mounts, devices)

				switch {
				case vanished && err != nil:
					t.Errorf("the saved claim is not used: %v", err)
				case vanished && spec.PersistentVolume.Name != pv.Name:
					t.Errorf("got volume %q, want %q", spec.PersistentVolume.Name, pv.Name)
				case !vanished && err == nil:
					t.Error("the API is not believed about a pod that it has")
				}
			})
		}
	}
}
