package nodes

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"kubelet-guard.io/pkg/kubelet/guard"
)

func querierFor(t *testing.T, timeout time.Duration, kubelet http.HandlerFunc) Querier {
	server := httptest.NewServer(kubelet)
	t.Cleanup(server.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	require.NoError(t, err)
	return Querier{Client: client, Timeout: timeout}
}

func named(names ...string) []corev1.Node {
	var list []corev1.Node
	for _, name := range names {
		list = append(list, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return list
}

func TestQueryBoundsWhatRunsAtATime(t *testing.T) {
	var running, most atomic.Int32
	querier := querierFor(t, time.Minute, func(w http.ResponseWriter, _ *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(5 * time.Millisecond) // so that requests meet
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, `{"version":"v1","mode":"Enforce","items":[]}`)
	})
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprintf("node-%03d", i))
	}
	responses := querier.Each(context.Background(), named(names...))
	for i, response := range responses {
		require.Equal(t, names[i], response.Node.Name, "answers come in the order of the questions")
		require.Equal(t, Guarded, response.State, response.Detail)
	}
	require.LessOrEqual(t, int(most.Load()), parallel)
	require.Greater(t, int(most.Load()), 1)
}

func TestQueryClassifiesResponses(t *testing.T) {
	const timeout = 500 * time.Millisecond
	querier := querierFor(t, timeout, func(w http.ResponseWriter, r *http.Request) {
		node := strings.Split(r.URL.Path, "/")[4]
		switch node {
		case "guarded":
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprint(w, `{"version":"v1.36.3+guard.0.2.0","mode":"Enforce","items":[{"namespace":"a","name":"b","uid":"c","state":"Protected","objectPresent":true}]}`)
		case "newer":
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprint(w, `{"version":"v2","mode":"Enforce","items":[],"added":"later"}`)
		case "stock":
			http.NotFound(w, r)
		case "garbage":
			_, _ = fmt.Fprint(w, "<html>")
		case "down":
			http.Error(w, "error trying to reach service: EOF", http.StatusServiceUnavailable)
		case "busy":
			w.Header().Set("Retry-After", "60")
			http.Error(w, "too many requests", http.StatusTooManyRequests)
		case "silent":
			<-r.Context().Done()
		}
	})
	start := time.Now()
	responses := querier.Each(context.Background(), named("guarded", "newer", "stock", "garbage", "down", "busy", "silent"))
	require.Less(t, time.Since(start), 10*timeout, "one silent node costs one timeout, and no server can make the plugin wait longer")
	want := map[string]State{"guarded": Guarded, "newer": Guarded, "stock": Unguarded, "garbage": NoAnswer, "down": NoAnswer, "busy": NoAnswer, "silent": NoAnswer}
	for _, response := range responses {
		require.Equal(t, want[response.Node.Name], response.State, "%s: %s", response.Node.Name, response.Detail)
		require.Equal(t, response.State == Guarded, response.Pods != nil)
		require.Equal(t, response.State == Guarded, response.Detail == "")
	}
	require.Equal(t, []guard.PodState{{Namespace: "a", Name: "b", UID: "c", State: guard.Protected, ObjectPresent: true}}, responses[0].Pods.Items)
	require.Contains(t, responses[3].Detail, "the response to GET /guard/pods is not understood")
	require.Equal(t, "error trying to reach service: EOF", responses[4].Detail)
	require.Equal(t, "no response within 500ms", responses[6].Detail)
}
