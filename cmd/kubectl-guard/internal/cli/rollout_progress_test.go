package cli

import (
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/pkg/rollout"
)

// The kubelet of a node that is being changed may be why it is not ready: its pool is not
// finished, and no further pool may begin.
func TestANodeInTheMiddleOfItsChangeIsNotAway(t *testing.T) {
	for phase, away := range map[rollout.Phase]bool{
		rollout.Waiting: true, rollout.Installing: false, rollout.Done: false, rollout.RolledBack: true,
	} {
		progress := poolProgress{available: true, nodes: []nodeProgress{
			{node: "a", step: stepDone, ready: true},
			{node: "b", step: stepOf(phase), report: &rollout.Report{Phase: phase}},
		}}
		require.Equal(t, away, len(progress.absent()) == 1, phase)
		require.Equal(t, phase != rollout.Installing, progress.finished(), phase)
		require.Equal(t, phase != rollout.Installing, progress.settled(), phase)
	}
}
