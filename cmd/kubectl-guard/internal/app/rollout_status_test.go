package app

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/exitcode"
	"kubelet-guard.io/pkg/rollout"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	require.Equal(t, 0, exitcode.Of(nil))
	require.Equal(t, 1, exitcode.Of(errors.New("x")))
	require.Equal(t, exitcode.Stopped, exitcode.Of(errors.Join(exitcode.With(errors.New("x"), exitcode.Stopped), errors.New("not started: green"))))

	for name, test := range map[string]struct {
		prepare   func(*cluster)
		arguments []string
		code      int
		err       string
	}{
		"complete":    {code: 0},
		"a time-out":  {prepare: func(c *cluster) { c.rollouts.sets["guard-installer-blue"].Status.NumberAvailable = 0 }, arguments: []string{"--timeout=1ms"}, code: exitcode.Timeout, err: "not all pools are Complete after 1ms"},
		"one pool":    {prepare: func(c *cluster) { c.rollouts.sets["guard-installer-blue"].Status.NumberAvailable = 0 }, arguments: []string{"--pool=green"}, code: 0},
		"none":        {prepare: func(c *cluster) { clear(c.rollouts.sets) }, code: exitcode.Error, err: "there is nothing to wait for"},
		"one is gone": {arguments: []string{"--pool=red"}, code: exitcode.Error, err: "there is no pool red"},
		"unreadable":  {prepare: func(c *cluster) { unreadable(c, "green") }, code: exitcode.Error, err: "pool green cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := rolledOut(t)
			var clock atomic.Int64
			c.now = func() time.Time { return now.Add(time.Duration(clock.Add(1)) * time.Millisecond) }
			if test.prepare != nil {
				test.prepare(c)
			}
			r := c.run("", append([]string{"rollout", "status", "--wait"}, test.arguments...)...)
			require.Equal(t, test.code, exitcode.Of(r.err), "%v", r.err)
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
			}
		})
	}
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		c := twoPools(t)
		c.rollouts.outcome["blue-1"] = rollout.RolledBack
		require.Equal(t, exitcode.Stopped, exitcode.Of(c.run("", append(start, "--yes")...).err))
		r := c.run("", "rollout", "status", "--wait", "--timeout=1h")
		require.Equal(t, exitcode.Stopped, exitcode.Of(r.err))
		require.ErrorContains(t, r.err, "stopped: blue")
		require.Contains(t, r.out, "blue-1", "the state is shown all the same")
	})
	t.Run("it gets complete", func(t *testing.T) {
		t.Parallel()
		c := rolledOut(t)
		delete(c.node("blue-2").annotations, rollout.ReportAnnotation)
		go func() {
			time.Sleep(20 * time.Millisecond)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.step(c.rollouts.sets["guard-installer-blue"])
			c.step(c.rollouts.sets["guard-installer-blue"])
		}()
		c.mustRun("", "rollout", "status", "--wait")
		require.LessOrEqual(t, c.watches, 3, "the nodes are watched, not listed again")
	})
}

func TestAPoolThatCannotBeReadHidesNoOther(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	unreadable(c, "green")
	r := c.mustRun("", "rollout", "status")
	require.Contains(t, r.out, "blue    Complete")
	require.Contains(t, r.out, "green   Unreadable")
	require.Contains(t, r.errOut, `pool green cannot be read, and only kubectl guard rollout pause works with it: daemonset kubelet-guard-rollout/guard-installer-green: annotation kubelet-guard.io/rollout-request: unknown field "newField"`)
	r = c.mustRun("", "rollout", "status", "-o", "jsonpath={.items[1].problem}")
	require.Contains(t, r.out, `unknown field "newField"`)
	c.mustRun("", "rollout", "undo", "--pool", "blue", "--yes")
	require.ErrorContains(t, c.run("", "rollout", "undo", "--pool", "green", "--yes").err, "pool green cannot be read")
	require.ErrorContains(t, c.run("", "rollout", "start", "--pool", "green", "--mode=Audit", "--yes").err, "pool green cannot be read")
}

func TestRolloutStatus(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	for format, wide := range map[string]bool{"table": false, "wide": true, "yaml": true} {
		r := c.mustRun("", "rollout", "status", "-o", format)
		golden(t, "rollout-status."+format, r.out, wide)
	}
	r := c.mustRun("", "rollout", "status", "--pool", "green", "-o", "jsonpath={.items[*].pool} {.items[*].state}")
	require.Equal(t, "green Complete", r.out)

	require.ErrorContains(t, c.run("", "rollout", "status", "--pool", "red").err, "there is no pool red")
	r = twoPools(t).mustRun("", "rollout", "status")
	require.Equal(t, "No pool has a roll-out. kubectl guard rollout start makes one.\n", r.errOut)
}

func TestSlotsOfNodesThatHaveLeftThePool(t *testing.T) {
	t.Parallel()
	slot := rollout.SlotName("blue", 0)
	for _, verb := range []string{"resume", "undo", "uninstall"} {
		for holder, released := range map[string]bool{"blue-1": false, "other-1": true, "gone": true} {
			c := rolledOut(t)
			c.rollouts.leases = []string{slot + "@" + holder}
			r := c.mustRun("", "rollout", "status", "--pool", "blue")
			require.Equal(t, released, strings.Contains(r.errOut, "slot "+slot+" is held by node "+holder+", which is not in the pool; kubectl guard rollout resume --pool blue releases it"), r.errOut)
			// The roll-out continues while the command waits, and only uninstall deletes all slots.
			free := false
			c.rollouts.stepped = func(*appsv1.DaemonSet) { free = len(c.rollouts.leases) == 0 }
			arguments := []string{"rollout", verb, "--pool", "blue"}
			if verb != "resume" {
				arguments = append(arguments, "--yes", "--release-held")
			}
			r = c.mustRun("", arguments...)
			require.Equal(t, released, free, "%s, slot of %s", verb, holder)
		}
	}
}
