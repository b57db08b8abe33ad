package app

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestManyNodesAtATimeNeedAYes(t *testing.T) {
	t.Parallel()
	two := append(startBlue, "--max-unavailable", "100000")
	c := twoPools(t)
	r := c.run("", append(two, "--yes")...)
	require.ErrorContains(t, r.err, "--max-unavailable=100000 is 2 of 2 nodes of pool blue at a time, and a kubelet that does not work may be on all of these")
	c.requireUntouched()
	require.ErrorContains(t, c.run("n\n", two...).err, "not confirmed")
	r = c.mustRun("", append(two, "--yes", "--many-at-once")...)
	require.Contains(t, r.out, "Pool blue: selector pool=blue, nodes 2, max unavailable 2")
}

func TestTablesOfManyNodesHaveARowForEachKind(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 100)
	c.nodes[7].notReady = true
	arguments := append(startBlue, "--max-unavailable=2", "--dry-run")
	r := c.mustRun("", arguments...)
	require.Contains(t, r.out, "99: node-000, node-001, ")
	require.Contains(t, r.out, "node-010 and 89 more   yes ")
	require.Contains(t, r.out, "node-007 ")
	require.Less(t, strings.Count(r.out, "\n"), 12)
	r = c.run("", append(arguments, "--all")...)
	require.Greater(t, strings.Count(r.out, "\n"), 100)

	c.nodes[7].notReady = false
	c.mustRun("", append(arguments[:len(arguments)-1], "--yes", "--max-unavailable=10")...)
	r = c.mustRun("", "rollout", "status")
	require.Contains(t, r.out, "100: node-000, ")
	require.Less(t, strings.Count(r.out, "\n"), 10)
	require.Greater(t, strings.Count(c.run("", "rollout", "status", "--all").out, "\n"), 100)
}

func TestThePlanNamesNodesThatMayBeThereByAccident(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.node("blue-1").labels["node-role.kubernetes.io/control-plane"] = ""
	c.node("blue-2").labels["type"] = "virtual-kubelet"
	c.node("green-1").labels["kubernetes.io/os"] = "windows"
	r := c.mustRun("", "rollout", "start", "--pool", "all=pool in (blue,green)", "--mode", "Audit", "--image", installerImage, "--dry-run")
	require.Contains(t, r.out, "  of the control plane: blue-1\n")
	require.Contains(t, r.out, "type!=virtual-kubelet): blue-2\n")
	require.NotContains(t, r.out, "green-1", "no Linux")
}
