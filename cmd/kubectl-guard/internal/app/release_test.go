package app

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/kubectl-guard/internal/record"
	"kubelet-guard.io/cmd/kubectl-guard/internal/release"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// obedient makes the kubelet take records: once one is there, the pod terminates,
// and with the question after that it is gone.
func obedient(c *cluster) func(*fakeNode) {
	return func(n *fakeNode) {
		var left []guard.PodState
		for _, pod := range n.pods {
			if _, recorded := c.records[string(pod.UID)]; recorded {
				if pod.State == guard.Terminating {
					continue
				}
				pod.State, pod.Holds = guard.Terminating, nil
				pod.Evidence = &guard.Evidence{Kind: "PodDeletionRecord", Time: now}
			}
			left = append(left, pod)
		}
		n.pods = left
	}
}

func TestReleaseWritesTheRecordAndWaits(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	c.nodes[0].asked = obedient(c)
	r := c.mustRun("y\n", "release", "cache", "--reason", "moved away")
	golden(t, "release.txt", r.out, false)
	require.Len(t, c.writes, 1)
	require.True(t, strings.HasPrefix(c.writes[0], "POST /apis/kubelet-guard.io/v1alpha1/poddeletions "))
	var written record.PodDeletion
	require.NoError(t, json.Unmarshal(c.records[string(uidOf(2))], &written))
	require.Equal(t, *record.New(uidOf(2), record.Spec{
		Namespace: "web", Name: "cache", NodeName: "worker-1", Reason: "moved away", RequestedBy: "ada", Expires: record.Expiry(now, release.DefaultRecordTTL),
	}), inUTC(written))
}

// The record names the node that the pod was bound to, which is what its kubelet
// looks for, also after it has changed its name.
func TestReleaseNamesTheNodeOfThePod(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	pod := heldPod("web", "renamed", 7, false, guard.PodVanished)
	pod.NodeName = "worker-1.example"
	c.nodes[0].pods = []guard.PodState{pod}
	c.mustRun("", "release", "renamed", "--yes", "--timeout=0")
	var written record.PodDeletion
	require.NoError(t, json.Unmarshal(c.records[string(uidOf(7))], &written))
	require.Equal(t, "worker-1.example", written.Spec.NodeName)
}

// inUTC undoes what decoding does to a time.
func inUTC(r record.PodDeletion) record.PodDeletion {
	r.Spec.Expires.Time = r.Spec.Expires.UTC()
	return r
}

func TestReleaseForPrograms(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	c.nodes[0].asked = obedient(c)
	r := c.mustRun("", "release", "cache", "-o", "yaml", "--yes")
	golden(t, "release.yaml", r.out, false)

	require.ErrorContains(t, c.run("", "release", "db-0", "-o", "yaml").err, "give --yes or --dry-run")
}

func TestReleaseAsksFirst(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{"no": "n\n", "nothing": "", "something else": "cache\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := everyState(t)
			r := c.run(answer, "release", "cache")
			require.EqualError(t, r.err, "not confirmed, nothing was done; answer y, or give --yes")
			require.Contains(t, r.out, "Release pods: 1? [y/N]")
			require.Empty(t, c.writes)
		})
	}
}

func TestReleaseDryRun(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	r := c.mustRun("", "release", "cache", "--dry-run=client")
	require.Contains(t, r.out, "pod/cache: record "+string(uidOf(2))+" written (dry run)\n")
	require.Empty(t, c.writes)

	r = c.mustRun("", "release", "cache", "--dry-run=client", "-o", "yaml")
	golden(t, "release-dry-run.yaml", r.out, false)

	r = c.mustRun("", "release", "cache", "--dry-run=server")
	require.Contains(t, r.out, "written (server dry run)\n")
	require.Len(t, c.writes, 1)
	require.Contains(t, c.writes[0], "?dryRun=All ")
	require.Empty(t, c.records)
}

func TestReleaseAllOfANode(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	c.nodes[0].asked = obedient(c)
	r := c.mustRun("", "release", "--all", "--node", "worker-1", "--yes")
	require.Len(t, c.records, 2, "cache and db-0")
	require.Equal(t, "Skipped: pod jobs/import: its object is still there; use kubectl delete pod -n jobs import, which works for held pods as for any other\n", r.errOut)
	golden(t, "release-all.txt", r.out, false)

	r = c.mustRun("", "release", "--all", "--node", "worker-2", "--yes")
	require.Equal(t, "Node worker-2 holds no pod whose object is gone; there is nothing to release.\n", r.errOut)

	require.EqualError(t, c.run("", "release", "--all", "--node", "worker-4", "--yes").err, "node worker-4 did not report what it holds: error trying to reach service: dial tcp: connection refused")
}

