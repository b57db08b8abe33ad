package app

import (
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

func TestRolloutResumeRetriesANode(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.outcome["blue-1"] = rollout.RolledBack
	require.Error(t, c.run("", append(start, "--yes")...).err)

	r := c.run("n\n", "rollout", "resume", "--pool", "blue")
	require.ErrorContains(t, r.err, "not confirmed")
	require.Equal(t, rollout.StateFailed, c.node("blue-1").labels[rollout.StateLabel])

	require.ErrorContains(t, c.run("y\n", "rollout", "resume", "--pool", "blue").err, "pool blue stopped at node blue-1", "it fails again")

	c.rollouts.outcome["blue-1"] = rollout.Done
	r = c.mustRun("", "rollout", "resume", "--pool", "blue", "--yes")
	require.Equal(t, []string{"blue-1", "blue-1", "blue-1", "blue-2"}, c.rollouts.started)
	require.NotContains(t, c.node("blue-1").labels, rollout.StateLabel)
	require.Contains(t, c.node("blue-1").annotations, rollout.ResumeAnnotation)

	require.ErrorContains(t, c.run("", "rollout", "resume", "--pool", "green").err, "pool green is only inspected; to change it, run kubectl guard rollout start --pool green")
}

func TestRolloutResumeGivesARefusalTimeToGo(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	c.rollouts.outcome["blue-1"] = rollout.Refused
	require.ErrorContains(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err, "pool blue stopped at node blue-1: Refused")

	var seconds atomic.Int64
	c.now = func() time.Time { return now.Add(time.Duration(seconds.Add(1)) * time.Second) }
	c.rollouts.refused["blue-1"] = "the node is not ready"
	r := c.run("", "rollout", "resume", "--pool", "blue", "--yes")
	require.ErrorContains(t, r.err, "pool blue stopped at node blue-1: Refused", "the reason is still there")
	require.Greater(t, seconds.Load(), int64(45), "an installer retries every 15 s")

	c.rollouts.stepped = func(*appsv1.DaemonSet) { c.rollouts.refused, c.rollouts.outcome = nil, nil }
	r = c.mustRun("", "rollout", "resume", "--pool", "blue", "--yes")
	require.Equal(t, guard.Enforce, c.node("blue-2").mode)
}

func TestRolloutDoesNotContinueWithABlanketYesOfAnEarlierRelease(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	set := c.rollouts.sets["guard-installer-blue"]
	request := c.requested("blue")
	request.ReleaseHeld = true
	data, err := json.Marshal(request)
	require.NoError(t, err)
	set.Spec.Template.Annotations[rollout.RequestAnnotation] = string(data)
	require.NoError(t, c.run("", "rollout", "status").err, "it can still be shown")
	require.ErrorContains(t, c.run("", "rollout", "resume", "--pool", "blue", "--yes").err, "pool blue: its request is of an earlier release and lets every held pod stop")
	c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
	require.False(t, c.requested("blue").ReleaseHeld)
}
