package cli

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/pkg/rollout"
)

func TestAnImageIsNamedByItsDigest(t *testing.T) {
	t.Parallel()
	other := "registry.example/kubelet-guard/installer@sha256:" + strings.Repeat("e", 64)
	for name, test := range map[string]struct {
		digests   map[string]string
		arguments []string
		image     string
		err       string
		warning   string
	}{
		"pulled":               {image: installerDigest},
		"named so":             {arguments: []string{"--image", installerDigest}, image: installerDigest},
		"two digests":          {digests: map[string]string{"blue-2": other}, err: "is sha256:dddddddddddd on node blue-1 and sha256:eeeeeeeeeeee on node blue-2: its tag was moved"},
		"loaded by hand":       {digests: map[string]string{"blue-2": "sha256:" + strings.Repeat("e", 64)}, err: "node blue-2 does not say which digest " + installerImage + " has"},
		"from elsewhere":       {digests: map[string]string{"blue-2": "docker.io/library/import-2026@" + digest}, err: "give --allow-tag"},
		"loaded by hand, yes":  {digests: map[string]string{"blue-2": ""}, arguments: []string{"--allow-tag"}, image: installerImage, warning: "is named by a tag, which can be moved"},
		"pulled, tags allowed": {arguments: []string{"--allow-tag"}, image: installerDigest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			c.rollouts.installed[installerDigest] = guarded
			c.rollouts.digests = test.digests
			r := c.run("", append([]string{"rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--yes"}, test.arguments...)...)
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
				c.requireUntouched()
				return
			}
			require.NoError(t, r.err)
			require.Contains(t, r.errOut, test.warning)
			require.Equal(t, test.image, c.requested("blue").Image)
			require.Equal(t, test.image, c.rollouts.sets["guard-installer-blue"].Spec.Template.Spec.Containers[0].Image, "what kubelets pull")
		})
	}
}

func TestRepository(t *testing.T) {
	t.Parallel()
	for image, want := range map[string]string{
		"installer":                      "docker.io/library/installer",
		"me/installer:1":                 "docker.io/me/installer",
		"index.docker.io/me/installer:1": "docker.io/me/installer",
		"localhost/installer":            "localhost/installer",
		"registry:5000/installer":        "registry:5000/installer",
		"registry:5000/a/installer:1":    "registry:5000/a/installer",
		"registry.example/a@" + digest:   "registry.example/a",
		"registry.example/a:1@" + digest: "registry.example/a",
	} {
		require.Equal(t, want, repository(image), image)
	}
}

func TestKubeletChecksumsThatTheOperatorGives(t *testing.T) {
	t.Parallel()
	right := "amd64=" + strings.Repeat("5", 64)
	for name, test := range map[string]struct {
		sums []string
		err  string
	}{
		"right":         {[]string{right, "arm64=sha256:" + strings.Repeat("A", 64)}, ""},
		"wrong":         {[]string{"amd64=" + strings.Repeat("6", 64)}, "and --kubelet-checksum says 6666"},
		"another arch":  {[]string{"arm64=" + strings.Repeat("5", 64)}, "is of the architecture amd64, for which no --kubelet-checksum is given"},
		"no arch":       {[]string{strings.Repeat("5", 64)}, "is not ARCHITECTURE=SHA256"},
		"too short":     {[]string{"amd64=55"}, "is not ARCHITECTURE=SHA256"},
		"contradictory": {[]string{right, "amd64=" + strings.Repeat("6", 64)}, "two different ones for amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			arguments := append(start, "--yes")
			for _, sum := range test.sums {
				arguments = append(arguments, "--kubelet-checksum", sum)
			}
			r := c.run("", arguments...)
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
				c.requireUntouched()
				return
			}
			require.NoError(t, r.err)
			require.Equal(t, map[string]string{"amd64": strings.Repeat("5", 64), "arm64": strings.Repeat("a", 64)}, c.requested("blue").KubeletChecksums)
		})
	}
}

func TestNodesThatCannotBeChangedAreLeftOut(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		answers   string
		arguments []string
		err       string
	}{
		"yes is not enough": {arguments: []string{"--yes"}, err: "1 node cannot be changed, and none was:\n  blue/blue-2: Refused: no room\nPut it right, choose pools without, or go on without them with --leave-out=1"},
		"no":                {answers: "y\nn\n", err: "not confirmed"},
		"yes":               {answers: "y\ny\ny\n"},
		"a flag":            {arguments: []string{"--yes", "--leave-out=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			c.rollouts.refused["blue-2"] = "no room"
			blue := []string{"rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage}
			r := c.run(test.answers, append(blue, test.arguments...)...)
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
				c.requireUntouched()
				return
			}
			require.NoError(t, r.err)
			require.Equal(t, []string{"blue-1"}, c.rollouts.begun)
			pool, err := rollout.PoolOf(c.rollouts.sets["guard-installer-blue"])
			require.NoError(t, err)
			require.Equal(t, []string{"blue-2"}, pool.Without)
			require.Contains(t, r.out, "blue: 1 of 1 node done")

			// The same command looks at it again.
			c.rollouts.refused = map[string]string{}
			r = c.run("", append(blue, "--yes")...)
			require.NoError(t, r.err)
			require.Contains(t, c.rollouts.begun, "blue-2")
			require.NoError(t, c.run("", "rollout", "uninstall", "--pool", "blue", "--yes").err)
			require.Equal(t, stock, c.node("blue-2").version)
		})
	}
}

