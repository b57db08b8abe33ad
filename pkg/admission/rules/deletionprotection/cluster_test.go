package deletionprotection

import (
	"context"
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

	for name, test := range map[string]struct {
		find func() (admission.Found, error)
		want admission.Found
	}{
		"only bound claims count":                               {func() (admission.Found, error) { return cluster.BoundClaims(t.Context(), "shop") }, admission.Found{Count: 1, Example: "data"}},
		"a pod uses the claim that it names":                    {func() (admission.Found, error) { return cluster.ClaimUsers(t.Context(), "shop", "data") }, admission.Found{Count: 1, Example: "db"}},
		"a pod uses the claim of its ephemeral volume":          {func() (admission.Found, error) { return cluster.ClaimUsers(t.Context(), "shop", "cache-scratch") }, admission.Found{Count: 1, Example: "cache"}},
		"endpoints count unless they are known not to be ready": {func() (admission.Found, error) { return cluster.ReadyEndpoints(t.Context(), "shop", "web") }, admission.Found{Count: 2, Example: "10.0.0.2"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.find()
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestFindReadsPagesUntilOneHasSomething(t *testing.T) {
	pages := map[string][]corev1.Pod{"": nil, "2": {{}, {}}, "3": {{}}}
	next := map[string]string{"": "2", "2": "3"}
	got, err := find(t.Context(), func(_ context.Context, options metav1.ListOptions) (*corev1.PodList, error) {
		return &corev1.PodList{ListMeta: metav1.ListMeta{Continue: next[options.Continue]}, Items: pages[options.Continue]}, nil
	}, metav1.ListOptions{}, func(page *corev1.PodList) []string { return []string{"a", "b"}[:len(page.Items)] })
	require.NoError(t, err)
	require.Equal(t, admission.Found{Count: 2, More: true, Example: "a"}, got)
}
