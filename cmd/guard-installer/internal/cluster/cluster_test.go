package cluster

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"kubelet-guard.io/pkg/rollout"
)

var (
	pool    = rollout.Pool{Name: "blue", Selector: "pool=blue", MaxUnavailable: 1}
	request = rollout.Request{Target: rollout.Audit, Image: "i"}
)

func node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"pool": "blue"}}}
}

// fleet is a cluster with the pool and nodes.
type fleet struct {
	*testing.T
	client *fake.Clientset
	set    *appsv1.DaemonSet
}

func newFleet(t *testing.T, names ...string) *fleet {
	t.Helper()
	ds, err := rollout.DaemonSet(pool, request)
	require.NoError(t, err)
	ds.Annotations = map[string]string{rollout.StartedAnnotation: "2026-01-01T00:00:00Z"}
	f := &fleet{t, fake.NewClientset(ds), ds}
	for _, name := range names {
		_, err := f.client.CoreV1().Nodes().Create(t.Context(), node(name), metav1.CreateOptions{})
		require.NoError(t, err)
	}
	return f
}

// on is the cluster as seen from a node, of a pool with so many slots.
func (f *fleet) on(name string, slots int) *Cluster {
	p := pool
	p.MaxUnavailable = slots
	return &Cluster{Client: f.client, Pool: p, NodeName: name}
}

func (f *fleet) turn(name string, slots int, refuses bool) Turn {
	f.Helper()
	turn, err := f.on(name, slots).TakeSlot(f.Context(), node(name), request.ID(), refuses)
	require.NoError(f, err)
	return turn
}

func (f *fleet) take(name string, slots int) bool {
	f.Helper()
	return f.turn(name, slots, false).Slot
}

func (f *fleet) patch(name, patch string) {
	f.Helper()
	_, err := f.client.CoreV1().Nodes().Patch(f.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	require.NoError(f, err)
}

// age makes all slots older.
func (f *fleet) age() {
	f.Helper()
	leases := f.client.CoordinationV1().Leases(rollout.Namespace)
	list, err := leases.List(f.Context(), metav1.ListOptions{})
	require.NoError(f, err)
	for i := range list.Items {
		list.Items[i].Spec.AcquireTime.Time = list.Items[i].Spec.AcquireTime.Add(-time.Hour)
		_, err := leases.Update(f.Context(), &list.Items[i], metav1.UpdateOptions{})
		require.NoError(f, err)
	}
}

// count returns how many requests are made meanwhile.
func (f *fleet) count(meanwhile func()) int {
	before := len(f.client.Actions())
	meanwhile()
	return len(f.client.Actions()) - before
}

func TestSlotsBoundHowManyNodesChange(t *testing.T) {
	f := newFleet(t, "a", "b", "c")
	assert.True(t, f.take("a", 2))
	assert.True(t, f.take("b", 2))
	turn := f.turn("c", 2, false)
	assert.False(t, turn.Slot)
	assert.Contains(t, turn.WaitReason, "it waits for one of 2 slots of the pool")
	assert.True(t, f.take("b", 2), "a node keeps its slot")

	// Fewer slots: what has one above the number still releases it.
	require.NoError(t, f.on("b", 1).ReleaseSlot(t.Context()))
	require.NoError(t, f.on("a", 1).ReleaseSlot(t.Context()))
	assert.True(t, f.take("c", 1))
	assert.False(t, f.take("a", 1))
}

// The API server collects what a Node owns, so the slot of a node that is deleted goes.
func TestASlotGoesWithItsNode(t *testing.T) {
	f := newFleet(t, "a")
	require.True(t, f.take("a", 1))
	list, err := f.client.CoordinationV1().Leases(rollout.Namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	assert.Equal(t, []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "a", UID: "uid-a"}}, list.Items[0].OwnerReferences)

	// A Node of the same name has a slot of its own.
	again := node("a")
	again.UID = "uid-of-another"
	turn, err := f.on("a", 1).TakeSlot(t.Context(), again, request.ID(), false)
	require.NoError(t, err)
	assert.True(t, turn.Slot)
	list, err = f.client.CoordinationV1().Leases(rollout.Namespace).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, list.Items, 1)
	assert.Equal(t, again.UID, list.Items[0].OwnerReferences[0].UID)
}

