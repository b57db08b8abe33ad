package app

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	unreadable(c, "green")
	r := c.mustRun("", "version")
	require.Contains(t, r.out, "kubectl guard: ")
	require.Contains(t, r.out, installerDigest)
	require.Contains(t, r.errOut, "pool green cannot be read by this program, which may be older or newer than its installers")
	r = c.mustRun("", "version", "--client", "-o", "yaml")
	require.Contains(t, r.out, "kind: Versions")

	require.EqualError(t, c.run("", "rollout", "stat").err, `unknown command "stat" for "kubectl guard rollout"; did you mean "start" or "status"; kubectl guard rollout --help lists them`)
	require.ErrorContains(t, c.run("", "hold").err, `did you mean "holds"`)
}
