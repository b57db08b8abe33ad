package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/pkg/rollout"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	require.Equal(t, 0, ExitCode(nil))
	require.Equal(t, 1, ExitCode(errors.New("x")))
	require.Equal(t, exitStopped, ExitCode(errors.Join(withCode(errors.New("x"), exitStopped), errors.New("not begun: green"))))

	for name, test := range map[string]struct {
		prepare   func(*cluster)
		arguments []string
		code      int
		err       string
	}{
		"complete":    {code: 0},
		"a time-out":  {prepare: func(c *cluster) { c.rollouts.sets["guard-installer-blue"].Status.NumberAvailable = 0 }, arguments: []string{"--timeout=1ms"}, code: exitTimeout, err: "not all pools are Complete after 1ms"},
		"one pool":    {prepare: func(c *cluster) { c.rollouts.sets["guard-installer-blue"].Status.NumberAvailable = 0 }, arguments: []string{"--pool=green"}, code: 0},
		"none":        {prepare: func(c *cluster) { clear(c.rollouts.sets) }, code: exitError, err: "there is nothing to wait for"},
		"one is gone": {arguments: []string{"--pool=red"}, code: exitError, err: "there is no pool red"},
		"unreadable":  {prepare: func(c *cluster) { unreadable(c, "green") }, code: exitError, err: "pool green cannot be read"},
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
			require.Equal(t, test.code, ExitCode(r.err), "%v", r.err)
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
			}
		})
	}
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		c := twoPools(t)
		c.rollouts.outcome["blue-1"] = rollout.RolledBack
		require.Equal(t, exitStopped, ExitCode(c.run("", append(start, "--yes")...).err))
		r := c.run("", "rollout", "status", "--wait", "--timeout=1h")
		require.Equal(t, exitStopped, ExitCode(r.err))
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
		require.NoError(t, c.run("", "rollout", "status", "--wait").err)
		require.LessOrEqual(t, c.watches, 3, "the nodes are watched, not listed again")
	})
}

func TestStatusIsAnErrorWhenNoNodeAnswers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		states []int
		err    string
	}{
		"one answers": {[]int{0, http.StatusForbidden}, ""},
		"none":        {[]int{http.StatusServiceUnavailable, http.StatusForbidden}, "no node answered"},
		"no right":    {[]int{http.StatusForbidden, http.StatusForbidden}, "no node may be asked: that needs get on nodes/proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, &fakeNode{name: "a", status: test.states[0]}, &fakeNode{name: "b", status: test.states[1]})
			r := c.run("", "status")
			require.Contains(t, r.out, "a ")
			if test.err == "" {
				require.NoError(t, r.err)
				return
			}
			require.ErrorContains(t, r.err, test.err)
		})
	}
}

// unreadable makes a pool look like one of a later release.
func unreadable(c *cluster, pool string) {
	c.rollouts.sets[rollout.DaemonSetName(pool)].Spec.Template.Annotations[rollout.RequestAnnotation] = `{"target":"Audit","image":"x","newField":1}`
}

func TestAPoolThatCannotBeReadHidesNoOther(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	unreadable(c, "green")
	r := c.run("", "rollout", "status")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "blue    Complete")
	require.Contains(t, r.out, "green   Unreadable")
	require.Contains(t, r.errOut, `pool green cannot be read, and only kubectl guard rollout pause works with it: daemonset kubelet-guard-rollout/guard-installer-green: annotation kubelet-guard.io/rollout-request: unknown field "newField"`)
	r = c.run("", "rollout", "status", "-o", "jsonpath={.items[1].problem}")
	require.NoError(t, r.err)
	require.Contains(t, r.out, `unknown field "newField"`)
	require.NoError(t, c.run("", "rollout", "undo", "--pool", "blue", "--yes").err)
	require.ErrorContains(t, c.run("", "rollout", "undo", "--pool", "green", "--yes").err, "pool green cannot be read")
	require.ErrorContains(t, c.run("", "rollout", "start", "--pool", "green", "--mode=Audit", "--yes").err, "pool green cannot be read")
}

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

func TestAQuestionCanBeInterrupted(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]string{"the first": "", "the second": "y\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			in, keyboard := io.Pipe()
			defer keyboard.Close()
			go func() { _, _ = keyboard.Write([]byte(answers)) }()
			r := c.runUntil(ctx, in, start...)
			require.ErrorIs(t, r.err, errInterrupted)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.requireUntouched()
		})
	}
}

// Installers that only look are gone when the command is, also those of pools that were to
// come later.
func TestInstallersThatOnlyLookGoWithAnInterrupt(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]func(*cluster, *appsv1.DaemonSet) bool{
		"while they look":         func(c *cluster, _ *appsv1.DaemonSet) bool { return len(c.rollouts.sets) == 2 },
		"while a pool is changed": func(c *cluster, _ *appsv1.DaemonSet) bool { return len(c.rollouts.begun) > 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			c.rollouts.stepped = func(set *appsv1.DaemonSet) {
				if when(c, set) {
					cancel()
				}
			}
			r := c.runUntil(ctx, &neverEnding{}, append(start, "--yes")...)
			require.ErrorContains(t, r.err, "interrupted")
			require.NotContains(t, c.rollouts.sets, "guard-installer-green")
			require.NotContains(t, c.node("green-1").annotations, rollout.ReportAnnotation)
			if len(c.rollouts.begun) > 0 {
				require.ErrorContains(t, r.err, "pool blue goes on in the cluster")
				require.Contains(t, c.rollouts.sets, "guard-installer-blue")
			}
		})
	}
}

type neverEnding struct{}

func (*neverEnding) Read([]byte) (int, error) { select {} }
