package app

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/pkg/kubelet/guard"
)

func TestStatusIsAnErrorWhenNoNodeResponds(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		states []int
		err    string
	}{
		"one responds": {[]int{0, http.StatusForbidden}, ""},
		"none":         {[]int{http.StatusServiceUnavailable, http.StatusForbidden}, "no node responded"},
		"no right":     {[]int{http.StatusForbidden, http.StatusForbidden}, "no node may be queried: that needs get on nodes/proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, &fakeNode{name: "a", status: test.states[0]}, &fakeNode{name: "b", status: test.states[1]})
			r := c.run("", "status")
			require.Contains(t, r.out, "a ")
			if test.err == "" {
				require.NoError(t, r.err)
				return
			}
			require.ErrorContains(t, r.err, test.err)
		})
	}
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
	r := c.mustRun("", "status", "-o", "jsonpath={range .items[*]}{.node} {.state} {.detail}{'\\n'}{end}")
	require.Equal(t, "worker-1 NoAnswer no response within 1s\nworker-2 Guarded \n", r.out)
}

func TestStatusOfNamedNodes(t *testing.T) {
	t.Parallel()
	c := everyState(t)
	r := c.mustRun("", "status", "worker-2", "-o", "jsonpath={.items[*].node} {.items[*].mode}")
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
	r := c.mustRun("", "status")
	require.Equal(t, "Protected pods without a PodDisruptionBudget: 8 (b 2, a 1, c 1, d 1, e 1, and 2 more). Nothing\nlimits how many are deleted at once.\n", last(r.out))

	budget := func(namespace string, selector *metav1.LabelSelector) policyv1.PodDisruptionBudget {
		return policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "budget"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: selector}}
	}
	for _, namespace := range []string{"a", "c", "d", "e", "f"} {
		c.budgets = append(c.budgets, budget(namespace, &metav1.LabelSelector{MatchLabels: map[string]string{"app": namespace}}))
	}
	c.budgets = append(c.budgets, budget("b", &metav1.LabelSelector{}), budget("g", nil))
	r = c.mustRun("", "status")
	require.Equal(t, "Protected pods without a PodDisruptionBudget: 1 (g 1). Nothing limits how many are deleted at\nonce.\n", last(r.out))
	r = c.mustRun("", "status", "-o", "jsonpath={.withoutBudget}")
	require.JSONEq(t, `{"pods":1,"namespaces":{"g":1}}`, r.out)

	c.budgets = append(c.budgets, budget("g", &metav1.LabelSelector{}))
	require.NotContains(t, c.run("", "status").out, "PodDisruptionBudget")
	require.NotContains(t, prepare(t).run("", "status", "worker-1").out, "PodDisruptionBudget", "of the whole cluster, not of a node")

	c.noBudgets = true
	r = c.mustRun("", "status")
	require.Contains(t, r.out, "worker-1")
	require.Contains(t, r.errOut, "Warning: protected pods without a PodDisruptionBudget are not counted: list the PodDisruptionBudgets: ")
}
