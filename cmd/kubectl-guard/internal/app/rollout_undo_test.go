package app

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

func TestRolloutUndoGoesBackOneStepAfterTheOther(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
	r := c.mustRun("y\n", "rollout", "undo", "--pool", "blue")
	golden(t, "rollout-undo.txt", r.out, false)
	require.Equal(t, rollout.Audit, c.requested("blue").Target)
	require.Equal(t, guard.Audit, c.node("blue-1").mode)

	r = c.mustRun("", "rollout", "undo", "--pool", "blue", "--yes")
	require.Equal(t, stock, c.node("blue-1").version)
	require.NotContains(t, c.rollouts.sets, "guard-installer-blue", "what was before the first roll-out needs no installers")
	require.NotContains(t, c.node("blue-1").annotations, rollout.ReportAnnotation)
	require.Equal(t, guard.Audit, c.node("green-1").mode)
}

func TestRolloutUndoLeavesNodesAloneThatWereNotChanged(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	c.rollouts.installed["broken"] = guarded
	c.rollouts.outcome["blue-1"] = rollout.RolledBack
	r := c.run("", "rollout", "start", "--pool", "blue", "--image", "broken", "--yes")
	require.ErrorContains(t, r.err, "pool blue stopped at node blue-1")
	delete(c.rollouts.outcome, "blue-1")
	c.rollouts.started = nil
	r = c.mustRun("", "rollout", "undo", "--pool", "blue", "--yes")
	require.Equal(t, installerImage, c.requested("blue").ImageName)
}

func TestRolloutUndoOfAnInspectionRemovesTheInstallers(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	require.Error(t, c.run("y\ny\nn\n", start...).err)
	r := c.mustRun("", "rollout", "undo", "--pool", "green", "--dry-run")
	require.Equal(t, "green: no node was changed; its installers go (dry run)\n", r.out)
	r = c.mustRun("", "rollout", "undo", "--pool", "green")
	require.Equal(t, "green: no node was changed; its installers are gone\n", r.out)
	require.NotContains(t, c.rollouts.sets, "guard-installer-green")
}

// A yes is for the pods that were listed, whatever is held by the time of the next node.
func TestRolloutReleasesOnlyWhatItHasListed(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
	r := c.mustRun("", "rollout", "undo", "--pool", "blue", "--yes", "--release-held")
	require.Empty(t, c.requested("blue").ReleaseHeldUIDs, "nothing was listed")

	c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
	c.node("blue-1").pods = []guard.PodState{heldPod("web", "cache", 2, false, guard.PodVanished)}
	c.node("blue-2").status = http.StatusServiceUnavailable
	r = c.mustRun("", "rollout", "undo", "--pool", "blue", "--yes", "--release-held")
	require.Contains(t, r.errOut, "blue-2 (NoAnswer)")
	require.Equal(t, []types.UID{uidOf(2)}, c.requested("blue").ReleaseHeldUIDs)

	// The yes is for one time: the next request does not have it, and the history neither.
	c.node("blue-2").status = 0
	c.node("blue-1").pods = nil
	c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
	require.Empty(t, c.requested("blue").ReleaseHeldUIDs)
	require.NotContains(t, c.rollouts.sets["guard-installer-blue"].Annotations[pool.HistoryAnnotation], string(uidOf(2)))
}

// After an inspection that was interrupted, undo returns to the request before, without its yes.
func TestRolloutUndoOfAnInspectionReleasesNothing(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err)
	c.node("blue-1").pods = []guard.PodState{heldPod("web", "cache", 2, false, guard.PodVanished)}
	require.NoError(t, c.run("", "rollout", "undo", "--pool", "blue", "--yes", "--release-held").err)
	c.node("blue-1").pods = nil

	observing := c.requested("blue")
	require.Equal(t, []types.UID{uidOf(2)}, observing.ReleaseHeldUIDs)
	observing.Target, observing.ReleaseHeldUIDs = rollout.Observe, nil
	set := c.rollouts.sets["guard-installer-blue"]
	blue, err := rollout.PoolOf(set)
	require.NoError(t, err)
	inspecting, err := rollout.DaemonSet(blue, observing)
	require.NoError(t, err)
	set.Spec.Template = inspecting.Spec.Template

	require.NoError(t, c.run("", "rollout", "undo", "--pool", "blue", "--yes").err)
	require.Equal(t, rollout.Audit, c.requested("blue").Target)
	require.Empty(t, c.requested("blue").ReleaseHeldUIDs)
}
