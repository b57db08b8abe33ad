package cli

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// start is the first roll-out of both pools of twoPools.
var start = []string{"rollout", "start", "--pool", "blue=pool=blue", "--pool", "green=pool=green", "--mode", "Audit", "--image", installerImage}

// rolledOut is twoPools after start.
func rolledOut(t *testing.T) *cluster {
	c := twoPools(t)
	r := c.run("", append(start, "--yes")...)
	require.NoError(t, r.err, r.errOut)
	c.rollouts.begun, c.writes = nil, nil
	return c
}

// requested is what the template of a pool asks for.
func (c *cluster) requested(pool string) rollout.Request {
	c.t.Helper()
	set := c.rollouts.sets[rollout.DaemonSetName(pool)]
	require.NotNil(c.t, set, "the pool has no DaemonSet")
	request, err := rollout.RequestOf(set)
	require.NoError(c.t, err)
	return request
}

// requireUntouched demands that no node was changed and nothing of a roll-out is left.
func (c *cluster) requireUntouched() {
	c.t.Helper()
	require.Empty(c.t, c.rollouts.begun)
	require.Empty(c.t, c.rollouts.sets)
	for _, n := range c.nodes {
		require.NotContains(c.t, n.annotations, rollout.ReportAnnotation)
		require.NotContains(c.t, n.annotations, rollout.ResumeAnnotation)
		require.NotContains(c.t, n.labels, rollout.StateLabel)
	}
}

func TestRolloutStartDoesOnePoolAfterTheOther(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	r := c.run("y\ny\ny\n", start...)
	require.NoError(t, r.err, r.errOut)
	golden(t, "rollout-start.txt", r.out, false)
	require.Equal(t, []string{"blue-1", "blue-2", "green-1"}, c.rollouts.begun)
	require.Equal(t, rollout.Request{
		Target: rollout.Audit, Image: installerDigest, ImageName: installerImage, KubeletVersion: guarded, KubeletChecksums: map[string]string{"amd64": strings.Repeat("5", 64)},
	}, c.requested("blue"), "tied to what the nodes were offered when they looked")
	require.Equal(t, stock, c.node("other-1").version)
}

func TestRolloutStartLooksAtAllNodesBeforeItChangesOne(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.stepped = func(set *appsv1.DaemonSet) {
		request, err := rollout.RequestOf(set)
		assert.NoError(t, err)
		pace := *set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable
		if request.Target == rollout.Observe {
			assert.Equal(t, intstr.FromString("100%"), pace, "nothing is changed, so all may look at once")
			return
		}
		assert.Equal(t, intstr.FromString("100%"), pace, "the slots are the pace")
		assert.NotEmpty(t, set.Annotations[rollout.StartedAnnotation])
		for _, name := range []string{"blue-1", "blue-2", "green-1"} {
			assert.Contains(t, c.node(name).annotations, rollout.ReportAnnotation)
		}
	}
	require.NoError(t, c.run("", append(start, "--yes")...).err)
}

func TestRolloutStartTakesBackWhatItBegan(t *testing.T) {
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
			err:       "1 node cannot be changed, and none was:\n  green/green-1: Refused: its kubelet has the guard from somewhere else\nThat is all of pool green. Put it right, or choose another pool",
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
			r := c.run(test.answers, append(start, test.arguments...)...)
			require.ErrorContains(t, r.err, test.err)
			c.requireUntouched()
		})
	}
}

func TestRolloutStartPutsAPoolBackThatWasRolledOutBefore(t *testing.T) {
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
	require.Empty(t, c.rollouts.begun)
}

func TestRolloutStartStopsAtANodeThatFails(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.outcome["blue-1"] = rollout.RolledBack
	r := c.run("", append(start, "--yes")...)
	require.Error(t, r.err)
	golden(t, "rollout-stopped.txt", r.err.Error()+"\n", true)
	require.Equal(t, []string{"blue-1"}, c.rollouts.begun)
	require.Equal(t, rollout.Observe, c.requested("green").Target)

	r = c.run("", "rollout", "start", "--pool", "blue", "--mode", "Audit", "--yes")
	require.ErrorContains(t, r.err, "is stopped at node blue-1")

	r = c.run("", "rollout", "status")
	require.NoError(t, r.err)
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
		r := c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
		require.NoError(t, r.err)
		require.Empty(t, r.errOut)
		require.Equal(t, installerImage, c.requested("blue").ImageName)
		require.Equal(t, guard.Enforce, c.node("blue-2").mode)
		require.Equal(t, guard.Audit, c.node("green-1").mode)
	})
}

