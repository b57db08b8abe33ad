package cli

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const guarded = "v1.36.3+guard.0.2.0"

// everyState is a cluster with a node in each state and a pod of each kind.
func everyState(t *testing.T) *cluster {
	c := newCluster(t,
		&fakeNode{name: "worker-1", version: guarded, pods: []guard.PodState{
			protectedPod("web", "front-1", 1),
			heldPod("web", "cache", 2, false, guard.PodVanished),
			heldPod("web", "db-0", 3, false, guard.PodVanished),
			heldPod("jobs", "import", 4, true, guard.Evicted, guard.SandboxChanged),
			{Namespace: "web", Name: "old", UID: uidOf(5), State: guard.Terminating},
		}},
		&fakeNode{name: "worker-2", version: guarded, mode: guard.Audit},
		&fakeNode{name: "worker-3", version: "v1.36.3", status: http.StatusNotFound},
		&fakeNode{name: "worker-4", version: guarded, status: http.StatusGatewayTimeout},
		&fakeNode{name: "worker-5", version: guarded, status: http.StatusForbidden},
		&fakeNode{name: "worker-6", version: guarded, status: http.StatusServiceUnavailable},
	)
	c.addPod("web", "front-1", 1, "worker-1", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	c.addPod("web", "db-0", 33, "worker-2", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	c.addPod("jobs", "import", 4, "worker-1", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
	return c
}

func TestStatusShowsEveryNode(t *testing.T) {
	t.Parallel()
	for format, wide := range map[string]bool{"table": false, "wide": true, "yaml": true} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			r := everyState(t).run("", "status", "-o", format)
			require.NoError(t, r.err, "a node that does not answer is a row")
			golden(t, "status."+format, r.out, wide)
			require.Empty(t, r.errOut)
		})
	}
}

func TestStatusShowsANodeThatIsSilent(t *testing.T) {
	t.Parallel()
	c := newCluster(t, &fakeNode{name: "worker-1", version: guarded, silent: true}, &fakeNode{name: "worker-2", version: guarded})
	r := c.run("", "status", "-o", "jsonpath={range .items[*]}{.node} {.state} {.detail}{'\\n'}{end}")
	require.NoError(t, r.err)
	require.Equal(t, "worker-1 NoAnswer no answer within 1s\nworker-2 Guarded \n", r.out)
}

func TestStatusOfNamedNodes(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	r := c.run("", "status", "worker-2", "-o", "jsonpath={.items[*].node} {.items[*].mode}")
	require.NoError(t, r.err)
	require.Equal(t, "worker-2 Audit", r.out)

	r = c.run("", "status", "worker-9")
	require.ErrorContains(t, r.err, `nodes "worker-9" not found`)
	require.Empty(t, r.out)
}

func TestStatusCountsProtectedPodsWithoutBudget(t *testing.T) {
	t.Parallel()
	prepare := func(t *testing.T) *cluster {
		c := newCluster(t, &fakeNode{name: "worker-1", version: guarded})
		protected := labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired)
		for i, namespace := range []string{"a", "b", "b", "c", "d", "e", "f", "g"} {
			c.addPod(namespace, fmt.Sprint("pod-", i), i, "worker-1", protected, labelled("app", namespace))
		}
		c.addPod("b", "unbound", 20, "", protected)
		c.addPod("b", "finished", 21, "worker-1", protected, func(pod *corev1.Pod) { pod.Status.Phase = corev1.PodFailed })
		c.addPod("b", "unprotected", 22, "worker-1")
		return c
	}
	last := func(out string) string { return out[strings.Index(out, "\n\n")+2:] }

	c := prepare(t)
	r := c.run("", "status")
	require.NoError(t, r.err)
	require.Equal(t, "8 protected pods have no PodDisruptionBudget, so that nothing limits how many are deleted at once:\nb 2, a 1, c 1, d 1, e 1, and 2 namespaces more.\n", last(r.out))

	budget := func(namespace string, selector *metav1.LabelSelector) policyv1.PodDisruptionBudget {
		return policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "budget"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: selector}}
	}
	for _, namespace := range []string{"a", "c", "d", "e", "f"} {
		c.budgets = append(c.budgets, budget(namespace, &metav1.LabelSelector{MatchLabels: map[string]string{"app": namespace}}))
	}
	c.budgets = append(c.budgets, budget("b", &metav1.LabelSelector{}), budget("g", nil))
	r = c.run("", "status")
	require.NoError(t, r.err)
	require.Equal(t, "1 protected pod has no PodDisruptionBudget, so that nothing limits how many are deleted at once: g\n1.\n", last(r.out))
	r = c.run("", "status", "-o", "jsonpath={.withoutBudget}")
	require.NoError(t, r.err)
	require.JSONEq(t, `{"pods":1,"namespaces":{"g":1}}`, r.out)

	c.budgets = append(c.budgets, budget("g", &metav1.LabelSelector{}))
	require.NotContains(t, c.run("", "status").out, "PodDisruptionBudget")
	require.NotContains(t, prepare(t).run("", "status", "worker-1").out, "PodDisruptionBudget", "of the whole cluster, not of a node")

	c.noBudgets = true
	r = c.run("", "status")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "worker-1")
	require.Contains(t, r.errOut, "Warning: protected pods without a PodDisruptionBudget are not counted: list the PodDisruptionBudgets: ")
}

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
			r := everyState(t).run("", append([]string{"holds"}, test.arguments...)...)
			require.NoError(t, r.err)
			golden(t, name, r.out, test.wide)
			require.Equal(t, "Warning: 3 of 6 nodes did not say what they hold: worker-4 (NoAnswer), worker-5 (Forbidden), worker-6 (NoAnswer); see kubectl guard status -o wide\n", r.errOut)
		})
	}
}

