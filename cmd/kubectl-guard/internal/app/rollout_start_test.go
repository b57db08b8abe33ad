package app

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

func TestRolloutStartDoesOnePoolAfterTheOther(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	r := c.mustRun("y\ny\ny\n", start...)
	golden(t, "rollout-start.txt", r.out, false)
	require.Equal(t, []string{"blue-1", "blue-2", "green-1"}, c.rollouts.started)
	require.Equal(t, rollout.Request{
		Target: rollout.Audit, Image: installerDigest, ImageName: installerImage, KubeletVersion: guarded, KubeletChecksums: map[string]string{"amd64": strings.Repeat("5", 64)},
	}, c.requested("blue"), "tied to what the nodes were offered when they were inspected")
	require.Equal(t, stock, c.node("other-1").version)
}

func TestRolloutStartInspectsAllNodesBeforeItChangesOne(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.stepped = func(set *appsv1.DaemonSet) {
		request, err := rollout.RequestOf(set)
		assert.NoError(t, err)
		pace := *set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable
		if request.Target == rollout.Observe {
			assert.Equal(t, intstr.FromString("100%"), pace, "nothing is changed, so all may be inspected at once")
			return
		}
		assert.Equal(t, intstr.FromString("100%"), pace, "the slots are the pace")
		assert.NotEmpty(t, set.Annotations[rollout.StartedAnnotation])
		for _, name := range []string{"blue-1", "blue-2", "green-1"} {
			assert.Contains(t, c.node(name).annotations, rollout.ReportAnnotation)
		}
	}
	c.mustRun("", append(start, "--yes")...)
}

func TestRolloutStartRevertsWhatItStarted(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare   func(*cluster)
		answers   string
		arguments []string
		err       string
	}{
		"no to the plan":   {answers: "n\n", err: "not confirmed, nothing was done"},
		"no to the change": {answers: "y\nn\n", err: "not confirmed, nothing was done"},
		"a node that refuses": {
			prepare: func(c *cluster) {
				c.rollouts.refused["green-1"] = "its kubelet has the guard from somewhere else"
			},
			arguments: []string{"--yes"},
			err:       "nodes that cannot be changed: 1; no node was changed:\n  green/green-1: Refused: its kubelet has the guard from somewhere else\nThese are all nodes of pool green. Fix the causes, or choose another pool",
		},
		"a tag that was moved": {
			prepare:   func(c *cluster) { c.rollouts.checksums["blue-2"] = strings.Repeat("6", 64) },
			arguments: []string{"--yes"},
			err:       "its tag was moved",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			if test.prepare != nil {
				test.prepare(c)
			}
			require.ErrorContains(t, c.run(test.answers, append(start, test.arguments...)...).err, test.err)
			c.requireUntouched()
		})
	}
}

func TestRolloutStartRestoresAPoolThatWasRolledOutBefore(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	before := c.rollouts.sets["guard-installer-blue"].DeepCopy()
	c.rollouts.installed["newer"] = "v1.36.4+guard.0.2.0"
	r := c.run("y\nn\n", "rollout", "start", "--pool", "blue", "--image", "newer")
	require.ErrorContains(t, r.err, "not confirmed")
	require.Contains(t, r.out, "v1.36.4+guard.0.2.0", "what the nodes would get")
	after := c.rollouts.sets["guard-installer-blue"]
	require.Equal(t, before.Spec, after.Spec)
	require.Equal(t, before.Annotations, after.Annotations)
	require.Empty(t, c.rollouts.started)
}