func TestRolloutStartAgain(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	r := c.run("", append(start, "--yes")...)
	require.NoError(t, r.err)
	require.Contains(t, r.out, "Pool green is as asked for; there is nothing to do.")
	require.Empty(t, c.writes)

	require.NoError(t, c.run("", "rollout", "pause", "--pool", "blue").err)
	c.rollouts.sets["guard-installer-blue"].Status.NumberAvailable = 0
	r = c.run("", append(start, "--yes")...)
	require.ErrorContains(t, r.err, "pool blue was asked for this before and is paused")
}

func TestRolloutStartGoesOnAfterItWasLeft(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	r := c.run("y\ny\nn\n", start...)
	require.ErrorContains(t, r.err, "not begun: green. The same command goes on")
	require.Equal(t, []string{"blue-1", "blue-2"}, c.rollouts.begun)
	r = c.run("", append(start, "--yes")...)
	require.NoError(t, r.err)
	require.Equal(t, []string{"blue-1", "blue-2", "green-1"}, c.rollouts.begun)
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
		"unknown":             {arguments: []string{"--pool", "red"}, err: "there is no pool red; to make one, say which nodes it has: --pool red=SELECTOR"},
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
			r := c.run("", append(append([]string{"rollout", "start"}, flags...), test.arguments...)...)
			require.ErrorContains(t, r.err, test.err)
			require.Empty(t, c.writes)
		})
	}
	t.Run("other nodes than before", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		r := c.run("", append([]string{"rollout", "start", "--pool", "blue=pool=other"}, flags...)...)
		require.ErrorContains(t, r.err, "pool blue has the nodes with pool=blue; to change that, uninstall it first")
		r = c.run("", append([]string{"rollout", "start", "--pool", "other=pool in (other,green)"}, flags...)...)
		require.ErrorContains(t, r.err, "node green-1 is in pool green and in pool other")
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
			r := twoPools(t).run("", append([]string{"rollout", "start", "--pool", "blue=pool=blue"}, test.arguments...)...)
			require.ErrorContains(t, r.err, test.err)
		})
	}
}

func TestRolloutStartWithANodeThatIsAway(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.node("blue-2").notReady = true
	r := c.run("", "rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--yes", "--max-unavailable", "100%", "--many-at-once")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "blue: 1 of 2 nodes done")
	require.Contains(t, r.errOut, "Warning: 1 node is not ready, and will be done when back: blue-2\n")
	pool, err := rollout.PoolOf(c.rollouts.sets["guard-installer-blue"])
	require.NoError(t, err)
	require.Equal(t, 2, pool.MaxUnavailable)

	r = c.run("", "rollout", "uninstall", "--pool", "blue", "--yes")
	require.ErrorContains(t, r.err, "the installers stay for the nodes that are not ready: blue-2")
	require.Contains(t, c.rollouts.sets, "guard-installer-blue")
}

func TestRolloutStartDryRun(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	r := c.run("", append(start, "--dry-run")...)
	require.NoError(t, r.err)
	require.Contains(t, r.out, "Pool green: 1 node with pool=green, 1 at a time\n")
	require.Empty(t, c.writes)

	r = c.run("", "rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--dry-run=client", "-o", "yaml")
	require.NoError(t, r.err)
	golden(t, "rollout-start-dry-run.yaml", r.out, true)

	r = c.run("", append(start, "--dry-run=server")...)
	require.NoError(t, r.err)
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
	r := c.run("", append(start, "--yes", "--guard-config", file)...)
	require.NoError(t, r.err)
	require.Equal(t, text, c.requested("blue").Configuration)

	r = c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
	require.NoError(t, r.err)
	require.Equal(t, text, c.requested("blue").Configuration, "kept")
}

func TestRolloutStartDoesNotTakeAReportForTheTruth(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.lying["blue-2"] = guarded
	r := c.run("", append(start, "--yes")...)
	require.ErrorContains(t, r.err, "node blue-2 reports v1.36.3+guard.0.2.0 in Audit, but its kubelet says v1.36.3+guard.0.2.0;")
	require.ErrorContains(t, r.err, "not begun: green")
}

