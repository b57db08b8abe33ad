package node

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/guard-installer/internal/cluster"
	"kubelet-guard.io/pkg/rollout"
)

// runFor runs an installer in a bubble for a time of its clock.
func runFor(w *world, installer *Installer, d time.Duration) {
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	defer cancel()
	require.NoError(w.t, installer.Run(ctx))
}

// What a node asks of the API server when nothing happens, in an hour.
func TestRequestsOfAnHour(t *testing.T) {
	for name, c := range map[string]struct {
		target  rollout.Target
		prepare func(w *world)
		asked   int
		reports int
	}{
		"done":                  {rollout.Stock, func(*world) {}, 12, 1},
		"observed":              {rollout.Observe, func(*world) {}, 12, 1},
		"waits, one of 5,000":   {rollout.Audit, func(w *world) { w.slot, w.waiting = false, 5000 }, 40, 7},
		"not healthy":           {rollout.Audit, func(w *world) { w.node.Status.Conditions[0].Status = corev1.ConditionFalse }, 250, 7},
		"refuses to be changed": {rollout.Observe, func(w *world) { w.image(program("version=" + stockVersion)) }, 80, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				c.prepare(w)
				w.asked = 0
				runFor(w, w.installer(request(c.target)), time.Hour)
				t.Logf("%d requests, %d of them reports", w.asked, len(w.reports))
				assert.LessOrEqual(t, w.asked, c.asked)
				assert.LessOrEqual(t, len(w.reports), c.reports)
				assert.NotEmpty(t, w.reports)
			})
		})
	}
}

func TestAReportIsWrittenOnceAndAgainWhenItIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		installer := w.installer(request(rollout.Stock))
		runFor(w, installer, 10*time.Minute)
		require.Len(t, w.reports, 1)
		delete(w.node.Annotations, rollout.ReportAnnotation)
		runFor(w, installer, 2*time.Hour)
		assert.Len(t, w.reports, 2)
		assert.Contains(t, w.node.Annotations, rollout.ReportAnnotation)
		// A new process finds it there.
		runFor(w, w.installer(request(rollout.Stock)), time.Minute)
		assert.Len(t, w.reports, 2)
	})
}

func TestInstallersInLineQueryTogetherAsOftenAsSlotsGetFree(t *testing.T) {
	for _, c := range []struct {
		unready, slots int
		least, most    time.Duration
	}{
		{1, 1, soonest / 2, 3 * soonest / 2},
		{100, 1, time.Minute, 5 * time.Minute},
		{100, 100, 15 * time.Second, 51 * time.Second},
		{5000, 1, latest / 2, 3 * latest / 2},
		{5000, 100, 13 * time.Minute, 42 * time.Minute},
	} {
		for range 100 {
			wait := inLinePause(cluster.Turn{Unready: c.unready, Slots: c.slots})
			assert.True(t, c.least <= wait && wait <= c.most, "%+v: %s", c, wait)
		}
	}
}

func TestANodeInLineIsInspectedAgainWhenItIsItsTurn(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.slot = false
		installer := w.installer(request(rollout.Audit))
		step := func() rollout.Report {
			report := step(t, installer)
			require.NoError(t, installer.writeReport(t.Context(), report))
			return report
		}
		assert.Equal(t, rollout.Waiting, step().Phase)
		w.asked = 0
		assert.Equal(t, rollout.Waiting, step().Phase)
		assert.Equal(t, 1, w.asked, "nothing but the slot")
		w.slot = true
		w.node.Status.Conditions[0].Status = corev1.ConditionFalse
		report := step()
		assert.Equal(t, rollout.Waiting, report.Phase)
		assert.Equal(t, rollout.ReasonNode, report.Reason)
		assert.False(t, w.slotTaken, "the slot is released")
		w.node.Status.Conditions[0].Status = corev1.ConditionTrue
		w.slot = false
		require.Equal(t, rollout.Waiting, step().Phase)
		w.slot, w.slotQueries = true, 0
		assert.Equal(t, rollout.Done, step().Phase)
		assert.Equal(t, 1, w.slotQueries, "the slot is not requested twice")
	})(t)
}

func TestANodeThatHasJoinedRefusesWithoutASlot(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.joined = true
		w.image(program("version=" + stockVersion))
		report := w.run(request(rollout.Audit))
		assert.Equal(t, rollout.Refused, report.Phase)
		assert.False(t, w.slotTaken)
		assert.False(t, w.stopped)
	})(t)
}

