package app

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

func TestRolloutUninstallListsHeldPods(t *testing.T) {
	t.Parallel()
	holding := func(t *testing.T) *cluster {
		c := rolledOut(t)
		c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
		c.rollouts.started = nil
		c.rollouts.leases = []string{rollout.SlotName("blue", 0)}
		c.node("blue-1").holding = true
		c.node("blue-1").pods = []guard.PodState{
			protectedPod("web", "front-1", 1), heldPod("web", "cache", 2, false, guard.PodVanished), heldPod("jobs", "import", 3, true, guard.Evicted),
		}
		return c
	}
	for name, test := range map[string]struct {
		verb      []string
		answers   string
		arguments []string
		err       string
		request   rollout.Target
	}{
		"yes is not enough": {arguments: []string{"--yes"}, err: "held pods that would be stopped: 2; nothing was done"},
		"no to the pods":    {answers: "n\n", err: "not confirmed"},
		"no to the change":  {answers: "y\nn\n", err: "not confirmed"},
		"yes to both":       {answers: "y\ny\n"},
		"a flag of its own": {arguments: []string{"--yes", "--release-held"}},
		"a dry run":         {arguments: []string{"--dry-run"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := holding(t)
			r := c.run(test.answers, append([]string{"rollout", "uninstall", "--pool", "blue"}, test.arguments...)...)
			require.Contains(t, r.out, "  web/cache on blue-1 (PodVanished)\n  jobs/import on blue-1 (Evicted)\n")
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
			}
			if test.err != "" || name == "a dry run" {
				require.Empty(t, c.rollouts.started)
				require.Equal(t, rollout.Enforce, c.requested("blue").Target)
				return
			}
			require.NoError(t, r.err)
			require.Equal(t, []string{"blue-1", "blue-2"}, c.rollouts.started)
			require.NotContains(t, c.rollouts.sets, "guard-installer-blue")
			require.Empty(t, c.rollouts.leases)
			require.False(t, c.node("blue-1").holding, "the stock kubelet would leave the condition as it was")
			require.Equal(t, http.StatusNotFound, c.node("blue-2").status, "the stock kubelet has no guard")
		})
	}
	t.Run("Enforce to Audit releases, too", func(t *testing.T) {
		t.Parallel()
		c := holding(t)
		r := c.run("", "rollout", "start", "--pool", "blue", "--mode", "Audit", "--yes")
		require.ErrorContains(t, r.err, "held pods that would be stopped: 2; nothing was done")
		require.Empty(t, c.rollouts.started)
		r = c.mustRun("", "rollout", "undo", "--pool", "blue", "--yes", "--release-held")
		require.Equal(t, []types.UID{uidOf(2), uidOf(3)}, c.requested("blue").ReleaseHeldUIDs, "those that were listed, and no other")
		require.Equal(t, rollout.Audit, c.requested("blue").Target)
	})
}

func TestRolloutUninstallAcceptsAStockVersion(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	var asked rollout.Request
	c.rollouts.stepped = func(set *appsv1.DaemonSet) { asked, _ = rollout.RequestOf(set) }
	c.mustRun("", "rollout", "uninstall", "--pool", "blue", "--yes", "--stock-version", "v1.38.0")
	require.Equal(t, "v1.38.0", asked.StockVersion)
	c = rolledOut(t)
	require.ErrorContains(t, c.run("", "rollout", "uninstall", "--pool", "blue", "--yes", "--stock-version", "1.38").err, "stockVersion")
}
