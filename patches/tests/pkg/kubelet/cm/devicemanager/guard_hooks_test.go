package devicemanager

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
)

// The devices of a pod that only the runtime knows are not given to the next pod.
func TestGuardDevicesOfARunningOrphan(t *testing.T) {
	const resourceName = "example.com/card"
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			node := guardtest.Install(t)
			pod := guardtest.NewPod()
			node.RunOrphan(kind, pod)
			m := &ManagerImpl{
				podDevices:       newPodDevices(),
				allocatedDevices: map[string]sets.Set[string]{},
				activePods:       func() []*v1.Pod { return nil },
				sourcesReady:     &sourcesReadyStub{},
			}
			m.podDevices.insert(string(pod.UID), "server", resourceName, constructDevices([]string{"card-1"}), &pluginapi.ContainerAllocateResponse{})
			// One that ended, and is not protected.
			m.podDevices.insert("ended-uid", "server", resourceName, constructDevices([]string{"card-2"}), &pluginapi.ContainerAllocateResponse{})
			m.allocatedDevices = m.podDevices.devices()

			updateAllocatedDevices(t, m)

			if got := m.allocatedDevices[resourceName].Has("card-1"); got != kind.Kept {
				t.Errorf("the device of the orphan is taken: %v, want %v", got, kind.Kept)
			}
			if m.allocatedDevices[resourceName].Has("card-2") {
				t.Error("the device of a pod that ended is not free")
			}
			if !kind.Kept {
				node.ExpectHolds(t, pod.UID)
				return
			}
			node.ExpectHolds(t, pod.UID, guard.ResourcesReclaimed)

			node.AskDeletion(pod)
			updateAllocatedDevices(t, m)
			if m.allocatedDevices[resourceName].Has("card-1") {
				t.Error("the device is not free although the deletion is explicit")
			}
			node.ExpectHolds(t, pod.UID)
		})
	}
}
