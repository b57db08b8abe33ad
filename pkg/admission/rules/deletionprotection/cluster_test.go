package deletionprotection

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
)

func TestCluster(t *testing.T) {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	pod := func(name string, volumes ...corev1.Volume) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: meta(name), Spec: corev1.PodSpec{Volumes: volumes}}
	}
	slice := meta("web-1")
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	cluster := Cluster{Core: fake.NewClientset(
		&corev1.PersistentVolumeClaim{ObjectMeta: meta("data"), Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}},
		&corev1.PersistentVolumeClaim{ObjectMeta: meta("new"), Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}},
		pod("db", corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}),
		pod("cache", corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}),
		pod("other", corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}),
		&discoveryv1.EndpointSlice{ObjectMeta: slice, Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			{Addresses: []string{"10.0.0.2"}},
			{Addresses: []string{"10.0.0.3"}, TargetRef: &corev1.ObjectReference{Name: "web-3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}},
		}},
	)}

	t.Run("only bound claims count", func(t *testing.T) {
		got, err := cluster.BoundClaims(t.Context(), "shop")
		require.NoError(t, err)
		require.Equal(t, admission.Found{Count: 1, Example: "data"}, got)
	})
	t.Run("a pod uses the claim that it names", func(t *testing.T) {
		got, err := cluster.ClaimUsers(t.Context(), "shop", "data")
		require.NoError(t, err)
		require.Equal(t, admission.Found{Count: 1, Example: "db"}, got)
	})
	t.Run("a pod uses the claim of its ephemeral volume", func(t *testing.T) {
		got, err := cluster.ClaimUsers(t.Context(), "shop", "cache-scratch")
		require.NoError(t, err)
		require.Equal(t, admission.Found{Count: 1, Example: "cache"}, got)
	})
	t.Run("endpoints count unless they are known not to be ready", func(t *testing.T) {
		got, err := cluster.ReadyEndpoints(t.Context(), "shop", "web")
		require.NoError(t, err)
		require.Equal(t, admission.Found{Count: 2, Example: "10.0.0.2"}, got)
	})
}

func TestCollectReadsPagesUntilOneHasSomething(t *testing.T) {
	pages := map[string][]string{"": nil, "2": {"a", "b"}, "3": {"c"}}
	next := map[string]string{"": "2", "2": "3"}
	got, err := collect(func(options metav1.ListOptions) (string, []string, error) {
		return next[options.Continue], pages[options.Continue], nil
	})
	require.NoError(t, err)
	require.Equal(t, admission.Found{Count: 2, More: true, Example: "a"}, got)
}
