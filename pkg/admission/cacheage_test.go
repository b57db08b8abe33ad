package admission

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestCacheAge(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(now)
	registry := prometheus.NewRegistry()
	ages, err := NewCacheAge(registry, clock, "pods", "poddisruptionbudgets.policy")
	require.NoError(t, err)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "event") }))
	defer server.Close()
	client := &http.Client{Transport: ages.Wrap(http.DefaultTransport)}
	read := func(path string) {
		response, err := client.Get(server.URL + path)
		require.NoError(t, err)
		defer response.Body.Close()
		_, err = io.ReadAll(response.Body)
		require.NoError(t, err)
	}

	clock.SetTime(now.Add(time.Minute))
	read("/api/v1/pods?watch=true&allowWatchBookmarks=true")
	read("/apis/policy/v1/poddisruptionbudgets")
	clock.SetTime(now.Add(90 * time.Second))

	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP guard_webhook_cache_age_seconds Seconds since the watch of the resource last brought an event or a bookmark; 0 before its first watch.
# TYPE guard_webhook_cache_age_seconds gauge
guard_webhook_cache_age_seconds{resource="poddisruptionbudgets.policy"} 0
guard_webhook_cache_age_seconds{resource="pods"} 30
`)))
}

func TestWatchedResource(t *testing.T) {
	for path, want := range map[string]string{
		"/api/v1/pods":                         "pods",
		"/api/v1/namespaces/shop/secrets":      "secrets",
		"/api/v1/namespaces":                   "namespaces",
		"/apis/policy/v1/poddisruptionbudgets": "poddisruptionbudgets.policy",
		"/apis/kubelet-guard.io/v1alpha1/namespaces/a/operationwindows": "operationwindows.kubelet-guard.io",
		"/api/v1/namespaces/shop/pods/web/log":                          "",
		"/version":                                                      "",
		"/":                                                             "",
	} {
		require.Equal(t, want, watchedResource(path), path)
	}
}