// waitingSuccessor is a cluster in which the object of a pod of a StatefulSet was lost,
// and its successor waits on the same node.
func waitingSuccessor(t *testing.T) *cluster {
	c := newCluster(t, &fakeNode{name: "worker-1", version: guarded,
		pods: []guard.PodState{heldPod("web", "db-0", 3, false, guard.PodVanished), protectedPod("web", "db-0", 33)},
		waiting: []nodes.WaitingPod{{
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
			r := waitingSuccessor(t).run("", arguments...)
			require.NoError(t, r.err)
			golden(t, name, r.out, strings.HasSuffix(name, "wide"))
		})
	}
}

func TestHoldsElsewhereAreHintedAt(t *testing.T) {
	t.Parallel()
	r := everyState(t).run("", "holds", "-n", "quiet", "--node", "worker-1")
	require.NoError(t, r.err)
	require.Empty(t, r.out)
	require.Equal(t, "No pods are held in namespace quiet (3 in others: -A).\n", r.errOut)
}

func TestHoldsDoNotClaimWhatIsNotKnown(t *testing.T) {
	t.Parallel()
	r := everyState(t).run("", "holds", "--node", "worker-4", "-A")
	require.NoError(t, r.err)
	require.Contains(t, r.errOut, "No pods are held as far as is known.")
}

func TestHoldsShowAnObjectThatCannotBeRead(t *testing.T) {
	t.Parallel()
	c := newCluster(t, &fakeNode{name: "worker-1", version: guarded, pods: []guard.PodState{heldPod("closed", "vault", 1, true, guard.Evicted)}})
	r := c.run("", "holds", "-n", "closed")
	require.NoError(t, r.err)
	require.Contains(t, r.out, "Unknown")
}

func TestUnknownOutputFormat(t *testing.T) {
	t.Parallel()
	r := everyState(t).run("", "holds", "-o", "xml")
	require.ErrorContains(t, r.err, `unknown format "xml"; known are table, wide, json, yaml`)
}

func TestWhy(t *testing.T) {
	t.Parallel()
	event := func(n int, before time.Duration, reason, message string) corev1.Event {
		return corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: "web", Name: reason},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "web", Name: "pod", UID: uidOf(n)},
			Reason:         reason, Message: message, Count: 1, Source: corev1.EventSource{Component: "kubelet", Host: "worker-1"},
			LastTimestamp: metav1.NewTime(now.Add(-before)),
		}
	}
	for name, test := range map[string]struct {
		pod     string
		prepare func(*cluster)
	}{
		"why-protected":     {pod: "front-1"},
		"why-held-gone":     {pod: "cache"},
		"why-held-replaced": {pod: "pod/db-0"},
		"why-ended": {pod: "past", prepare: func(c *cluster) {
			c.events = []corev1.Event{
				event(9, time.Minute, guard.EventHoldReleased, "No longer held (PodVanished) after 2m: its deletion was requested (PodDeletionRecord)."),
				event(9, 3*time.Minute, guard.EventKillRefused, "The kubelet did not stop this pod (PodVanished): its object is gone from the API."),
			}
			c.records[string(uidOf(9))] = []byte(`{"apiVersion":"kubelet-guard.io/v1alpha1","kind":"PodDeletion","metadata":{"name":"` + string(uidOf(9)) +
				`","creationTimestamp":"2026-11-22T11:58:00Z"},"spec":{"namespace":"web","name":"past","requestedBy":"ada","reason":"moved away"}}`)
		}},
		"why-unlabelled": {pod: "plain", prepare: func(c *cluster) { c.addPod("web", "plain", 8, "worker-1") }},
		"why-unguarded": {pod: "plain", prepare: func(c *cluster) {
			c.addPod("web", "plain", 8, "worker-3", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
		}},
		"why-no-answer": {pod: "plain", prepare: func(c *cluster) {
			c.addPod("web", "plain", 8, "worker-4", labelled(guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired))
		}},
		"why-no-definition": {pod: "front-1", prepare: func(c *cluster) { c.records = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := everyState(t)
			if test.prepare != nil {
				test.prepare(c)
			}
			r := c.run("", "why", test.pod)
			require.NoError(t, r.err)
			golden(t, name+".txt", r.out, false)
		})
	}
}

func TestWhyOfAPodThatNobodyKnows(t *testing.T) {
	t.Parallel()
	r := everyState(t).run("", "why", "nobody", "--node", "worker-1")
	require.EqualError(t, r.err, "pod web/nobody: neither the API, nor a node that answers, nor an event of the guard knows it")
	require.Empty(t, r.out)
}

func TestEveryCauseHasAdvice(t *testing.T) {
	t.Parallel()
	for _, cause := range guard.Causes() {
		require.NotEmpty(t, advice[cause], cause)
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	wrap(&out, "Name:  ", strings.Repeat("word ", 30)+strings.Repeat("x", 120))
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	require.Len(t, lines, 3)
	require.LessOrEqual(t, len(lines[0]), textWidth)
	require.True(t, strings.HasPrefix(lines[1], "       word"))
	require.Equal(t, "       "+strings.Repeat("x", 120), lines[2], "a word that fits nowhere is kept whole")
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
			r := everyState(t).run("", append([]string{"__complete"}, test.arguments...)...)
			require.NoError(t, r.err)
			require.Equal(t, test.want, r.out)
		})
	}
}