// A node that reports Done, and has registered with another kubelet, is not done.
func TestRolloutReportIsComparedWithTheNode(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.lying["blue-2"] = stock
	const why = `blue-2: Unguarded: it reports that it is done with v1.36.3+guard.0.2.0, but its kubelet has registered with the version "v1.36.3"; look at the node before anything else is changed: kubectl guard status blue-2`
	r := c.run("", append(start, "--yes")...)
	require.ErrorContains(t, r.err, "pool blue stopped at node "+why)
	require.NotContains(t, r.err.Error(), "it runs")
	require.Equal(t, exitStopped, ExitCode(r.err))
	require.Equal(t, []string{"blue-1", "blue-2"}, c.rollouts.begun, "no further pool")

	r = c.run("", "rollout", "status", "--pool", "blue")
	require.NoError(t, r.err)
	require.Regexp(t, `blue +Stopped +Audit +2 +1 +0 +1 +0`, r.out)
	require.Regexp(t, `blue-2 +blue +Unguarded +<none> +<none>`, r.out)
	require.Contains(t, r.out, "\n"+why+"\n")
	r = c.run("", "rollout", "status", "--pool", "blue", "--wait")
	require.Equal(t, exitStopped, ExitCode(r.err))
}

// Where two pools select a node, it belongs to that of its report.
func TestRolloutStatusNamesThePoolThatANodeBelongsTo(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	require.NoError(t, c.run("", append(start, "--yes")...).err)
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
	r := c.run("", "rollout", "status", "--pool", "green")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "\n"+why)
	require.NotContains(t, r.out, "\ngreen-1: Pending", "it belongs to this pool")
	r = c.run("", "rollout", "status", "--pool", "blue")
	require.NotContains(t, r.out, "\nblue-1: Pending")
	require.Contains(t, r.out, "\ngreen-1: Pending: its report is that of pool green")
}

func TestRolloutStartGivesUpWhereNothingMoves(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.pulling["blue-2"] = true
	var seconds atomic.Int64
	c.now = func() time.Time { return now.Add(time.Duration(seconds.Add(1)) * time.Second) }
	r := c.run("", append(start, "--yes", "--timeout=5m")...)
	require.EqualError(t, r.err, "1 node cannot be changed, and none was:\n  blue/blue-2: no report within 5m0s: ImagePullBackOff: no such image\nPut it right, choose pools without, or go on without them with --leave-out=1")
	c.requireUntouched()

	c.rollouts.pulling["blue-1"] = true
	r = c.run("", append(start, "--yes", "--timeout=5m")...)
	require.ErrorContains(t, r.err, "pool blue: nothing has moved for 5m0s; 0 of 2 nodes done\n  node blue-1: Pending; installer guard-installer-blue-blue-1: ImagePullBackOff: no such image\n")
	require.ErrorContains(t, r.err, "No node was changed.")
	require.Equal(t, exitTimeout, ExitCode(r.err))
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
	require.ErrorContains(t, r.err, "not begun: green")
	require.Contains(t, r.out, "blue: watched for 10m0s before pool green (1 node)\n")
}

func TestRolloutNoticesThatSomebodyElseChangesThePool(t *testing.T) {
	t.Parallel()
	other := func(c *cluster, pool string) {
		set := c.rollouts.sets[rollout.DaemonSetName(pool)]
		pools, err := rollout.PoolOf(set)
		assert.NoError(t, err)
		changed, err := rollout.DaemonSet(pools, rollout.Request{Target: rollout.Audit, Image: "somebody/elses:1"})
		assert.NoError(t, err)
		set.Spec = changed.Spec
	}
	t.Run("while it waits", func(t *testing.T) {
		t.Parallel()
		c := twoPools(t)
		c.rollouts.stepped = func(set *appsv1.DaemonSet) {
			if len(c.rollouts.begun) == 1 {
				other(c, "blue")
			}
		}
		r := c.run("", append(start, "--yes")...)
		require.ErrorContains(t, r.err, "pool blue: somebody else has changed it meanwhile: it is asked for Audit, image somebody/elses:1")
		require.Equal(t, "somebody/elses:1", c.requested("blue").Image)
	})
	t.Run("while the question is open", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		c.node("blue-2").asked = func(*fakeNode) { other(c, "blue") }
		r := c.run("", "rollout", "undo", "--pool", "blue", "--yes")
		require.ErrorContains(t, r.err, "somebody else has changed it meanwhile")
		require.Equal(t, "somebody/elses:1", c.requested("blue").Image)
	})
	t.Run("while installers look", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		c.rollouts.stepped = func(*appsv1.DaemonSet) {
			if c.requested("blue").Target == rollout.Observe {
				other(c, "blue")
			}
		}
		r := c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes")
		require.ErrorContains(t, r.err, "somebody else has changed it meanwhile")
		require.Equal(t, "somebody/elses:1", c.requested("blue").Image, "not put back over what somebody else wants")
	})
}

