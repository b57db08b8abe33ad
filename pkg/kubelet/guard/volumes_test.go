package guard

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func boundClaim(name string) (*v1.PersistentVolumeClaim, *v1.PersistentVolume) {
	claim := &v1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "claim-uid", ResourceVersion: "7"},
		Spec:       v1.PersistentVolumeClaimSpec{VolumeName: "volume"},
		Status:     v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound},
	}
	volume := &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "volume", Annotations: map[string]string{"pv.beta.kubernetes.io/gid": "5"}},
		Spec:       v1.PersistentVolumeSpec{PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/data"}}},
	}
	return claim, volume
}

func TestClaimsAreReturnedForVanishedPodsOnly(t *testing.T) {
	f, restart := node(t)
	pod, plain := protectedPod("p"), plainPod("q")
	claim, volume := boundClaim("claim")
	refused := errors.New("no relationship found between node and this object")
	f.running(pod, plain)
	f.SaveVolume(pod, claim, volume)
	f.SaveVolume(plain, claim, volume)
	f.saved()
	assert.Nil(t, f.SavedClaim(pod, "claim", nil, refused), "the API has the pod")

	f = restart()
	f.ObserveSource(apiSource, []*v1.Pod{plain})
	want := claim.DeepCopy()
	want.ResourceVersion = ""
	assert.Equal(t, want, f.SavedClaim(pod, "claim", nil, refused))
	assert.Equal(t, volume, f.SavedVolume(pod, "claim-uid", refused))
	assert.Nil(t, f.SavedClaim(pod, "claim", claim, nil), "the API gave it")
	made := claim.DeepCopy()
	made.UID = "made-again"
	assert.Equal(t, want, f.SavedClaim(pod, "claim", made, nil), "another claim has taken the name")
	f.SaveVolume(pod, made, volume)
	assert.Equal(t, want, f.SavedClaim(pod, "claim", nil, refused), "and is not saved in its place")
	assert.Nil(t, f.SavedClaim(nil, "claim", nil, refused))
	assert.Nil(t, f.SavedClaim(pod, "other", nil, refused))
	assert.Nil(t, f.SavedVolume(pod, "other", refused))
	assert.Nil(t, f.SavedClaim(plain, "claim", nil, refused))

	f.ObserveSource(apiSource, []*v1.Pod{pod, plain})
	assert.Nil(t, f.SavedClaim(pod, "claim", nil, refused), "the API has the pod again")
	f.saved()
	pods, bad := f.store.load()
	require.Empty(t, bad)
	require.Len(t, pods, 1)
	assert.Len(t, pods[0].Volumes, 1, "and they are saved still")
}

func TestClaimIsWrittenWhenItChanges(t *testing.T) {
	f, _ := node(t)
	pod := protectedPod("p")
	f.running(pod)
	claim, volume := boundClaim("claim")
	disk := f.countSyncs()
	write := func() int {
		f.saved()
		return disk.count()
	}
	f.SaveVolume(pod, claim, volume)
	first := write()
	claim.ResourceVersion = "8"
	f.SaveVolume(pod, claim, volume)
	assert.Equal(t, first, write(), "the same content is not written again")

	claim.Labels = map[string]string{"k": "v"}
	f.SaveVolume(pod, claim, volume)
	assert.NotEqual(t, first, write())
	pods, _ := f.store.load()
	require.Len(t, pods, 1)
	require.Len(t, pods[0].Volumes, 1)
	assert.Equal(t, "v", pods[0].Volumes[0].Claim.Labels["k"])
}

func TestUnusableFileOfAPodThatIsGoneIsRemoved(t *testing.T) {
	pod, gone := protectedPod("p"), protectedPod("gone")
	f, restart := node(t)
	f.running(pod, gone)
	f.saved()
	for _, p := range []*v1.Pod{pod, gone} {
		require.NoError(t, f.store.writeSynced(f.store.path(p.UID), []byte("damaged")))
	}
	f.runtime.remove(gone)
	f = restart()
	assert.Equal(t, 2.0, f.series()["errors_total{operation=StateDirectory}"], "both are reported")
	f.ObserveSource(apiSource, nil)
	f.saved()
	assert.FileExists(t, f.store.path(pod.UID), "its pod is alive")
	assert.NoFileExists(t, f.store.path(gone.UID))
	assert.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""), "and protected by the labels of its sandbox")
}
