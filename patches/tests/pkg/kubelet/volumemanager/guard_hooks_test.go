package volumemanager

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	kubepod "k8s.io/kubernetes/pkg/kubelet/pod"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/util"
	"k8s.io/kubernetes/pkg/volume/util/operationexecutor"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// After a restart a mount is uncertain until its claim is read. The claim of a pod
// that is gone from the API may never be read, so what is there has to do.
func TestGuardVolumesOfVanishedPod(t *testing.T) {
	for _, vanished := range []bool{true, false} {
		t.Run(map[bool]string{true: "vanished", false: "present"}[vanished], func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			guarded := guardtest.Install(t)
			node, pod, _, _ := createObjects(v1.PersistentVolumeFilesystem, v1.PersistentVolumeFilesystem)
			guardtest.Protect(pod)
			guarded.Run(pod)
			guard.ObserveSource("api", []*v1.Pod{pod})
			vm := newTestVolumeManager(t, t.TempDir(), kubepod.NewBasicPodManager(), fake.NewSimpleClientset(node), node).(*volumeManager)
			spec := &volume.Spec{Volume: &v1.Volume{Name: "data", VolumeSource: v1.VolumeSource{RBD: &v1.RBDVolumeSource{RBDImage: "data"}}}}
			name, err := vm.desiredStateOfWorld.AddPodToVolume(logger, util.GetUniquePodName(pod), pod, spec, spec.Name(), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := vm.actualStateOfWorld.MarkVolumeAsAttached(logger, name, spec, testHostname, ""); err != nil {
				t.Fatal(err)
			}
			if err := vm.actualStateOfWorld.MarkVolumeMountAsUncertain(operationexecutor.MarkVolumeOpts{
				PodName: util.GetUniquePodName(pod), PodUID: pod.UID, VolumeName: name, VolumeSpec: spec,
				VolumeMountState: operationexecutor.VolumeMountUncertain,
			}); err != nil {
				t.Fatal(err)
			}
			if vanished {
				guard.ObserveSource("api", nil)
				if !guard.HoldVanished("api", pod) {
					t.Fatal("the guard does not hold the pod")
				}
			}

			volumes := vm.getMountedVolumes(util.GetUniquePodName(pod))

			if got := len(volumes) == 1; got != vanished {
				t.Errorf("volumes %v, want the uncertain one to count: %v", volumes, vanished)
			}
		})
	}
}

// A mount that was found after a restart is confirmed only when it has the SELinux context
// that the pod requests. That of a pod that runs counts all the same, or none of its
// containers would be started again.
func TestGuardVolumeWithAnotherSELinuxContext(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		for _, desired := range []bool{true, false} {
			t.Run(kind.Name+map[bool]string{true: "/desired", false: "/not desired yet"}[desired], func(t *testing.T) {
				logger, _ := ktesting.NewTestContext(t)
				guarded := guardtest.Install(t)
				node, pod, _, _ := createObjects(v1.PersistentVolumeFilesystem, v1.PersistentVolumeFilesystem)
				kind.Change(pod)
				guarded.Run(pod)
				guarded.Appear(pod)
				if pod.DeletionTimestamp != nil {
					guard.RefuseTermination(pod, false, false, false)
				}
				vm := newTestVolumeManager(t, t.TempDir(), kubepod.NewBasicPodManager(), fake.NewSimpleClientset(node), node).(*volumeManager)
				podName := util.GetUniquePodName(pod)
				spec := &volume.Spec{Volume: &v1.Volume{Name: "data", VolumeSource: v1.VolumeSource{RBD: &v1.RBDVolumeSource{RBDImage: "data"}}}}
				name, err := vm.desiredStateOfWorld.AddPodToVolume(logger, podName, pod, spec, spec.Name(), "", nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := vm.actualStateOfWorld.MarkVolumeAsAttached(logger, name, spec, testHostname, ""); err != nil {
					t.Fatal(err)
				}
				if err := vm.actualStateOfWorld.MarkVolumeMountAsUncertain(operationexecutor.MarkVolumeOpts{
					PodName: podName, PodUID: pod.UID, VolumeName: name, VolumeSpec: spec,
					SELinuxMountContext: "system_u:object_r:container_file_t:s0:c1,c2",
					VolumeMountState:    operationexecutor.VolumeMountUncertain,
				}); err != nil {
					t.Fatal(err)
				}
				if !desired {
					vm.desiredStateOfWorld.DeletePodFromVolume(podName, name)
				}

				volumes := vm.getMountedVolumes(podName)

				if got, want := len(volumes) == 1, kind.Kept && desired; got != want {
					t.Errorf("volumes %v, want the uncertain one to count: %v", volumes, want)
				}
				if kind.Kept && desired {
					guarded.ExpectHolds(t, pod.UID, guard.VolumeUnmount)
				} else {
					guarded.ExpectHolds(t, pod.UID)
				}
			})
		}
	}
}