func TestRolloutStatus(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	for format, wide := range map[string]bool{"table": false, "wide": true, "yaml": true} {
		r := c.run("", "rollout", "status", "-o", format)
		require.NoError(t, r.err)
		golden(t, "rollout-status."+format, r.out, wide)
	}
	r := c.run("", "rollout", "status", "--pool", "green", "-o", "jsonpath={.items[*].pool} {.items[*].state}")
	require.NoError(t, r.err)
	require.Equal(t, "green Complete", r.out)

	r = c.run("", "rollout", "status", "--pool", "red")
	require.ErrorContains(t, r.err, "there is no pool red")
	r = twoPools(t).run("", "rollout", "status")
	require.NoError(t, r.err)
	require.Equal(t, "No pool has a roll-out. kubectl guard rollout start makes one.\n", r.errOut)
}

func TestRolloutPauseAndResume(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	r := c.run("", "rollout", "pause", "--pool", "blue", "--pool", "green")
	require.NoError(t, r.err)
	require.Equal(t, "blue: paused\ngreen: paused\n", r.out)
	set := c.rollouts.sets["guard-installer-blue"]
	require.True(t, rollout.Paused(set))
	require.Equal(t, appsv1.OnDeleteDaemonSetStrategyType, set.Spec.UpdateStrategy.Type)

	r = c.run("", "rollout", "resume", "--pool", "blue")
	require.NoError(t, r.err)
	set = c.rollouts.sets["guard-installer-blue"]
	require.False(t, rollout.Paused(set))
	require.Equal(t, intstr.FromString("100%"), *set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable)
}

// Nodes that are not ready hold nobody up, however many they are.
func TestRolloutStartWithMoreNodesAwayThanSlots(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.node("blue-1").notReady = true
	r := c.run("", "rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--yes")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "blue: 1 of 2 nodes done")
}

func TestSlotsOfNodesThatHaveLeftThePool(t *testing.T) {
	t.Parallel()
	slot := rollout.SlotName("blue", 0)
	for _, verb := range []string{"resume", "undo", "uninstall"} {
		for holder, released := range map[string]bool{"blue-1": false, "other-1": true, "gone": true} {
			c := rolledOut(t)
			c.rollouts.leases = []string{slot + "@" + holder}
			r := c.run("", "rollout", "status", "--pool", "blue")
			require.NoError(t, r.err)
			require.Equal(t, released, strings.Contains(r.errOut, "slot "+slot+" is held by node "+holder+", which is not in the pool; kubectl guard rollout resume --pool blue releases it"), r.errOut)
			// The roll-out goes on while the command waits, and only uninstall deletes all slots.
			free := false
			c.rollouts.stepped = func(*appsv1.DaemonSet) { free = len(c.rollouts.leases) == 0 }
			arguments := []string{"rollout", verb, "--pool", "blue"}
			if verb != "resume" {
				arguments = append(arguments, "--yes", "--release-held")
			}
			r = c.run("", arguments...)
			require.NoError(t, r.err)
			require.Equal(t, released, free, "%s, slot of %s", verb, holder)
		}
	}
}

func TestAReportOfAnotherPoolDoesNotCount(t *testing.T) {
	t.Parallel()
	request := rollout.Request{Target: rollout.Audit, Image: installerImage}
	p := &nodePool{Pool: rollout.Pool{Name: "blue"}, set: &appsv1.DaemonSet{}}
	for pool, want := range map[string]nodeStep{"blue": stepFailed, "small": stepPending} {
		node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		node.Annotations = map[string]string{rollout.ReportAnnotation: rollout.Report{RequestID: request.ID(), Pool: pool, Phase: rollout.Failed}.Annotation()}
		p.nodes = []corev1.Node{node}
		require.Equal(t, want, p.progress(request).nodes[0].step, pool)
	}
}