func TestRolloutStartStopsAtANodeThatFails(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.outcome["blue-1"] = rollout.RolledBack
	r := c.run("", append(start, "--yes")...)
	require.Error(t, r.err)
	golden(t, "rollout-stopped.txt", r.err.Error()+"\n", true)
	require.Equal(t, []string{"blue-1"}, c.rollouts.started)
	require.Equal(t, rollout.Observe, c.requested("green").Target)

	require.ErrorContains(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Audit", "--yes").err, "is stopped at node blue-1")

	r = c.mustRun("", "rollout", "status")
	golden(t, "rollout-status-stopped.table", r.out, false)
}

func TestRolloutStartNeedsAuditBeforeEnforce(t *testing.T) {
	t.Parallel()
	enforce := []string{"rollout", "start", "--pool", "blue=pool=blue", "--mode", "Enforce", "--image", installerImage}
	for name, test := range map[string]struct {
		answers   string
		arguments []string
		err       string
	}{
		"yes is not enough":    {arguments: []string{"--yes"}, err: "--mode=Enforce needs --skip-audit where Audit has not run; nothing was done"},
		"the answer is no":     {answers: "n\n", err: "not confirmed"},
		"the answer is yes":    {answers: "y\ny\ny\n"},
		"a flag of its own":    {arguments: []string{"--yes", "--skip-audit"}},
		"no answer":            {err: "not confirmed"},
		"a flag and questions": {answers: "y\ny\n", arguments: []string{"--skip-audit"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			r := c.run(test.answers, append(enforce, test.arguments...)...)
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
				c.requireUntouched()
				return
			}
			require.NoError(t, r.err)
			require.Equal(t, rollout.Enforce, c.requested("blue").Target)
		})
	}
	t.Run("after Audit there is nothing to ask", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		r := c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
		require.Empty(t, r.errOut)
		require.Equal(t, installerImage, c.requested("blue").ImageName)
		require.Equal(t, guard.Enforce, c.node("blue-2").mode)
		require.Equal(t, guard.Audit, c.node("green-1").mode)
	})
}

func TestRolloutStartAgain(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	r := c.mustRun("", append(start, "--yes")...)
	require.Contains(t, r.out, "Pool green has converged; there is nothing to do.")
	require.Empty(t, c.writes)

	c.mustRun("", "rollout", "pause", "--pool", "blue")
	c.rollouts.sets["guard-installer-blue"].Status.NumberAvailable = 0
	require.ErrorContains(t, c.run("", append(start, "--yes")...).err, "pool blue already has this request and is paused")
}

func TestRolloutStartContinuesAfterItWasLeft(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	r := c.run("y\ny\nn\n", start...)
	require.ErrorContains(t, r.err, "not started: green. The same command continues")
	require.Equal(t, []string{"blue-1", "blue-2"}, c.rollouts.started)
	r = c.mustRun("", append(start, "--yes")...)
	require.Equal(t, []string{"blue-1", "blue-2", "green-1"}, c.rollouts.started)
}

func TestRolloutStartRefusesPoolsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	flags := []string{"--mode", "Audit", "--image", installerImage, "--yes"}
	for name, test := range map[string]struct {
		arguments []string
		prepare   func(*cluster)
		err       string
	}{
		"none":                {err: "which nodes? give --pool NAME=SELECTOR"},
		"unknown":             {arguments: []string{"--pool", "red"}, err: "there is no pool red; to make one, select its nodes: --pool red=SELECTOR"},
		"empty":               {arguments: []string{"--pool", "red=pool=red"}, err: "no node matches pool=red, so pool red is empty"},
		"every node":          {arguments: []string{"--pool", "all="}, err: "an empty selector would select every node"},
		"no selector":         {arguments: []string{"--pool", "red=pool in"}, err: "selector"},
		"a bad name":          {arguments: []string{"--pool", "Red=pool=blue"}, err: "name: Invalid value"},
		"twice":               {arguments: []string{"--pool", "blue=pool=blue", "--pool", "blue=pool=green"}, err: "pool blue is given twice"},
		"a node in two":       {arguments: []string{"--pool", "blue=pool=blue", "--pool", "some=pool in (blue,green)"}, err: "node blue-1 is in pool blue and in pool some"},
		"another mode":        {arguments: []string{"--pool", "blue=pool=blue", "--mode", "Stock"}, err: `"Stock" is neither Audit nor Enforce; the stock kubelet comes back with kubectl guard rollout uninstall`},
		"no number":           {arguments: []string{"--pool", "blue=pool=blue", "--max-unavailable", "0"}, err: "--max-unavailable"},
		"output for programs": {arguments: []string{"--pool", "blue=pool=blue", "-o", "yaml"}, err: "--output goes with --dry-run=client"},
		"a configuration that is wrong": {
			arguments: []string{"--pool", "blue=pool=blue", "--guard-config", "testdata/rollout-start.txt"}, err: "configuration: Invalid value",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			if test.prepare != nil {
				test.prepare(c)
			}
			// The flags of the case last: they count.
			require.ErrorContains(t, c.run("", append(append([]string{"rollout", "start"}, flags...), test.arguments...)...).err, test.err)
			require.Empty(t, c.writes)
		})
	}
	t.Run("other nodes than before", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		r := c.run("", append([]string{"rollout", "start", "--pool", "blue=pool=other"}, flags...)...)
		require.ErrorContains(t, r.err, "pool blue has the nodes with pool=blue; to change that, uninstall it first")
		require.ErrorContains(t, c.run("", append([]string{"rollout", "start", "--pool", "other=pool in (other,green)"}, flags...)...).err, "node green-1 is in pool green and in pool other")
	})
	for name, test := range map[string]struct {
		arguments []string
		err       string
	}{
		"no image": {arguments: []string{"--mode", "Audit"}, err: "which image?"},
		"no mode":  {arguments: []string{"--image", installerImage}, err: "which mode?"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.ErrorContains(t, twoPools(t).run("", append(startBlue[:4:4], test.arguments...)...).err, test.err)
		})
	}
}

func TestRolloutStartWithANodeThatIsAway(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.node("blue-2").notReady = true
	r := c.mustRun("", append(startBlue, "--yes", "--max-unavailable", "100%", "--many-at-once")...)
	require.Contains(t, r.out, "blue: nodes done: 1 of 2")
	require.Contains(t, r.errOut, "Warning: nodes that are not ready, and will be changed when they are: blue-2\n")
	pool, err := rollout.PoolOf(c.rollouts.sets["guard-installer-blue"])
	require.NoError(t, err)
	require.Equal(t, 2, pool.MaxUnavailable)

	require.ErrorContains(t, c.run("", "rollout", "uninstall", "--pool", "blue", "--yes").err, "the installers stay for the nodes that are not ready: blue-2")
	require.Contains(t, c.rollouts.sets, "guard-installer-blue")
}

func TestRolloutStartDryRun(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	r := c.mustRun("", append(start, "--dry-run")...)
	require.Contains(t, r.out, "Pool green: selector pool=green, nodes 1, max unavailable 1\n")
	require.Empty(t, c.writes)

	r = c.mustRun("", append(startBlue, "--dry-run=client", "-o", "yaml")...)
	golden(t, "rollout-start-dry-run.yaml", r.out, true)

	r = c.mustRun("", append(start, "--dry-run=server")...)
	require.Contains(t, r.out, "green: DaemonSet guard-installer-green accepted (server dry run)\n")
	require.Len(t, c.writes, 2)
	require.Contains(t, c.writes[0], "?dryRun=All ")
	c.requireUntouched()
}

func TestRolloutStartWithAConfiguration(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	file := filepath.Join(t.TempDir(), "guard.yaml")
	text := "apiVersion: config.kubelet-guard.io/v1alpha1\nkind: GuardConfiguration\nallowedCauses: [NodeShutdown]\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c.mustRun("", append(start, "--yes", "--guard-config", file)...)
	require.Equal(t, text, c.requested("blue").Configuration)

	c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
	require.Equal(t, text, c.requested("blue").Configuration, "kept")
}

func TestRolloutStartDoesNotTakeAReportForTheTruth(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.lying["blue-2"] = guarded
	r := c.run("", append(start, "--yes")...)
	require.ErrorContains(t, r.err, "node blue-2 reports v1.36.3+guard.0.2.0 in Audit, but its kubelet responds with v1.36.3+guard.0.2.0;")
	require.ErrorContains(t, r.err, "not started: green")
}

