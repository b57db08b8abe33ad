package kubelet

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/guard-installer/internal/containers"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const stockMetrics = "# TYPE kubernetes_build_info gauge\nkubernetes_build_info{git_version=\"v1.36.3\"} 1\n" + `# TYPE kubelet_runtime_operations_total counter
kubelet_runtime_operations_total{operation_type="version"} 9
`

func serve(t *testing.T, answers map[string]string) (*Client, *int) {
	t.Helper()
	withToken := new(int)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer secret" {
			*withToken++
		}
		body, ok := answers[r.URL.Path]
		if !ok {
			http.Error(w, "Forbidden (user=x, verb=get, resource=nodes, subresource=proxy)", http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("secret\n"), 0o600))
	return &Client{Address: strings.TrimPrefix(server.URL, "https://"), TokenFile: token}, withToken
}

func TestAskDistinguishesStockFromGuarded(t *testing.T) {
	stock, _ := serve(t, map[string]string{"/healthz": "ok", "/metrics": stockMetrics})
	answer, err := stock.Ask(context.Background())
	require.NoError(t, err)
	assert.Equal(t, Answer{Version: "v1.36.3"}, answer)

	guarded, _ := serve(t, map[string]string{
		"/healthz":    "ok",
		"/metrics":    stockMetrics + "# TYPE kubelet_guard_info gauge\nkubelet_guard_info{mode=\"Audit\",version=\"v1.36.3+guard.0.1.0\"} 1\n",
		"/guard/pods": `{"version":"v1","mode":"Audit","items":[{"namespace":"a","name":"b","uid":"c","state":"Held"}]}`,
	})
	answer, err = guarded.Ask(context.Background())
	require.NoError(t, err)
	assert.Equal(t, Answer{Version: "v1.36.3", Guarded: true, Mode: guard.Audit, Pods: &guard.PodList{
		Version: "v1", Mode: guard.Audit, Items: []guard.PodState{{Namespace: "a", Name: "b", UID: "c", State: guard.Held}},
	}}, answer)
	assert.Len(t, guarded.Pin, 64)
}

func TestWhatAKubeletHasStopped(t *testing.T) {
	for metrics, want := range map[string]int{
		stockMetrics: 0,
		stockMetrics + `kubelet_runtime_operations_total{operation_type="stop_container"} 5
kubelet_runtime_operations_total{operation_type="remove_container"} 7
# TYPE kubelet_runtime_operations_errors_total counter
kubelet_runtime_operations_errors_total{operation_type="stop_container"} 2
`: 3,
		strings.Split(stockMetrics, "# TYPE kubelet_runtime")[0]: NotCounted,
	} {
		client, _ := serve(t, map[string]string{"/healthz": "ok", "/metrics": metrics})
		answer, err := client.Ask(context.Background())
		require.NoError(t, err)
		assert.Equal(t, want, answer.Stops, metrics)
	}
}

func TestPodsOfTheKubelet(t *testing.T) {
	client, _ := serve(t, map[string]string{
		"/pods": `{"kind":"PodList","items":[{"metadata":{"uid":"u"}}]}`,
		"/metrics/probes": `# TYPE prober_probe_total counter
prober_probe_total{container="a",pod_uid="u",probe_type="Liveness",result="failed"} 1
prober_probe_total{container="b",pod_uid="u",probe_type="Liveness",result="successful"} 1
prober_probe_total{container="c",pod_uid="u",probe_type="Readiness",result="failed"} 1
prober_probe_total{container="d",pod_uid="u",probe_type="Startup",result="failed"} 1
prober_probe_total{container="e",pod_uid="u",probe_type="Startup",result="failed"} 0
`,
	})
	pods, err := client.Pods(context.Background())
	require.NoError(t, err)
	assert.Equal(t, types.UID("u"), pods.Items[0].UID)
	assert.Equal(t, map[containers.Key]bool{{Pod: "u", Name: "a"}: true, {Pod: "u", Name: "d"}: true}, pods.FailedProbes)

	client, _ = serve(t, map[string]string{"/pods": "{}"})
	_, err = client.Pods(context.Background())
	assert.ErrorContains(t, err, "refuses GET /metrics/probes")
	client, _ = serve(t, map[string]string{"/pods": "<html>", "/metrics/probes": ""})
	_, err = client.Pods(context.Background())
	assert.ErrorContains(t, err, "GET /pods of the kubelet")
}

func TestAskSaysWhatIsWrong(t *testing.T) {
	for want, answers := range map[string]map[string]string{
		"GET /healthz with \"not ok\"":  {"/healthz": "not ok"},
		"apply manifests/rollout":       {"/healthz": "ok"},
		"does not look like a kubelet":  {"/healthz": "ok", "/metrics": "# TYPE x gauge\nx 1\n"},
		"GET /metrics of the kubelet: ": {"/healthz": "ok", "/metrics": "{"},
	} {
		client, _ := serve(t, answers)
		_, err := client.Ask(context.Background())
		assert.ErrorContains(t, err, want)
	}
	client, _ := serve(t, nil)
	client.Address = "127.0.0.1:1"
	_, err := client.Ask(context.Background())
	assert.ErrorContains(t, err, "the kubelet does not answer")
}

func TestAskGivesTheTokenToNobodyElse(t *testing.T) {
	client, withToken := serve(t, map[string]string{"/healthz": "ok", "/metrics": stockMetrics})
	client.Pin = strings.Repeat("0", 64)
	_, err := client.Ask(context.Background())
	assert.ErrorContains(t, err, "another certificate than before")
	assert.Zero(t, *withToken)
}

func TestProtectedAsksTheGuardAlone(t *testing.T) {
	const guarded = stockMetrics + "# TYPE kubelet_guard_info gauge\nkubelet_guard_info{mode=\"Enforce\",version=\"v1.36.3+guard.0.1.0\"} 1\n"
	client, _ := serve(t, map[string]string{
		"/healthz":    "not ok",
		"/guard/pods": `{"version":"v1","mode":"Enforce","items":[{"namespace":"a","name":"b","uid":"c","state":"Held"}]}`,
	})
	list, err := client.Protected(context.Background())
	require.NoError(t, err)
	assert.Equal(t, &guard.PodList{Version: "v1", Mode: guard.Enforce, Items: []guard.PodState{{Namespace: "a", Name: "b", UID: "c", State: guard.Held}}}, list)

	client, _ = serve(t, map[string]string{"/metrics": stockMetrics})
	list, err = client.Protected(context.Background())
	require.NoError(t, err)
	assert.Nil(t, list, "a kubelet without the guard")

	for name, answers := range map[string]map[string]string{
		"a token that is not taken":   nil,
		"a guard that does not say":   {"/metrics": guarded},
		"an answer in another format": {"/guard/pods": "[]"},
		"something else at the port":  {"/metrics": "# TYPE x gauge\nx 1\n"},
	} {
		client, _ = serve(t, answers)
		list, err = client.Protected(context.Background())
		require.Error(t, err, name)
		assert.NotErrorIs(t, err, ErrNotListening)
		assert.Nil(t, list)
	}

	client.Address = "127.0.0.1:1"
	_, err = client.Protected(context.Background())
	require.ErrorIs(t, err, ErrNotListening)

	client, withToken := serve(t, map[string]string{"/guard/pods": "{}"})
	client.Pin = strings.Repeat("0", 64)
	_, err = client.Protected(context.Background())
	require.ErrorContains(t, err, "another certificate than before")
	assert.Zero(t, *withToken)
}