func TestNodesThatJoinWhileTheCommandWaitsDoNotCount(t *testing.T) {
	t.Parallel()
	node := func(name string) corev1.Node { return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	these := namesOf([]corev1.Node{node("a"), node("b")})
	require.Equal(t, []corev1.Node{node("a")}, onlyThese([]corev1.Node{node("a"), node("c")}, these))
}

func TestRolloutStartTellsThatItWasPaused(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	looks := 0
	c.rollouts.stepped = func(set *appsv1.DaemonSet) {
		if len(c.rollouts.begun) == 1 {
			looks++
			set.Annotations[rollout.PausedAnnotation] = strconv.FormatBool(looks < 10)
		}
	}
	r := c.run("", append(start, "--yes")...)
	require.NoError(t, r.err)
	// Nodes and DaemonSet come by different ways, so one of the two may be a look behind.
	require.Contains(t, r.out, "blue: paused; kubectl guard rollout resume --pool blue goes on\n")
	require.Contains(t, r.out, "blue: goes on\nblue/blue-2: Done\n")
}

func TestRolloutResumeTriesANodeOnceMore(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.rollouts.outcome["blue-1"] = rollout.RolledBack
	require.Error(t, c.run("", append(start, "--yes")...).err)

	r := c.run("n\n", "rollout", "resume", "--pool", "blue")
	require.ErrorContains(t, r.err, "not confirmed")
	require.Equal(t, rollout.StateFailed, c.node("blue-1").labels[rollout.StateLabel])

	r = c.run("y\n", "rollout", "resume", "--pool", "blue")
	require.ErrorContains(t, r.err, "pool blue stopped at node blue-1", "it fails again")

	c.rollouts.outcome["blue-1"] = rollout.Done
	r = c.run("", "rollout", "resume", "--pool", "blue", "--yes")
	require.NoError(t, r.err)
	require.Equal(t, []string{"blue-1", "blue-1", "blue-1", "blue-2"}, c.rollouts.begun)
	require.NotContains(t, c.node("blue-1").labels, rollout.StateLabel)
	require.Contains(t, c.node("blue-1").annotations, rollout.ResumeAnnotation)

	r = c.run("", "rollout", "resume", "--pool", "green")
	require.ErrorContains(t, r.err, "pool green is only looked at; to change it, give kubectl guard rollout start --pool green")
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
	require.Greater(t, seconds.Load(), int64(lookedAgain/time.Second))

	c.rollouts.stepped = func(*appsv1.DaemonSet) { c.rollouts.refused, c.rollouts.outcome = nil, nil }
	r = c.run("", "rollout", "resume", "--pool", "blue", "--yes")
	require.NoError(t, r.err)
	require.Equal(t, guard.Enforce, c.node("blue-2").mode)
}

func TestRolloutUndoGoesBackOneStepAfterTheOther(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err)
	r := c.run("y\n", "rollout", "undo", "--pool", "blue")
	require.NoError(t, r.err)
	golden(t, "rollout-undo.txt", r.out, false)
	require.Equal(t, rollout.Audit, c.requested("blue").Target)
	require.Equal(t, guard.Audit, c.node("blue-1").mode)

	r = c.run("", "rollout", "undo", "--pool", "blue", "--yes")
	require.NoError(t, r.err)
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
	c.rollouts.begun = nil
	r = c.run("", "rollout", "undo", "--pool", "blue", "--yes")
	require.NoError(t, r.err)
	require.Equal(t, installerImage, c.requested("blue").ImageName)
}

func TestRolloutUndoOfALookTakesTheInstallersBack(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	require.Error(t, c.run("y\ny\nn\n", start...).err)
	r := c.run("", "rollout", "undo", "--pool", "green", "--dry-run")
	require.NoError(t, r.err)
	require.Equal(t, "green: no node was changed; its installers go (dry run)\n", r.out)
	r = c.run("", "rollout", "undo", "--pool", "green")
	require.NoError(t, r.err)
	require.Equal(t, "green: no node was changed; its installers are gone\n", r.out)
	require.NotContains(t, c.rollouts.sets, "guard-installer-green")
}

func TestRolloutUninstallListsHeldPods(t *testing.T) {
	t.Parallel()
	holding := func(t *testing.T) *cluster {
		c := rolledOut(t)
		require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err)
		c.rollouts.begun = nil
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
		"yes is not enough": {arguments: []string{"--yes"}, err: "2 held pods would be stopped; nothing was done"},
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
				require.Empty(t, c.rollouts.begun)
				require.Equal(t, rollout.Enforce, c.requested("blue").Target)
				return
			}
			require.NoError(t, r.err)
			require.Equal(t, []string{"blue-1", "blue-2"}, c.rollouts.begun)
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
		require.ErrorContains(t, r.err, "2 held pods would be stopped; nothing was done")
		require.Empty(t, c.rollouts.begun)
		r = c.run("", "rollout", "undo", "--pool", "blue", "--yes", "--release-held")
		require.NoError(t, r.err)
		require.Equal(t, []types.UID{uidOf(2), uidOf(3)}, c.requested("blue").ReleaseHeldUIDs, "those that were listed, and no other")
		require.Equal(t, rollout.Audit, c.requested("blue").Target)
	})
}