// A node that reports Done, and has registered with another kubelet, is not done.
func TestRolloutReportIsComparedWithTheNode(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.lying["blue-2"] = stock
	const why = `blue-2: Unguarded: it reports that it is done with v1.36.3+guard.0.2.0, but its kubelet has registered with the version "v1.36.3"; inspect the node before anything else is changed: kubectl guard status blue-2`
	r := c.run("", append(start, "--yes")...)
	require.ErrorContains(t, r.err, "pool blue stopped at node "+why)
	require.NotContains(t, r.err.Error(), "it runs")
	require.Equal(t, exitcode.Stopped, exitcode.Of(r.err))
	require.Equal(t, []string{"blue-1", "blue-2"}, c.rollouts.started, "no further pool")

	r = c.mustRun("", "rollout", "status", "--pool", "blue")
	require.Regexp(t, `blue +Stopped +Audit +2 +1 +0 +1 +0`, r.out)
	require.Regexp(t, `blue-2 +blue +Unguarded +<none> +<none>`, r.out)
	require.Contains(t, r.out, "\n"+why+"\n")
	r = c.run("", "rollout", "status", "--pool", "blue", "--wait")
	require.Equal(t, exitcode.Stopped, exitcode.Of(r.err))
}

// Where two pools select a node, it belongs to that of its report.
func TestRolloutStatusNamesThePoolThatANodeBelongsTo(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.mustRun("", append(start, "--yes")...)
	c.node("green-1").labels["pool"] = "blue"
	set := c.rollouts.sets["guard-installer-green"]
	pool, err := rollout.PoolOf(set)
	require.NoError(t, err)
	pool.Selector = "pool"
	request, err := rollout.RequestOf(set)
	require.NoError(t, err)
	wide, err := rollout.DaemonSet(pool, request)
	require.NoError(t, err)
	set.Spec = wide.Spec
	const why = "blue-1: Pending: its report is that of pool blue, which selects the node, too; a node must be in one pool only\n"
	r := c.mustRun("", "rollout", "status", "--pool", "green")
	require.Contains(t, r.out, "\n"+why)
	require.NotContains(t, r.out, "\ngreen-1: Pending", "it belongs to this pool")
	r = c.run("", "rollout", "status", "--pool", "blue")
	require.NotContains(t, r.out, "\nblue-1: Pending")
	require.Contains(t, r.out, "\ngreen-1: Pending: its report is that of pool green")
}

// Nodes that are not ready hold nobody up, however many they are.
func TestRolloutStartWithMoreNodesAwayThanSlots(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.node("blue-1").notReady = true
	r := c.mustRun("", append(startBlue, "--yes")...)
	require.Contains(t, r.out, "blue: nodes done: 1 of 2")
}

func TestRolloutStartSettles(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	for _, arguments := range [][]string{{"--settle", "1s"}, {"--settle", "10m"}, {"--verify-timeout", "15s"}, {"--verify-timeout", "6m"}} {
		require.ErrorContains(t, c.run("", append(append([]string{}, start...), arguments...)...).err, arguments[0]+": ")
	}
	require.ErrorContains(t, c.run("", append(append([]string{}, start...), "--settle", "2m", "--verify-timeout", "90s")...).err, "settle: Invalid value: \"2m0s\": must be shorter than verifyTimeout (1m30s)")
	c.requireUntouched()

	c.mustRun("", append(append([]string{}, start...), "--yes", "--settle", "2m")...)
	require.Equal(t, 2*time.Minute, c.requested("blue").SettleTime())
	require.Equal(t, 165*time.Second, c.requested("blue").Verify())

	// It stays so until another is given.
	c.mustRun("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes", "--verify-timeout", "4m")
	require.Equal(t, 2*time.Minute, c.requested("blue").SettleTime())
	require.Equal(t, 4*time.Minute, c.requested("blue").Verify())
}
