package reconciler

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/pkg/volume"
	volumetesting "k8s.io/kubernetes/pkg/volume/testing"
	"k8s.io/kubernetes/pkg/volume/util"
	"k8s.io/kubernetes/pkg/volume/util/operationexecutor"
	"k8s.io/kubernetes/pkg/volume/util/types"
)

// newGuardTestPod returns a pod with one volume, as the guard has seen it.
func newGuardTestPod(node *guardtest.Node, kind guardtest.Kind) *v1.Pod {
	pod := getInlineFakePod("pod1", "pod1uid", "volume-name", "volume-name")
	pod.Spec.Containers = []v1.Container{{Name: "server"}}
	kind.Change(pod)
	node.Run(pod)
	node.Appear(pod)
	if pod.DeletionTimestamp != nil {
		guard.RefuseTermination(pod, false, false, false)
	}
	return pod
}

// mountGuardTestVolume lets the reconciler mount the volume of the pod.
func mountGuardTestVolume(t *testing.T, rc *reconciler, plugin *volumetesting.FakeVolumePlugin, pod *v1.Pod) v1.UniqueVolumeName {
	t.Helper()
	logger, _ := ktesting.NewTestContext(t)
	spec := &volume.Spec{Volume: &pod.Spec.Volumes[0]}
	name, err := rc.desiredStateOfWorld.AddPodToVolume(logger, util.GetUniquePodName(pod), pod, spec, spec.Name(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	rc.actualStateOfWorld.MarkVolumeAsAttached(logger, name, spec, nodeName, "fake/path")
	rc.mountOrAttachVolumes(logger)
	waitForMount(t, plugin, name, rc.actualStateOfWorld)
	// The reconciler leaves a volume alone while the mount is being finished.
	if err := retryWithExponentialBackOff(testOperationBackOffDuration, func() (bool, error) {
		return !rc.operationExecutor.IsOperationPending(name, util.GetUniquePodName(pod), ""), nil
	}); err != nil {
		t.Fatalf("waited for the mount of %s to be finished: %v", name, err)
	}
	return name
}

func isMounted(rc *reconciler) bool {
	return len(rc.actualStateOfWorld.GetAllMountedVolumes()) == 1
}

// After a restart, a claim that cannot be read is missing from the desired state.
func TestGuardUnmountOfVolumeThatIsNotDesired(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			instance, plugin := getReconciler(t.TempDir(), t, nil, nil)
			rc := instance.(*reconciler)
			pod := newGuardTestPod(node, kind)
			name := mountGuardTestVolume(t, rc, plugin, pod)
			rc.desiredStateOfWorld.DeletePodFromVolume(util.GetUniquePodName(pod), name)

			rc.unmountVolumes(logger)

			if kind.Kept {
				if pending := rc.operationExecutor.IsOperationPending(name, util.GetUniquePodName(pod), ""); pending || !isMounted(rc) {
					t.Errorf("unmount started: %v, mounted: %v", pending, isMounted(rc))
				}
				node.ExpectHolds(t, pod.UID, guard.VolumeUnmount)
				return
			}
			awaitUnmount(t, rc, pod)
			node.ExpectHolds(t, pod.UID)
		})
	}
}

// A volume is to be unmounted and mounted again when its pods request another SELinux
// context. Until then they have an error, upon which no container is started.
func TestGuardVolumeWithAnotherSELinuxContext(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			instance, _ := getReconciler(t.TempDir(), t, nil, nil)
			rc := instance.(*reconciler)
			pod := newGuardTestPod(node, kind)
			spec := &volume.Spec{Volume: &pod.Spec.Volumes[0]}
			podName := util.GetUniquePodName(pod)
			name, err := rc.desiredStateOfWorld.AddPodToVolume(logger, podName, pod, spec, spec.Name(), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := rc.actualStateOfWorld.MarkVolumeAsAttached(logger, name, spec, nodeName, "fake/path"); err != nil {
				t.Fatal(err)
			}
			if err := rc.actualStateOfWorld.MarkVolumeAsMounted(operationexecutor.MarkVolumeOpts{
				PodName: podName, PodUID: pod.UID, VolumeName: name, VolumeSpec: spec,
				SELinuxMountContext: "system_u:object_r:container_file_t:s0:c1,c2",
				VolumeMountState:    operationexecutor.VolumeMounted,
			}); err != nil {
				t.Fatal(err)
			}

			rc.mountOrAttachVolumes(logger)

			if errs := rc.desiredStateOfWorld.PopPodErrors(podName); (len(errs) == 0) != kind.Kept {
				t.Errorf("errors %v of the pod, want none: %v", errs, kind.Kept)
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.VolumeUnmount)
			} else {
				node.ExpectHolds(t, pod.UID)
			}
		})
	}
}

