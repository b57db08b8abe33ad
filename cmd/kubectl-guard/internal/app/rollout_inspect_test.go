package app

import (
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
		"loaded by hand":       {digests: map[string]string{"blue-2": "sha256:" + strings.Repeat("e", 64)}, err: "node blue-2 does not report which digest " + installerImage + " has"},
		"from elsewhere":       {digests: map[string]string{"blue-2": "docker.io/library/import-2026@" + digest}, err: "give --allow-tag"},
		"loaded by hand, yes":  {digests: map[string]string{"blue-2": ""}, arguments: []string{"--allow-tag"}, image: installerImage, warning: "is named by a tag, which can be moved"},
		"pulled, tags allowed": {arguments: []string{"--allow-tag"}, image: installerDigest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			c.rollouts.installed[installerDigest] = guarded
			c.rollouts.digests = test.digests
			r := c.run("", append(append(startBlue, "--yes"), test.arguments...)...)
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

func TestKubeletChecksumsThatTheOperatorGives(t *testing.T) {
	t.Parallel()
	right := "amd64=" + strings.Repeat("5", 64)
	for name, test := range map[string]struct {
		sums []string
		err  string
	}{
		"right":         {[]string{right, "arm64=sha256:" + strings.Repeat("A", 64)}, ""},
		"wrong":         {[]string{"amd64=" + strings.Repeat("6", 64)}, "not 6666"},
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
		"yes is not enough": {arguments: []string{"--yes"}, err: "nodes that cannot be changed: 1; no node was changed:\n  blue/blue-2: Refused: no room\nFix the causes, choose pools without these nodes, or continue without them with --leave-out=1"},
		"no":                {answers: "y\nn\n", err: "not confirmed"},
		"yes":               {answers: "y\ny\ny\n"},
		"a flag":            {arguments: []string{"--yes", "--leave-out=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := twoPools(t)
			c.rollouts.refused["blue-2"] = "no room"
			r := c.run(test.answers, append(startBlue, test.arguments...)...)
			if test.err != "" {
				require.ErrorContains(t, r.err, test.err)
				c.requireUntouched()
				return
			}
			require.NoError(t, r.err)
			require.Equal(t, []string{"blue-1"}, c.rollouts.started)
			pool, err := rollout.PoolOf(c.rollouts.sets["guard-installer-blue"])
			require.NoError(t, err)
			require.Equal(t, []string{"blue-2"}, pool.Without)
			require.Contains(t, r.out, "blue: nodes done: 1 of 1")

			// The same command inspects it again.
			c.rollouts.refused = map[string]string{}
			r = c.mustRun("", append(startBlue, "--yes")...)
			require.Contains(t, c.rollouts.started, "blue-2")
			c.mustRun("", "rollout", "uninstall", "--pool", "blue", "--yes")
			require.Equal(t, stock, c.node("blue-2").version)
		})
	}
}

func TestNotAllNodesPullAtTheSameTime(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 20)
	require.ErrorContains(t, c.run("y\nn\n", append(startBlue, "--max-pulls=3")...).err, "not confirmed")
	require.Equal(t, 3, c.rollouts.pulls)
	c.requireUntouched()
}

func TestErrorsFitAScreen(t *testing.T) {
	t.Parallel()
	c := manyNodes(t, 200)
	for i, n := range c.nodes {
		if i%2 == 0 {
			c.rollouts.refused[n.name] = "node " + n.name + " is not ready: fix it first"
		}
	}
	r := c.run("", append(startBlue, "--yes")...)
	require.ErrorContains(t, r.err, "nodes that cannot be changed: 100; no node was changed:\n  100 nodes: Refused: node NODE is not ready: fix it first: blue/node-000, ")
	require.ErrorContains(t, r.err, " and 90 more\n")
	require.Less(t, len(r.err.Error()), 800)
	c.requireUntouched()
}

func TestAnOlderPatchReleaseIsRemarkedOn(t *testing.T) {
	t.Parallel()
	c := twoPools(t)
	c.node("blue-2").version = "v1.36.9"
	r := c.mustRun("", append(start, "--yes")...)
	require.Contains(t, r.errOut, "Warning: pool blue: the image has an older patch release than these nodes run: blue-2 (v1.36.9)\n")
}
