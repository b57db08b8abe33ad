package configmap

import (
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/pkg/volume"
)

// The volume is set up again whenever its config map changes, while the pod runs. A file
// that would have to be a directory as well stands for a disk that is full.
func TestGuardVolumeWhoseNewContentCannotBeWritten(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			node := guardtest.Install(t)
			pod := &v1.Pod{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "server", UID: "uid"},
				Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "server"}}},
			}
			kind.Change(pod)
			node.Run(pod)
			node.Appear(pod)
			if pod.DeletionTimestamp != nil {
				guard.RefuseTermination(pod, false, false, false)
			}

			configMap := configMap("ns", "settings")
			_, host := newTestHost(t, fake.NewSimpleClientset(&configMap))
			t.Cleanup(func() { _ = os.RemoveAll(host.GetPodsDir()) })
			plugins := volume.VolumePluginMgr{}
			if err := plugins.InitPlugins(ProbeVolumePlugins(), nil, host); err != nil {
				t.Fatal(err)
			}
			plugin, err := plugins.FindPluginByName(configMapPluginName)
			if err != nil {
				t.Fatal(err)
			}
			setUp := func(spec *v1.Volume) (string, error) {
				mounter, err := plugin.NewMounter(volume.NewSpecFromVolume(spec), pod)
				if err != nil {
					t.Fatal(err)
				}
				return mounter.GetPath(), mounter.SetUp(volume.MounterArgs{})
			}
			spec := volumeSpec("settings", "settings", 0o644)
			dir, err := setUp(spec)
			if err != nil {
				t.Fatal(err)
			}
			spec.ConfigMap.Items = []v1.KeyToPath{{Key: "data-1", Path: "x"}, {Key: "data-2", Path: "x/y"}}
			if _, err := setUp(spec); err == nil {
				t.Fatal("the new content could be written")
			}

			_, err = os.Stat(filepath.Join(dir, "data-1"))
			if kept := err == nil; kept != kind.Kept {
				t.Errorf("the old content is there: %v, want %v", kept, kind.Kept)
			}
			if !kind.Kept {
				return
			}
			node.ExpectHolds(t, pod.UID, guard.VolumeUnmount)
			// What could not be written is not left behind, try after try.
			left, err := filepath.Glob(filepath.Join(dir, "..2*"))
			if err != nil {
				t.Fatal(err)
			}
			if len(left) != 1 {
				t.Errorf("directories with content: %q, want that of the old content", left)
			}
		})
	}
}