func TestGuardUnmountAfterTheContainersExited(t *testing.T) {
	logger, _ := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	instance, plugin := getReconciler(t.TempDir(), t, nil, nil)
	rc := instance.(*reconciler)
	pod := newGuardTestPod(node, guardtest.Kinds()[0])
	name := mountGuardTestVolume(t, rc, plugin, pod)
	rc.desiredStateOfWorld.DeletePodFromVolume(util.GetUniquePodName(pod), name)
	node.Exit()

	rc.unmountVolumes(logger)

	awaitUnmount(t, rc, pod)
}

func TestGuardVolumeThatIsDesiredIsNoAttempt(t *testing.T) {
	logger, _ := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	instance, plugin := getReconciler(t.TempDir(), t, nil, nil)
	rc := instance.(*reconciler)
	pod := newGuardTestPod(node, guardtest.Kinds()[0])
	mountGuardTestVolume(t, rc, plugin, pod)

	rc.unmountVolumes(logger)

	node.ExpectHolds(t, pod.UID)
}

func failedReconstruction() []podVolume {
	return []podVolume{{
		podName:        types.UniquePodName("pod1uid"),
		volumeSpecName: "volume-name",
		pluginName:     "fake-plugin",
		volumeMode:     v1.PersistentVolumeFilesystem,
	}}
}

func TestGuardCleanupOfVolumeThatCouldNotBeReconstructed(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			instance, plugin := getReconciler(t.TempDir(), t, nil, nil)
			rc := instance.(*reconciler)
			rc.volumesFailedReconstruction = failedReconstruction()
			pod := newGuardTestPod(node, kind)

			rc.cleanOrphanVolumes(logger)

			if kind.Kept {
				if pending := rc.operationExecutor.IsOperationPending("", types.UniquePodName("pod1uid"), ""); pending {
					t.Error("an unmount was started")
				}
				node.ExpectHolds(t, pod.UID, guard.VolumeUnmount)
				return
			}
			awaitTearDown(t, plugin)
			node.ExpectHolds(t, pod.UID)
		})
	}
}

// The clean-up is done once after a start. A volume that was kept for a held pod
// has to be cleaned when that pod ends, or its directory stays for ever.
func TestGuardCleanupComesAfterTheHold(t *testing.T) {
	logger, _ := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	instance, plugin := getReconciler(t.TempDir(), t, nil, nil)
	rc := instance.(*reconciler)
	rc.volumesFailedReconstruction = failedReconstruction()
	pod := newGuardTestPod(node, guardtest.Kinds()[0])
	rc.cleanOrphanVolumes(logger)
	node.ExpectHolds(t, pod.UID, guard.VolumeUnmount)

	deleted := pod.DeepCopy()
	guardtest.Delete(deleted)
	guard.RefuseTermination(deleted, false, false, false)
	rc.cleanOrphanVolumes(logger)

	awaitTearDown(t, plugin)
}

// Upstream does not clean a volume that a pod needs, so that is no attempt.
func TestGuardFailedReconstructionOfDesiredVolumeIsNoAttempt(t *testing.T) {
	logger, _ := ktesting.NewTestContext(t)
	node := guardtest.Install(t)
	instance, _ := getReconciler(t.TempDir(), t, nil, nil)
	rc := instance.(*reconciler)
	rc.volumesFailedReconstruction = failedReconstruction()
	pod := newGuardTestPod(node, guardtest.Kinds()[0])
	spec := &volume.Spec{Volume: &pod.Spec.Volumes[0]}
	if _, err := rc.desiredStateOfWorld.AddPodToVolume(logger, util.GetUniquePodName(pod), pod, spec, spec.Name(), "", nil); err != nil {
		t.Fatal(err)
	}

	rc.cleanOrphanVolumes(logger)

	node.ExpectHolds(t, pod.UID)
}

func awaitUnmount(t *testing.T, rc *reconciler, pod *v1.Pod) {
	t.Helper()
	if err := retryWithExponentialBackOff(testOperationBackOffDuration, func() (bool, error) {
		return !rc.actualStateOfWorld.PodHasMountedVolumes(util.GetUniquePodName(pod)), nil
	}); err != nil {
		t.Errorf("waited for the volumes of pod %s to be unmounted: %v", pod.Name, err)
	}
}

func awaitTearDown(t *testing.T, plugin *volumetesting.FakeVolumePlugin) {
	t.Helper()
	var last error
	if err := retryWithExponentialBackOff(testOperationBackOffDuration, func() (bool, error) {
		last = verifyTearDownCalls(plugin, 1)
		return last == nil, nil
	}); err != nil {
		t.Errorf("waited for the volume to be unmounted: %v: %v", err, last)
	}
}