func TestANodeThatHasLeftThePoolHoldsNothingUp(t *testing.T) {
	f := newFleet(t, "a", "b", "c")
	require.True(t, f.take("a", 1))
	mark := false
	require.NoError(t, f.on("a", 1).Report(t.Context(), rollout.Report{RequestID: request.ID(), Pool: "blue", Phase: rollout.Refused}, &mark))
	require.NoError(t, f.on("a", 1).StopPool(t.Context(), request.ID()))
	assert.Equal(t, "the roll-out is stopped at node a (Refused)", f.turn("b", 1, false).WaitReason)

	f.patch("a", `{"metadata":{"labels":{"pool":null}}}`)
	f.age()
	assert.True(t, f.take("b", 1))
	assert.False(t, f.take("c", 1), "no more nodes than slots are at work")
}

func TestWhichPoolsSelectANode(t *testing.T) {
	f := newFleet(t)
	other := node("a")
	other.Labels["pool"] = "green"
	for _, c := range []struct {
		pool string
		node *corev1.Node
		want bool
	}{{"blue", node("a"), true}, {"blue", other, false}, {"green", other, false}} {
		got, err := f.on("a", 1).Selects(t.Context(), c.pool, c.node)
		require.NoError(t, err)
		assert.Equal(t, c.want, got)
	}
	f.set.Spec.Template.Annotations[rollout.PoolAnnotation] = "{"
	_, err := f.client.AppsV1().DaemonSets(rollout.Namespace).Update(t.Context(), f.set, metav1.UpdateOptions{})
	require.NoError(t, err)
	_, err = f.on("a", 1).Selects(t.Context(), "blue", node("a"))
	assert.Error(t, err, "it is not known")
}

func TestNothingStartsWhenPausedOrOutdated(t *testing.T) {
	f := newFleet(t, "a")
	turn, err := f.on("a", 1).TakeSlot(t.Context(), node("a"), "other", false)
	require.NoError(t, err)
	assert.Contains(t, turn.WaitReason, "another request")

	f.set.Annotations[rollout.PausedAnnotation] = "true"
	_, err = f.client.AppsV1().DaemonSets(rollout.Namespace).Update(t.Context(), f.set, metav1.UpdateOptions{})
	require.NoError(t, err)
	assert.Contains(t, f.turn("a", 1, false).WaitReason, "paused")

	require.NoError(t, f.client.AppsV1().DaemonSets(rollout.Namespace).Delete(t.Context(), f.set.Name, metav1.DeleteOptions{}))
	assert.Contains(t, f.turn("a", 1, false).WaitReason, "is gone")
}

func TestNothingStartsWhileAnotherNodeHasFailed(t *testing.T) {
	f := newFleet(t, "a", "b", "c")
	a := f.on("a", 3)
	require.True(t, f.take("a", 3))
	yes, no := true, false
	for name, test := range map[string]struct {
		report rollout.Report
		mark   *bool
		want   string
	}{
		"at work":                        {rollout.Report{Phase: rollout.Installing}, &no, ""},
		"refused":                        {rollout.Report{Phase: rollout.Refused}, &no, "the roll-out is stopped at node a (Refused)"},
		"rolled back":                    {rollout.Report{Phase: rollout.RolledBack}, &yes, "the roll-out is stopped at node a (RolledBack)"},
		"not healthy":                    {rollout.Report{Phase: rollout.Failed}, &yes, "the roll-out is stopped at node a (Failed)"},
		"its label is gone":              {rollout.Report{Phase: rollout.RolledBack}, &no, "the roll-out is stopped at node a (RolledBack)"},
		"failed with an earlier request": {rollout.Report{Phase: rollout.RolledBack, RequestID: "earlier"}, &yes, ""},
		"failed in another pool":         {rollout.Report{Phase: rollout.RolledBack, Pool: "green"}, &yes, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if test.report.RequestID == "" {
				test.report.RequestID = request.ID()
			}
			if test.report.Pool == "" {
				test.report.Pool = "blue"
			}
			require.NoError(t, a.Report(t.Context(), test.report, test.mark))
			require.NoError(t, a.StopPool(t.Context(), request.ID()))
			turn := f.turn("b", 3, false)
			assert.Equal(t, test.want, turn.WaitReason)
			require.NoError(t, f.on("b", 3).ReleaseSlot(t.Context()))
			assert.Empty(t, f.turn("a", 3, false).WaitReason, "it does not wait for itself")
		})
	}
	require.NoError(t, a.Report(t.Context(), rollout.Report{RequestID: request.ID(), Pool: "blue", Phase: rollout.Failed, Attempt: "second"}, &yes))
	for attempt, want := range map[string]string{"first": "the roll-out is stopped at node a (Failed)", "second": ""} {
		resumed, err := a.Node(t.Context())
		require.NoError(t, err)
		metav1.SetMetaDataAnnotation(&resumed.ObjectMeta, rollout.ResumeAnnotation, attempt)
		_, err = f.client.CoreV1().Nodes().Update(t.Context(), resumed, metav1.UpdateOptions{})
		require.NoError(t, err)
		assert.Equal(t, want, f.turn("b", 3, false).WaitReason, "resume of the attempt %s", attempt)
		require.NoError(t, f.on("b", 3).ReleaseSlot(t.Context()))
	}
	require.NoError(t, f.client.CoreV1().Nodes().Delete(t.Context(), "a", metav1.DeleteOptions{}))
	assert.Empty(t, f.turn("b", 3, false).WaitReason, "a node that is gone holds nothing up")
}