// manyNodes is a cluster with one pool of n nodes.
func manyNodes(t *testing.T, n int) *cluster {
	var list []*fakeNode
	for i := range n {
		list = append(list, &fakeNode{name: fmt.Sprintf("node-%03d", i), version: stock, status: http.StatusNotFound, labels: map[string]string{"pool": "blue"}})
	}
	return newCluster(t, list...)
}

func TestNotAllNodesPullAtTheSameTime(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 20)
	r := c.run("y\nn\n", "rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--max-pulls=3")
	require.ErrorContains(t, r.err, "not confirmed")
	require.Equal(t, 3, c.rollouts.pulls)
	c.requireUntouched()
}

func TestErrorsFitAScreen(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 200)
	for i, n := range c.nodes {
		if i%2 == 0 {
			c.rollouts.refused[n.name] = "node " + n.name + " is not ready: put it in order first"
		}
	}
	r := c.run("", "rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--yes")
	require.ErrorContains(t, r.err, "100 nodes cannot be changed, and none was:\n  100 nodes: Refused: node NODE is not ready: put it in order first: blue/node-000, ")
	require.ErrorContains(t, r.err, " and 90 more\n")
	require.Less(t, len(r.err.Error()), 800)
	c.requireUntouched()
}

func TestManyNodesAtATimeNeedAYes(t *testing.T) {
	t.Parallel()
	for n, want := range map[[2]int]bool{{1, 1}: false, {1, 3}: false, {2, 8}: false, {3, 8}: true, {50, 200}: false, {50, 199}: true, {51, 5000}: true} {
		require.Equal(t, want, many(n[0], n[1]), "%v", n)
	}
	two := []string{"rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--max-unavailable", "100000"}
	c := twoPools(t)
	r := c.run("", append(two, "--yes")...)
	require.ErrorContains(t, r.err, "--max-unavailable=100000 is 2 of 2 nodes of pool blue at a time, and a kubelet that does not work may be on all of these")
	c.requireUntouched()
	require.ErrorContains(t, c.run("n\n", two...).err, "not confirmed")
	r = c.run("", append(two, "--yes", "--many-at-once")...)
	require.NoError(t, r.err)
	require.Contains(t, r.out, "Pool blue: 2 nodes with pool=blue, 2 at a time")
}

func TestTablesOfManyNodesHaveARowForEachKind(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 100)
	c.nodes[7].notReady = true
	arguments := []string{"rollout", "start", "--pool", "blue=pool=blue", "--mode", "Audit", "--image", installerImage, "--max-unavailable=2", "--dry-run"}
	r := c.run("", arguments...)
	require.NoError(t, r.err)
	require.Contains(t, r.out, "99: node-000, node-001, ")
	require.Contains(t, r.out, "node-010 and 89 more   yes ")
	require.Contains(t, r.out, "node-007 ")
	require.Less(t, strings.Count(r.out, "\n"), 12)
	r = c.run("", append(arguments, "--all")...)
	require.Greater(t, strings.Count(r.out, "\n"), 100)

	c.nodes[7].notReady = false
	require.NoError(t, c.run("", append(arguments[:len(arguments)-1], "--yes", "--max-unavailable=10")...).err)
	r = c.run("", "rollout", "status")
	require.NoError(t, r.err)
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
	r := c.run("", "rollout", "start", "--pool", "all=pool in (blue,green)", "--mode", "Audit", "--image", installerImage, "--dry-run")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "  of the control plane: blue-1\n")
	require.Contains(t, r.out, "type!=virtual-kubelet): blue-2\n")
	require.NotContains(t, r.out, "green-1", "no Linux")
}

func TestAnOlderPatchReleaseIsRemarkedOn(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.node("blue-2").version = "v1.36.9"
	r := c.run("", append(start, "--yes")...)
	require.NoError(t, r.err)
	require.Contains(t, r.errOut, "Warning: pool blue: the image has an older patch release than 1 node runs now: blue-2 (v1.36.9)\n")
}

func TestVersion(t *testing.T) {
	t.Parallel()
	c := rolledOut(t)
	unreadable(c, "green")
	r := c.run("", "version")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "kubectl guard: ")
	require.Contains(t, r.out, installerDigest)
	require.Contains(t, r.errOut, "pool green cannot be read by this program, which may be older or newer than its installers")
	r = c.run("", "version", "--client", "-o", "yaml")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "kind: Versions")

	require.EqualError(t, c.run("", "rollout", "stat").err, `unknown command "stat" for "kubectl guard rollout"; did you mean "start" or "status"; kubectl guard rollout --help lists them`)
	require.ErrorContains(t, c.run("", "hold").err, `did you mean "holds"`)
}

func TestCompletionKnowsAllNodes(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 1100)
	r := c.run("", "__complete", "status", "node-109")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "node-1099\n")
	require.NotContains(t, r.out, "node-001\n")
}
