package pods

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
)

func TestKubeletsAreQueriedDirectly(t *testing.T) {
	t.Parallel()
	present := heldPod("web-2")
	present.ObjectPresent = true
	ending := heldPod("web-3")
	ending.State, ending.Evidence = guard.Terminating, &guard.Evidence{Kind: guard.DeletionTimestampSeen}
	good := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/guard/pods" || r.URL.Query().Get("objects") != "true" {
			http.Error(w, r.URL.String(), http.StatusTeapot)
			return
		}
		_ = json.NewEncoder(w).Encode(guard.PodList{Version: "v1.37.2+guard.0.1.0", Items: []guard.PodState{heldPod("web-1"), present, ending}})
	}
	ca := ""
	serve := func(handler http.HandlerFunc) string {
		server := httptest.NewTLSServer(handler)
		t.Cleanup(server.Close)
		if ca == "" {
			ca = filepath.Join(t.TempDir(), "ca.crt")
			require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
		}
		return strings.TrimPrefix(server.URL, "https://")
	}
	k := Kubelets{Addresses: map[string]string{
		"a-guarded":   serve(good),
		"b-unguarded": serve(http.NotFound),
		"c-forbidden": serve(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no right to nodes/pods", http.StatusForbidden)
		}),
		"d-proxy": serve(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }),
		"e-away":  "127.0.0.1:1",
	}}
	k.TLS = rest.TLSClientConfig{CAFile: ca}
	responses, err := k.Query(t.Context())
	require.NoError(t, err)
	require.Len(t, responses, 5)
	require.Equal(t, "v1.37.2+guard.0.1.0", responses[0].Version, responses[0].Error)
	require.Equal(t, 3, responses[0].Protected)
	require.Equal(t, 1, responses[0].Ending, "a pod whose deletion was requested stays gone")
	require.Equal(t, 1, responses[0].Gone)
	require.Equal(t, types.UID("web-1-uid"), responses[0].gone[0].Saved.Pod.UID)
	require.True(t, responses[1].Unguarded)
	require.Contains(t, responses[2].Error, "403 Forbidden: no right to nodes/pods")
	require.Contains(t, responses[3].Error, "is not understood")
	require.Contains(t, responses[4].Error, "connection refused")

	k = Kubelets{Addresses: map[string]string{"a": k.Addresses["a-guarded"]}}
	responses, err = k.Query(t.Context())
	require.NoError(t, err)
	require.Contains(t, responses[0].Error, "certificate", "another server could name pods to write")
}

func TestAdoptionIsCounted(t *testing.T) {
	t.Parallel()
	pod := func(name string, restored bool, owner types.UID) *corev1.Pod {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name)}}
		if restored {
			pod.Annotations = map[string]string{guardv1alpha1.LostOwnerAnnotation: "ReplicaSet/web"}
		}
		if owner != "" {
			pod.OwnerReferences = []metav1.OwnerReference{{UID: owner, Controller: ptr.To(true)}}
		}
		return pod
	}
	client := fake.NewClientset(pod("adopted", true, ""), pod("waiting", true, ""), pod("earlier", false, "set"))
	ctx := t.Context()
	w, err := StartAdoptionWatch(ctx, client)
	require.NoError(t, err)
	a, err := w.Count(ctx)
	require.NoError(t, err)
	require.Equal(t, Adoption{Restored: 2, Waiting: []string{"shop/adopted", "shop/waiting"}}, a)
	require.False(t, a.Done())

	pods := client.CoreV1().Pods("shop")
	_, err = pods.Update(ctx, pod("adopted", true, "set"), metav1.UpdateOptions{})
	require.NoError(t, err)
	require.NoError(t, pods.Delete(ctx, "waiting", metav1.DeleteOptions{}))
	for _, created := range []*corev1.Pod{pod("copy", false, "set"), pod("unrelated", false, "other"), pod("late", true, "set")} {
		_, err = pods.Create(ctx, created, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	a, err = w.Count(ctx)
	require.NoError(t, err)
	require.Equal(t, Adoption{Restored: 2, Adopted: 2, New: 1, Deleted: 1}, a)
	require.True(t, a.Done())
}
