package webhookscale

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelet-guard.io/pkg/admission/rules/poddeletion"
	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
)

// The caches that are measured understand what the server of this package sends, by streamed
// lists and by pages, and list again after a watch has expired.
func TestCachesFollowTheServer(t *testing.T) {
	const pagesOf = 500
	s := size{pods: 2*pagesOf + 100, nodes: 10, budgets: 20, namespaces: 5}
	for _, streams := range []bool{true, false} {
		t.Run(fmt.Sprintf("streams=%t", streams), func(t *testing.T) {
			srv := newServer(t, s, streams)
			core, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL, ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf}, QPS: -1})
			require.NoError(t, err)
			budgets := poddeletion.NewIndex()
			for i := range s.budgets / 2 {
				budgets.Set(s.budget(i))
			}
			cluster := fleetmetrics.NewCluster(core, crfake.NewClientBuilder().WithObjects(s.node(0)).Build(), budgets)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); _ = cluster.Start(ctx) }()
			defer func() { cancel(); <-done }()

			counted := func() (pods, nodes, without int) {
				_ = cluster.ProtectedPods(func(_ string, n int) { pods, nodes = pods+n, nodes+1 })
				without, _ = cluster.WithoutBudget()
				return pods, nodes, without
			}
			for list := range 3 {
				require.Eventually(t, func() bool {
					pods, nodes, without := counted()
					return srv.watched("pods") && srv.lists()["pods"] > list && pods == s.pods && nodes == s.nodes && without == s.pods/2
				}, 20*time.Second, 20*time.Millisecond, "list %d: %v", list, srv.lists())
				srv.breakWatches()
			}
			require.LessOrEqual(t, srv.most, pagesOf, "pods in one answer")
			if streams {
				require.Zero(t, srv.pages, "answers to lists")
			}
		})
	}
}

// What this package takes for a usual pod and node is as large as one.
func TestObjectsHaveTheirUsualSize(t *testing.T) {
	s := size{pods: 10, nodes: 10, budgets: 10, namespaces: 1}
	for _, test := range []struct {
		object      interface{ Size() int }
		least, most int
	}{
		{s.pod(3), 5_000, 9_000},
		{s.node(3), 8_000, 16_000},
		{s.budget(3), 1_000, 3_000},
	} {
		require.Greater(t, test.object.Size(), test.least, "%T", test.object)
		require.Less(t, test.object.Size(), test.most, "%T", test.object)
	}
	require.Equal(t, corev1.PodRunning, s.pod(3).Status.Phase)
}
