package app

import (
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"kubelet-guard.io/pkg/rollout"
)

// The brake is one request, whatever there is in the cluster.
func TestPauseIsOnePatch(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	unreadable(c, "green")
	c.lists = 0
	r := c.run("", "rollout", "pause", "--pool", "green", "--pool", "red", "--pool", "blue")
	require.ErrorContains(t, r.err, "there is no pool red")
	require.Equal(t, "green: paused\nblue: paused\n", r.out)
	require.Zero(t, c.lists)
	require.Len(t, c.writes, 3)
	for _, pool := range []string{"green", "blue"} {
		set := c.rollouts.sets[rollout.DaemonSetName(pool)]
		require.True(t, rollout.Paused(set))
		require.Equal(t, appsv1.OnDeleteDaemonSetStrategyType, set.Spec.UpdateStrategy.Type)
		require.Nil(t, set.Spec.UpdateStrategy.RollingUpdate)
	}
}

func TestRolloutPauseAndResume(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	r := c.mustRun("", "rollout", "pause", "--pool", "blue", "--pool", "green")
	require.Equal(t, "blue: paused\ngreen: paused\n", r.out)
	set := c.rollouts.sets["guard-installer-blue"]
	require.True(t, rollout.Paused(set))
	require.Equal(t, appsv1.OnDeleteDaemonSetStrategyType, set.Spec.UpdateStrategy.Type)

	r = c.mustRun("", "rollout", "resume", "--pool", "blue")
	set = c.rollouts.sets["guard-installer-blue"]
	require.False(t, rollout.Paused(set))
	require.Equal(t, intstr.FromString("100%"), *set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable)
}

func TestRolloutWithoutItsManifests(t *testing.T) {
	t.Parallel()
	require.EqualError(t, newCluster(t).run("", "rollout", "pause").err, "which pool? give --pool NAME; kubectl guard rollout status shows all")
}
