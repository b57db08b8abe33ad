package app

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/prompt"
	"kubelet-guard.io/pkg/rollout"
)

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
			require.ErrorIs(t, r.err, prompt.ErrInterrupted)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.requireUntouched()
		})
	}
}

// Installers that only inspect are gone when the command is, also those of pools that were to
// come later.
func TestInstallersThatOnlyInspectGoWithAnInterrupt(t *testing.T) {
	t.Parallel()
	for name, when := range map[string]func(*cluster, *appsv1.DaemonSet) bool{
		"while they inspect":      func(c *cluster, _ *appsv1.DaemonSet) bool { return len(c.rollouts.sets) == 2 },
		"while a pool is changed": func(c *cluster, _ *appsv1.DaemonSet) bool { return len(c.rollouts.started) > 0 },
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
			if len(c.rollouts.started) > 0 {
				require.ErrorContains(t, r.err, "the roll-out of pool blue continues in the cluster")
				require.Contains(t, c.rollouts.sets, "guard-installer-blue")
			}
		})
	}
}

type neverEnding struct{}

func (*neverEnding) Read([]byte) (int, error) { select {} }
