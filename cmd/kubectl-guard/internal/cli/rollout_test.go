package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRolloutStartDoesPoolByPool(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	r := c.run("y\ny\ny\n", "rollout", "start", "--pool", "blue=pool=blue", "--pool", "green=pool=green", "--mode", "Audit", "--image", installerImage)
	require.NoError(t, r.err, r.errOut)
	golden(t, "rollout-start.txt", r.out, false)
	require.Equal(t, []string{"blue-1", "blue-2", "green-1"}, c.rollouts.begun)
}
