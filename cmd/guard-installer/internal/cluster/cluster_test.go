package cluster

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"kubelet-guard.io/pkg/rollout"
)

func node(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }

func TestSlotsBoundHowManyNodesChange(t *testing.T) {
	ctx := context.Background()
	client := fake.NewClientset(node("a"), node("b"), node("c"))
	on := func(name string, slots int) *Cluster {
		return &Cluster{Client: client, Pool: rollout.Pool{Name: "blue", Selector: "x", MaxUnavailable: slots}, NodeName: name}
	}
	take := func(c *Cluster) (bool, []string) {
		t.Helper()
		taken, holders, err := c.TakeSlot(ctx)
		require.NoError(t, err)
		return taken, holders
	}
	taken, _ := take(on("a", 2))
	assert.True(t, taken)
	taken, _ = take(on("b", 2))
	assert.True(t, taken)
	taken, holders := take(on("c", 2))
	assert.False(t, taken)
	assert.Equal(t, []string{"a", "b"}, holders)
	taken, _ = take(on("b", 2))
	assert.True(t, taken, "a node keeps its slot")

	// Fewer slots: what has one above the number still gives it back.
	require.NoError(t, on("b", 1).ReleaseSlot(ctx))
	taken, holders = take(on("c", 1))
	assert.False(t, taken)
	assert.Equal(t, []string{"a"}, holders)
	taken, _ = take(on("c", 2))
	assert.True(t, taken)

	// A node that is gone from the cluster holds nothing up.
	require.NoError(t, client.CoreV1().Nodes().Delete(ctx, "a", metav1.DeleteOptions{}))
	taken, _ = take(on("b", 1))
	assert.True(t, taken)
}

func TestNothingBeginsWhenPausedOrOutdated(t *testing.T) {
	ctx := context.Background()
	pool := rollout.Pool{Name: "blue", Selector: "x=y", MaxUnavailable: 1}
	request := rollout.Request{Target: rollout.Audit, Image: "i"}
	ds, err := rollout.DaemonSet(pool, request)
	require.NoError(t, err)
	client := fake.NewClientset(ds)
	c := &Cluster{Client: client, Pool: pool, NodeName: "a"}

	why, err := c.MayBegin(ctx, request.ID())
	require.NoError(t, err)
	assert.Empty(t, why)
	why, err = c.MayBegin(ctx, "other")
	require.NoError(t, err)
	assert.Contains(t, why, "something else")

	ds.Annotations = map[string]string{rollout.PausedAnnotation: "true"}
	_, err = client.AppsV1().DaemonSets(rollout.Namespace).Update(ctx, ds, metav1.UpdateOptions{})
	require.NoError(t, err)
	why, err = c.MayBegin(ctx, request.ID())
	require.NoError(t, err)
	assert.Contains(t, why, "paused")

	require.NoError(t, client.AppsV1().DaemonSets(rollout.Namespace).Delete(ctx, ds.Name, metav1.DeleteOptions{}))
	why, err = c.MayBegin(ctx, request.ID())
	require.NoError(t, err)
	assert.Contains(t, why, "is gone")
}

func TestNothingBeginsWhileAnotherNodeHasFailed(t *testing.T) {
	ctx := context.Background()
	pool := rollout.Pool{Name: "blue", Selector: "x=y", MaxUnavailable: 3}
	request := rollout.Request{Target: rollout.Audit, Image: "i"}
	ds, err := rollout.DaemonSet(pool, request)
	require.NoError(t, err)
	client := fake.NewClientset(ds, node("a"), node("b"), node("c"))
	on := func(name string) *Cluster { return &Cluster{Client: client, Pool: pool, NodeName: name} }
	a, b := on("a"), on("b")
	_, _, err = a.TakeSlot(ctx)
	require.NoError(t, err)
	yes, no := true, false
	for name, test := range map[string]struct {
		phase   rollout.Phase
		request string
		mark    *bool
		want    string
	}{
		"at work":                        {rollout.Installing, request.ID(), &no, ""},
		"refused":                        {rollout.Refused, request.ID(), &no, "the roll-out stands still at node a (Refused)"},
		"rolled back":                    {rollout.RolledBack, request.ID(), &yes, "the roll-out stands still at node a (RolledBack)"},
		"not in order":                   {rollout.Failed, request.ID(), &yes, "the roll-out stands still at node a (Failed)"},
		"its label is gone":              {rollout.RolledBack, request.ID(), &no, "the roll-out stands still at node a (RolledBack)"},
		"failed with an earlier request": {rollout.RolledBack, "earlier", &yes, ""},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, a.Report(ctx, rollout.Report{RequestID: test.request, Phase: test.phase}, test.mark))
			why, err := b.MayBegin(ctx, request.ID())
			require.NoError(t, err)
			assert.Equal(t, test.want, why)
			why, err = a.MayBegin(ctx, request.ID())
			require.NoError(t, err)
			assert.Empty(t, why, "it does not wait for itself")
		})
	}
	require.NoError(t, a.Report(ctx, rollout.Report{RequestID: request.ID(), Phase: rollout.Failed, Attempt: "second"}, &yes))
	for attempt, want := range map[string]string{"first": "the roll-out stands still at node a (Failed)", "second": ""} {
		resumed, err := a.Node(ctx)
		require.NoError(t, err)
		metav1.SetMetaDataAnnotation(&resumed.ObjectMeta, rollout.ResumeAnnotation, attempt)
		_, err = client.CoreV1().Nodes().Update(ctx, resumed, metav1.UpdateOptions{})
		require.NoError(t, err)
		why, err := b.MayBegin(ctx, request.ID())
		require.NoError(t, err)
		assert.Equal(t, want, why, "resume of the attempt %s", attempt)
	}
	require.NoError(t, client.CoreV1().Nodes().Delete(ctx, "a", metav1.DeleteOptions{}))
	why, err := b.MayBegin(ctx, request.ID())
	require.NoError(t, err)
	assert.Empty(t, why, "a node that is gone holds nothing up")
}

func TestReportMarksAndUnmarks(t *testing.T) {
	ctx := context.Background()
	client := fake.NewClientset(node("a"))
	c := &Cluster{Client: client, NodeName: "a"}
	yes, no := true, false
	report := rollout.Report{RequestID: "1", Phase: rollout.RolledBack}
	for _, step := range []struct {
		mark *bool
		want bool
	}{{nil, false}, {&yes, true}, {nil, true}, {&no, false}, {&no, false}} {
		require.NoError(t, c.Report(ctx, report, step.mark))
		got, err := c.Node(ctx)
		require.NoError(t, err)
		assert.Equal(t, step.want, rollout.Marked(got))
		written, err := rollout.ReportOf(got)
		require.NoError(t, err)
		assert.Equal(t, &report, written)
	}
}