func TestReleaseRefusesWhatARecordDoesNothingFor(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		arguments []string
		prepare   func(*cluster)
		err       string
	}{
		"object present": {
			arguments: []string{"import", "-n", "jobs"},
			err:       "pod jobs/import: its object is still there; use kubectl delete pod -n jobs import, which works for held pods as for any other",
		},
		"object present, node by another name": {
			arguments: []string{"lost"},
			prepare: func(c *cluster) {
				c.nodes[0].pods = []guard.PodState{heldPod("web", "lost", 7, false, guard.PodVanished)}
				c.addPod("web", "lost", 7, "worker-1.example")
			},
			err: `its object is there, bound to node "worker-1.example", but it runs on node worker-1`,
		},
		"object cannot be read": {
			arguments: []string{"vault", "-n", "closed"},
			prepare: func(c *cluster) {
				c.nodes[0].pods = []guard.PodState{heldPod("closed", "vault", 7, false, guard.PodVanished)}
			},
			err: "pod closed/vault: cannot determine whether its object is there",
		},
		"not held": {
			arguments: []string{"calm"},
			prepare:   func(c *cluster) { c.nodes[0].pods = []guard.PodState{protectedPod("web", "calm", 7)} },
			err:       "pod web/calm is not held by node worker-1; there is nothing to release",
		},
		"two of the name": {
			arguments: []string{"twin"},
			prepare: func(c *cluster) {
				c.nodes[0].pods = []guard.PodState{heldPod("web", "twin", 7, false, guard.PodVanished)}
				c.nodes[1].pods = []guard.PodState{heldPod("web", "twin", 8, false, guard.PodVanished)}
			},
			err: "several pods that were web/twin are held; choose one:\n  --uid " + string(uidOf(7)) + " (node worker-1)\n  --uid " + string(uidOf(8)) + " (node worker-2)",
		},
		"known to no node": {
			arguments: []string{"nobody"},
			err:       "no node that responds has a protected pod web/nobody; if it ran on another one, give its --uid",
		},
		"known to no node, but to the API": {
			arguments: []string{"plain"},
			prepare:   func(c *cluster) { c.addPod("web", "plain", 7, "worker-3") },
			err:       "pod web/plain: its object is there, so it needs no release; use kubectl delete pod -n web plain",
		},
		"UID known to no node": {
			arguments: []string{"--uid", string(uidOf(7))},
			err:       "to write a record for later, give its name as well",
		},
		"no definition": {
			arguments: []string{"cache", "--yes"},
			prepare:   func(c *cluster) { c.records = nil },
			err:       "this cluster does not know PodDeletion objects; apply the project's manifests",
		},
		"nothing":          {err: "which pod? give POD, --uid=UID, or --all --node=NODE"},
		"all of all":       {arguments: []string{"--all"}, err: "--all needs --node"},
		"all and one":      {arguments: []string{"cache", "--all"}, err: "--all goes with --node, not with a pod or --uid"},
		"not a pod":        {arguments: []string{"deploy/web"}, err: `"deploy/web" is not a pod`},
		"negative timeout": {arguments: []string{"cache", "--timeout=-1s"}, err: "--timeout must not be negative"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := everyState(t)
			if test.prepare != nil {
				test.prepare(c)
			}
			require.ErrorContains(t, c.run("y\n", append([]string{"release"}, test.arguments...)...).err, test.err)
			require.Empty(t, c.writes)
		})
	}
}

func TestReleaseOfAPodThatIsEndingIsDone(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	r := c.mustRun("", "release", "old")
	require.Contains(t, r.errOut, "Pod web/old on node worker-1 is terminating already")
	require.Empty(t, c.writes)
}

func TestReleasePicksTheHeldPodOfAName(t *testing.T) {
	t.Parallel()
	c := newCluster(t,
		&fakeNode{name: "worker-1", version: guarded, pods: []guard.PodState{heldPod("web", "db-0", 3, false, guard.PodVanished)}},
		&fakeNode{name: "worker-2", version: guarded, pods: []guard.PodState{protectedPod("web", "db-0", 33)}},
	)
	c.addPod("web", "db-0", 33, "worker-2")
	r := c.mustRun("", "release", "db-0", "--yes", "--timeout=0")
	require.Contains(t, r.out, "A later pod of the same name is not touched.")
	require.Contains(t, c.records, string(uidOf(3)))
	require.Len(t, c.records, 1)
}

func TestReleaseForLater(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	r := c.mustRun("", "release", "far-0", "--uid", string(uidOf(7)), "--yes")
	require.Contains(t, r.out, "No node that responds has this pod. The record waits for the node to come back.\n")
	require.Contains(t, c.records, string(uidOf(7)))
}

func TestReleaseWithARecordThatExists(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	c.records[string(uidOf(2))] = json.RawMessage(`{}`)
	r := c.mustRun("", "release", "cache", "--yes", "--timeout=0")
	require.Contains(t, r.out, "record "+string(uidOf(2))+" exists already\n")
}

func TestReleaseThatIsNotTaken(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	require.ErrorContains(t, c.run("", "release", "cache", "--yes", "--timeout=100ms").err, "pod web/cache: its kubelet has not taken the record within 100ms (last seen: node worker-1: Held); the record stays and will be found")
}

func TestReleaseThatTakesLonger(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	take := obedient(c)
	c.nodes[0].asked = func(n *fakeNode) {
		if len(n.pods) > 1 && n.pods[1].State != guard.Terminating {
			take(n)
		}
	}
	require.ErrorContains(t, c.run("", "release", "cache", "--yes", "--timeout=100ms").err, "pod web/cache has not ended within 100ms; its kubelet has the evidence and is terminating it (last seen: node worker-1: Terminating)")
}
