package projected

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

// The volume is set up again whenever a token is rotated, while the pod runs. A file that
// would have to be a directory as well stands for a disk that is full.
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

			secret := &v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "key"}, Data: map[string][]byte{"data-1": []byte("1"), "data-2": []byte("2")}}
			_, host := newTestHost(t, fake.NewSimpleClientset(secret))
			t.Cleanup(func() { _ = os.RemoveAll(host.GetPodsDir()) })
			plugins := volume.VolumePluginMgr{}
			if err := plugins.InitPlugins(ProbeVolumePlugins(), nil, host); err != nil {
				t.Fatal(err)
			}
			plugin, err := plugins.FindPluginByName(projectedPluginName)
			if err != nil {
				t.Fatal(err)
			}
			mode := int32(0o644)
			source := &v1.SecretProjection{LocalObjectReference: v1.LocalObjectReference{Name: "key"}}
			spec := &v1.Volume{Name: "token", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{
				Sources: []v1.VolumeProjection{{Secret: source}}, DefaultMode: &mode,
			}}}
			setUp := func() (string, error) {
				mounter, err := plugin.NewMounter(volume.NewSpecFromVolume(spec), pod)
				if err != nil {
					t.Fatal(err)
				}
				return mounter.GetPath(), mounter.SetUp(volume.MounterArgs{})
			}
			dir, err := setUp()
			if err != nil {
				t.Fatal(err)
			}
			source.Items = []v1.KeyToPath{{Key: "data-1", Path: "x"}, {Key: "data-2", Path: "x/y"}}
			if _, err := setUp(); err == nil {
				t.Fatal("the new content could be written")
			}

			_, err = os.Stat(filepath.Join(dir, "data-1"))
			if kept := err == nil; kept != kind.Kept {
				t.Errorf("the old content is there: %v, want %v", kept, kind.Kept)
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.VolumeUnmount)
			}
		})
	}
}
