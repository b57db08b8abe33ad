package rollout

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestManyAtATime(t *testing.T) {
	t.Parallel()
	for n, want := range map[[2]int]bool{{1, 1}: false, {1, 3}: false, {2, 8}: false, {3, 8}: true, {50, 200}: false, {50, 199}: true, {51, 5000}: true} {
		require.Equal(t, want, many(n[0], n[1]), "%v", n)
	}
}
