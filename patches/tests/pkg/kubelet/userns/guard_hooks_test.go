package userns

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
	pkgfeatures "k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/test/utils/ktesting"
)

// The user IDs of a pod that runs are not given to the next pod.
func TestGuardUserNamespaceOfARunningOrphan(t *testing.T) {
	folders := []struct {
		name string
		// there: the folder of the pod is on the disk.
		there bool
	}{
		{name: "with its folder", there: true},
		{name: "without its folder"},
	}
	for _, folder := range folders {
		for _, kind := range guardtest.Kinds() {
			t.Run(folder.name+"/"+kind.Name, func(t *testing.T) {
				logger, ctx := ktesting.NewTestContext(t)
				featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, pkgfeatures.UserNamespacesSupport, true)
				node := guardtest.Install(t)
				pod := guardtest.NewPod()
				node.RunOrphan(kind, pod)
				pods := &testUserNsPodsManager{podDir: t.TempDir()}
				m, err := MakeUserNsManager(logger, pods, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := m.record(logger, pod.UID, 65536, 65536); err != nil {
					t.Fatal(err)
				}
				if folder.there {
					pods.podList = []types.UID{pod.UID}
				}

				if err := m.CleanupOrphanedPodUsernsAllocations(ctx, nil, nil); err != nil {
					t.Fatal(err)
				}

				if got := m.podAllocated(pod.UID); got != kind.Kept {
					t.Errorf("its user IDs are taken: %v, want %v", got, kind.Kept)
				}
				if !kind.Kept {
					node.ExpectHolds(t, pod.UID)
					return
				}
				node.ExpectHolds(t, pod.UID, guard.ResourcesReclaimed)

				node.AskDeletion(pod)
				if err := m.CleanupOrphanedPodUsernsAllocations(ctx, nil, nil); err != nil {
					t.Fatal(err)
				}
				if m.podAllocated(pod.UID) {
					t.Error("its user IDs are not free although the deletion is explicit")
				}
				node.ExpectHolds(t, pod.UID)
			})
		}
	}
}