// A yes is for the pods that were listed, whatever is held by the time of the next node.
func TestRolloutReleasesOnlyWhatItHasListed(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err)
	r := c.run("", "rollout", "undo", "--pool", "blue", "--yes", "--release-held")
	require.NoError(t, r.err)
	require.Empty(t, c.requested("blue").ReleaseHeldUIDs, "nothing was listed")

	require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err)
	c.node("blue-1").pods = []guard.PodState{heldPod("web", "cache", 2, false, guard.PodVanished)}
	c.node("blue-2").status = http.StatusServiceUnavailable
	r = c.run("", "rollout", "undo", "--pool", "blue", "--yes", "--release-held")
	require.NoError(t, r.err)
	require.Contains(t, r.errOut, "blue-2 (NoAnswer)")
	require.Equal(t, []types.UID{uidOf(2)}, c.requested("blue").ReleaseHeldUIDs)

	// The yes is for one time: the next request does not have it, and the history neither.
	c.node("blue-2").status = 0
	c.node("blue-1").pods = nil
	require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err)
	require.Empty(t, c.requested("blue").ReleaseHeldUIDs)
	require.NotContains(t, c.rollouts.sets["guard-installer-blue"].Annotations[historyAnnotation], string(uidOf(2)))
}

func TestRolloutDoesNotGoOnWithABlanketYesOfAnEarlierRelease(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	set := c.rollouts.sets["guard-installer-blue"]
	request := c.requested("blue")
	request.ReleaseHeld = true
	data, err := json.Marshal(request)
	require.NoError(t, err)
	set.Spec.Template.Annotations[rollout.RequestAnnotation] = string(data)
	require.NoError(t, c.run("", "rollout", "status").err, "it can still be shown")
	r := c.run("", "rollout", "resume", "--pool", "blue", "--yes")
	require.ErrorContains(t, r.err, "pool blue: its request is of an earlier release and lets every held pod stop")
	require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes").err)
	require.False(t, c.requested("blue").ReleaseHeld)
}

func TestRolloutWithoutItsManifests(t *testing.T) {
	t.Parallel()
	r := newCluster(t).run("", "rollout", "pause")
	require.EqualError(t, r.err, "which pool? give --pool NAME; kubectl guard rollout status shows all")
}

func TestRolloutCompletesPools(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	r := c.run("", "__complete", "rollout", "status", "--pool", "")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "blue\ngreen\n")
}

func TestRolloutStartSettles(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	for _, arguments := range [][]string{{"--settle", "1s"}, {"--settle", "10m"}, {"--verify-timeout", "15s"}, {"--verify-timeout", "6m"}} {
		r := c.run("", append(append([]string{}, start...), arguments...)...)
		require.ErrorContains(t, r.err, arguments[0]+": ")
	}
	r := c.run("", append(append([]string{}, start...), "--settle", "2m", "--verify-timeout", "90s")...)
	require.ErrorContains(t, r.err, "settle: Invalid value: \"2m0s\": must be shorter than verifyTimeout (1m30s)")
	c.requireUntouched()

	require.NoError(t, c.run("", append(append([]string{}, start...), "--yes", "--settle", "2m")...).err)
	require.Equal(t, 2*time.Minute, c.requested("blue").SettleTime())
	require.Equal(t, 165*time.Second, c.requested("blue").Verify())

	// It stays so until another is given.
	require.NoError(t, c.run("", "rollout", "start", "--pool", "blue", "--mode", "Enforce", "--yes", "--verify-timeout", "4m").err)
	require.Equal(t, 2*time.Minute, c.requested("blue").SettleTime())
	require.Equal(t, 4*time.Minute, c.requested("blue").Verify())
}

func TestRolloutUninstallAcceptsAStockVersion(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	var asked rollout.Request
	c.rollouts.stepped = func(set *appsv1.DaemonSet) { asked, _ = rollout.RequestOf(set) }
	require.NoError(t, c.run("", "rollout", "uninstall", "--pool", "blue", "--yes", "--stock-version", "v1.38.0").err)
	require.Equal(t, "v1.38.0", asked.StockVersion)
	c = rolledOut(t)
	require.ErrorContains(t, c.run("", "rollout", "uninstall", "--pool", "blue", "--yes", "--stock-version", "1.38").err, "stockVersion")
}
