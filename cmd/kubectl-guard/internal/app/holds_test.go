package app

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/pkg/kubelet/guard"
)

func TestHolds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		arguments []string
		wide      bool
	}{
		"holds.table":     {arguments: nil},
		"holds-all.table": {arguments: []string{"-A"}},
		"holds-all.wide":  {arguments: []string{"-A", "-o", "wide"}, wide: true},
		"holds-all.yaml":  {arguments: []string{"-A", "-o", "yaml"}, wide: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := everyState(t).mustRun("", append([]string{"holds"}, test.arguments...)...)
			golden(t, name, r.out, test.wide)
			require.Equal(t, "Warning: nodes that did not report what they hold, 3 of 6: worker-4 (NoAnswer), worker-5 (Forbidden), worker-6 (NoAnswer); see kubectl guard status -o wide\n", r.errOut)
		})
	}
}

// waitingSuccessor is a cluster in which the object of a pod of a StatefulSet was lost,
// and its successor waits on the same node.
func waitingSuccessor(t *testing.T) *cluster {
	c := newCluster(t, &fakeNode{name: "worker-1", version: guarded,
		pods: []guard.PodState{heldPod("web", "db-0", 3, false, guard.PodVanished), protectedPod("web", "db-0", 33)},
		waiting: []guard.WaitingState{{
			Namespace: "web", Name: "db-0", UID: uidOf(33), HeldUID: uidOf(3),
			Shares: []string{"claim data-db-0", "host port 5432/TCP"}, Since: now.Add(-4 * time.Minute),
		}},
	})
	c.addPod("web", "db-0", 33, "worker-1", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	return c
}

func TestSuccessorThatWaits(t *testing.T) {
	t.Parallel()
	for name, arguments := range map[string][]string{
		"holds-waiting.table": {"holds"},
		"holds-waiting.wide":  {"holds", "-o", "wide"},
		"holds-waiting.yaml":  {"holds", "-o", "yaml"},
		"why-waiting.txt":     {"why", "db-0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := waitingSuccessor(t).mustRun("", arguments...)
			golden(t, name, r.out, strings.HasSuffix(name, "wide"))
		})
	}
}

func TestHoldsElsewhereAreHintedAt(t *testing.T) {
	t.Parallel()
	r := everyState(t).mustRun("", "holds", "-n", "quiet", "--node", "worker-1")
	require.Empty(t, r.out)
	require.Equal(t, "No pods are held in namespace quiet (3 in others: -A).\n", r.errOut)
}

func TestHoldsDoNotClaimWhatIsNotKnown(t *testing.T) {
	t.Parallel()
	r := everyState(t).mustRun("", "holds", "--node", "worker-4", "-A")
	require.Contains(t, r.errOut, "No pods are held as far as is known.")
}

func TestHoldsShowAnObjectThatCannotBeRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, &fakeNode{name: "worker-1", version: guarded, pods: []guard.PodState{heldPod("closed", "vault", 1, true, guard.Evicted)}})
	r := c.mustRun("", "holds", "-n", "closed")
	require.Contains(t, r.out, "Unknown")
}

func TestUnknownOutputFormat(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, everyState(t).run("", "holds", "-o", "xml").err, `unknown format "xml"; known are table, wide, json, yaml`)
}
