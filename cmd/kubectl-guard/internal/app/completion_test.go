package app

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCompletionKnowsAllNodes(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 1100)
	r := c.mustRun("", "__complete", "status", "node-109")
	require.Contains(t, r.out, "node-1099\n")
	require.NotContains(t, r.out, "node-001\n")
}

func TestRolloutCompletesPools(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	r := c.mustRun("", "__complete", "rollout", "status", "--pool", "")
	require.Contains(t, r.out, "blue\ngreen\n")
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		arguments []string
		want      string
	}{
		"held pods whose object is gone": {[]string{"release", ""}, "cache\ndb-0\n:4\n"},
		"protected pods":                 {[]string{"why", "f"}, "front-1\n:4\n"},
		"nodes":                          {[]string{"holds", "--node", "worker-6"}, "worker-6\n:4\n"},
		"nodes given before":             {[]string{"status", "worker-1", "worker-1"}, ":4\n"},
		"kinds":                          {[]string{"protect", "d"}, "deployment/\ndaemonset/\n:6\n"},
		"dry runs":                       {[]string{"release", "--dry-run="}, "none\nclient\nserver\n:4\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := everyState(t).mustRun("", append([]string{"__complete"}, test.arguments...)...)
			require.Equal(t, test.want, r.out)
		})
	}
}
