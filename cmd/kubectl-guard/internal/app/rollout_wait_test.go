package app

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
	"kubelet-guard.io/pkg/rollout"
)

func TestRolloutStartGivesUpWhereNothingMoves(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.pulling["blue-2"] = true
	var seconds atomic.Int64
	c.now = func() time.Time { return now.Add(time.Duration(seconds.Add(1)) * time.Second) }
	r := c.run("", append(start, "--yes", "--timeout=5m")...)
	require.EqualError(t, r.err, "nodes that cannot be changed: 1; no node was changed:\n  blue/blue-2: no report within 5m0s: ImagePullBackOff: no such image\nFix the causes, choose pools without these nodes, or continue without them with --leave-out=1")
	c.requireUntouched()

	c.rollouts.pulling["blue-1"] = true
	r = c.run("", append(start, "--yes", "--timeout=5m")...)
	require.ErrorContains(t, r.err, "pool blue: no progress for 5m0s; nodes done: 0 of 2\n  node blue-1: Pending; installer guard-installer-blue-blue-1: ImagePullBackOff: no such image\n")
	require.ErrorContains(t, r.err, "No node was changed.")
	require.Equal(t, exitcode.Timeout, exitcode.Of(r.err))
	c.requireUntouched()
}

func TestRolloutStartWatchesAPoolBeforeTheNext(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	var seconds atomic.Int64
	c.now = func() time.Time { return now.Add(time.Duration(seconds.Add(1)) * time.Second) }
	c.rollouts.stepped = func(*appsv1.DaemonSet) {
		if seconds.Load() > 60 {
			c.node("blue-1").notReady = true
		}
	}
	r := c.run("", append(start, "--yes", "--pause-between-pools=10m")...)
	require.ErrorContains(t, r.err, "node blue-1 of pool blue was changed and is not ready any more")
	require.ErrorContains(t, r.err, "not started: green")
	require.Contains(t, r.out, "blue: watched for 10m0s before pool green (nodes: 1)\n")
}

func TestRolloutNoticesThatAnotherUserChangesThePool(t *testing.T) {
	t.Parallel()
	other := func(c *cluster, pool string) {
		set := c.rollouts.sets[rollout.DaemonSetName(pool)]
		pools, err := rollout.PoolOf(set)
		assert.NoError(t, err)
		changed, err := rollout.DaemonSet(pools, rollout.Request{Target: rollout.Audit, Image: "another/users:1"})
		assert.NoError(t, err)
		set.Spec = changed.Spec
	}
	t.Run("while it waits", func(t *testing.T) {
		t.Parallel()
		c := twoPools(t)
		c.rollouts.stepped = func(set *appsv1.DaemonSet) {
			if len(c.rollouts.started) == 1 {
				other(c, "blue")
			}
		}
		require.ErrorContains(t, c.run("", append(start, "--yes")...).err, "pool blue: another user has changed it meanwhile: its request is Audit, image another/users:1")
		require.Equal(t, "another/users:1", c.requested("blue").Image)
	})
	t.Run("while the question is open", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		c.node("blue-2").asked = func(*fakeNode) { other(c, "blue") }
		require.ErrorContains(t, c.run("", "rollout", "undo", "--pool", "blue", "--yes").err, "another user has changed it meanwhile")
		require.Equal(t, "another/users:1", c.requested("blue").Image)
	})
	t.Run("while installers inspect", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		c.rollouts.stepped = func(*appsv1.DaemonSet) {
			if c.requested("blue").Target == rollout.Observe {
				other(c, "blue")
			}
		}
		require.ErrorContains(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err, "another user has changed it meanwhile")
		require.Equal(t, "another/users:1", c.requested("blue").Image, "not overwritten")
	})
}

func TestRolloutStartPrintsThatItWasPaused(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	looks := 0
	c.rollouts.stepped = func(set *appsv1.DaemonSet) {
		if len(c.rollouts.started) == 1 {
			looks++
			set.Annotations[rollout.PausedAnnotation] = strconv.FormatBool(looks < 10)
		}
	}
	r := c.mustRun("", append(start, "--yes")...)
	// Nodes and DaemonSet come by different ways, so one of the two may be a look behind.
	require.Contains(t, r.out, "blue: paused; kubectl guard rollout resume --pool blue continues\n")
	require.Contains(t, r.out, "blue: resumed\nblue/blue-2: Done\n")
}