func TestTheSlotIsReleasedWhenTheNodeLeavesThePool(t *testing.T) {
	for name, c := range map[string]struct {
		labels map[string]string
		want   bool
	}{"it is in the pool": {map[string]string{"x": "y"}, true}, "it has left": {nil, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.image(program("version=" + stockVersion))
				w.node.Labels = c.labels
				runFor(w, w.installer(request(rollout.Audit)), time.Minute)
				require.Equal(t, rollout.Refused, w.reports[len(w.reports)-1].Phase)
				assert.Equal(t, c.want, w.slotTaken)
			})
		})
	}
}

func TestTheTaintGoesWhenTheNodeIsGuarded(t *testing.T) {
	timeless(func(t *testing.T) {
		for target, left := range map[rollout.Target]int{rollout.Audit: 0, rollout.Stock: 1} {
			w := newWorld(t)
			w.node.Spec.Taints = []corev1.Taint{{Key: rollout.UnguardedTaint, Effect: corev1.TaintEffectNoSchedule}}
			require.Equal(t, rollout.Done, w.run(request(target)).Phase)
			assert.Len(t, w.node.Spec.Taints, left, target)
		}
	})(t)
}

// A taint that cannot be removed is tried again, with the Node as it is then.
func TestATaintThatStaysIsTriedAgain(t *testing.T) {
	inWorld(func(t *testing.T, w *world) {
		w.node.Spec.Taints = []corev1.Taint{{Key: rollout.UnguardedTaint, Effect: corev1.TaintEffectNoSchedule}}
		installer := w.installer(request(rollout.Audit))
		failing := &failingTaint{world: w, failures: 1}
		installer.Cluster = failing
		report := step(t, installer)
		require.Error(t, installer.writeReport(t.Context(), report))
		require.NoError(t, installer.writeReport(t.Context(), report))
		assert.Empty(t, w.node.Spec.Taints)
	})(t)
}

type failingTaint struct {
	*world
	failures int
}

func (f *failingTaint) Untaint(ctx context.Context, node *corev1.Node) error {
	if f.failures--; f.failures >= 0 {
		return errors.New("the taints are others")
	}
	return f.world.Untaint(ctx, node)
}

func TestWhatCountsAsTheSameReport(t *testing.T) {
	now := time.Now()
	base := rollout.Report{RequestID: "1", Phase: rollout.Waiting, Message: "a", Containers: 3, Time: metav1.NewTime(now.Add(-time.Minute))}
	for name, c := range map[string]struct {
		change func(r *rollout.Report)
		age    time.Duration
		phase  rollout.Phase
		want   bool
	}{
		"the time":                        {func(*rollout.Report) {}, 0, rollout.Done, true},
		"the message, while it waits":     {func(r *rollout.Report) { r.Message = "b"; r.Containers = 4 }, 0, rollout.Waiting, true},
		"the message, after a while":      {func(r *rollout.Report) { r.Message = "b" }, sameMessage, rollout.Waiting, false},
		"the message of another phase":    {func(r *rollout.Report) { r.Message = "b" }, 0, rollout.Refused, false},
		"the reason":                      {func(r *rollout.Report) { r.Reason = rollout.ReasonNode }, 0, rollout.Waiting, false},
		"what runs, while it waits":       {func(r *rollout.Report) { r.Now.Version = "v1.36.4" }, 0, rollout.Waiting, false},
		"another request, while it waits": {func(r *rollout.Report) { r.RequestID = "2" }, 0, rollout.Waiting, false},
	} {
		old := base
		old.Phase = c.phase
		report := old
		report.Time = metav1.NewTime(now)
		c.change(&report)
		assert.Equal(t, c.want, unchanged(old, report, now.Add(c.age)), fmt.Sprint(name))
	}
}

// What a whole change asks of the API server, and what its settle time has of that.
func TestRequestsOfAChange(t *testing.T) {
	for settle, most := range map[time.Duration]int{15 * time.Second: 20, 2 * time.Minute: 41} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.waiting = 0
			installer := w.installer(rollout.Request{Target: rollout.Audit, Image: "image", Settle: metav1.Duration{Duration: settle}})
			installer.Poll = time.Second
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			installer.SetReady = func(ready bool) error {
				if ready {
					cancel()
				}
				return nil
			}
			require.NoError(t, installer.Run(ctx))
			require.Equal(t, rollout.Done, w.reports[len(w.reports)-1].Phase)
			t.Logf("settles for %s: %d requests", settle, w.asked)
			assert.LessOrEqual(t, w.asked, most)
		})
	}
}