// All slots were deleted.
func TestANodeThatHasFailedTakesASlotAgain(t *testing.T) {
	f := newFleet(t, "a", "b", "c")
	require.True(t, f.take("b", 1))
	mark := true
	require.NoError(t, f.on("a", 1).Report(t.Context(), rollout.Report{RequestID: request.ID(), Pool: "blue", Phase: rollout.RolledBack}, &mark))
	require.NoError(t, f.on("a", 1).StopPool(t.Context(), request.ID()))
	require.NoError(t, f.on("b", 1).ReleaseSlot(t.Context()))
	assert.Equal(t, "the roll-out is stopped at node a (RolledBack)", f.turn("c", 1, false).WaitReason)
}

func TestWhatANodeRefusesThatHasJoinedStopsNobody(t *testing.T) {
	f := newFleet(t, "a", "b")
	joined := node("a")
	joined.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, 0, 1, 0, time.UTC))
	turn, err := f.on("a", 1).TakeSlot(t.Context(), joined, request.ID(), true)
	require.NoError(t, err)
	assert.Equal(t, Turn{Joined: true, Slots: 1}, turn)
	assert.True(t, f.turn("b", 1, true).Slot, "a node that was there takes a slot to stop the roll-out")
}

// The token of a node may create slots for its node, and so all of them.
func TestSeveralSlotsOfANodeCountOnce(t *testing.T) {
	f := newFleet(t, "a", "b", "c", "d")
	for number := range 10 {
		require.NoError(t, f.on("a", 2).create(t.Context(), number, node("a"), nil))
	}
	assert.True(t, f.take("b", 2))
	assert.False(t, f.take("c", 2))
}

func TestRequestsDoNotGrowWithTheSlots(t *testing.T) {
	for _, slots := range []int{1, 10, 100} {
		var names []string
		for n := range slots + 2 {
			names = append(names, fmt.Sprintf("n%d", n))
		}
		f := newFleet(t, names...)
		taken := 0
		for _, name := range names[:slots] {
			assert.LessOrEqual(t, f.count(func() {
				for !f.take(name, slots) {
					t.Fatal("no slot")
				}
			}), 3, "DaemonSet, slots, and the slot")
			taken++
		}
		assert.Equal(t, slots, taken)
		assert.Equal(t, 2, f.count(func() { assert.False(t, f.take(names[slots], slots)) }), "a query in vain")
		f.age()
		assert.LessOrEqual(t, f.count(func() { assert.False(t, f.take(names[slots], slots)) }), 2+readHolders)
	}
}

// Others are quicker each time: the next query is soon enough.
func TestFewSlotsAreTriedAtATime(t *testing.T) {
	f := newFleet(t, "a")
	f.client.PrependReactor("create", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewAlreadyExists(coordinationv1.Resource("leases"), "x")
	})
	assert.Equal(t, 2+triedSlots, f.count(func() { assert.False(t, f.take("a", 100)) }))
}

func TestTheTaintOfAnUnguardedNodeIsRemoved(t *testing.T) {
	f := newFleet(t)
	n := node("a")
	n.Spec.Taints = []corev1.Taint{{Key: "other", Effect: corev1.TaintEffectNoExecute}, {Key: rollout.UnguardedTaint, Effect: corev1.TaintEffectNoSchedule}}
	_, err := f.client.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, f.on("a", 1).Untaint(t.Context(), n))
	got, err := f.on("a", 1).Node(t.Context())
	require.NoError(t, err)
	assert.Equal(t, n.Spec.Taints[:1], got.Spec.Taints)
	assert.Zero(t, f.count(func() { require.NoError(t, f.on("a", 1).Untaint(t.Context(), got)) }))
	assert.Error(t, f.on("a", 1).Untaint(t.Context(), n), "the taints are others meanwhile")
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
