package nodes

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	testingclock "k8s.io/utils/clock/testing"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// nodesOf returns nodes of a pool, of which the first are not ready.
func nodesOf(pool string, total, lost int) []Node {
	nodes := make([]Node, total)
	for i := range nodes {
		nodes[i] = Node{Name: fmt.Sprintf("%s-%d", pool, i), Labels: map[string]string{"pool": pool}, Ready: i >= lost}
	}
	return nodes
}

func policyFor(pool string) *guardv1alpha1.NodeDeletionPolicy {
	return &guardv1alpha1.NodeDeletionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: pool},
		Spec:       guardv1alpha1.NodeDeletionPolicySpec{NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"pool": pool}}},
	}
}

func TestLostNodesAndMassFailures(t *testing.T) {
	for name, test := range map[string]struct {
		nodes    []Node
		policies []*guardv1alpha1.NodeDeletionPolicy
		want     Condition
	}{
		"ready":                             {nodes: nodesOf("a", 3, 0)},
		"gone":                              {nodes: nodesOf("b", 3, 1)},
		"one of three":                      {nodes: nodesOf("a", 3, 1), want: Condition{Lost: true}},
		"two of three":                      {nodes: nodesOf("a", 3, 2), want: Condition{Lost: true}},
		"all of three":                      {nodes: nodesOf("a", 3, 3), want: Condition{MassFailure: "3 of 3 nodes of the cluster are not ready"}},
		"the only one":                      {nodes: nodesOf("a", 1, 1), want: Condition{MassFailure: "1 of 1 nodes of the cluster are not ready"}},
		"half of many":                      {nodes: nodesOf("a", 100, 54), want: Condition{Lost: true}},
		"more than half":                    {nodes: nodesOf("a", 100, 55), want: Condition{MassFailure: "55 of 100 nodes of the cluster are not ready"}},
		"a whole pool of a cluster":         {nodes: append(nodesOf("a", 4, 4), nodesOf("b", 20, 0)...), want: Condition{Lost: true}},
		"a whole pool that has a policy":    {nodes: append(nodesOf("a", 4, 4), nodesOf("b", 20, 0)...), policies: []*guardv1alpha1.NodeDeletionPolicy{policyFor("a")}, want: Condition{MassFailure: "4 of 4 nodes of the pool of NodeDeletionPolicy a are not ready"}},
		"another pool":                      {nodes: append(nodesOf("a", 4, 1), nodesOf("b", 20, 20)...), policies: []*guardv1alpha1.NodeDeletionPolicy{policyFor("a"), policyFor("b")}, want: Condition{Lost: true}},
		"a small pool in a healthy cluster": {nodes: append(nodesOf("a", 1, 1), nodesOf("b", 20, 0)...), policies: []*guardv1alpha1.NodeDeletionPolicy{policyFor("a")}, want: Condition{Lost: true}},
		"a small pool in an ill cluster":    {nodes: append(nodesOf("a", 1, 1), nodesOf("b", 20, 18)...), policies: []*guardv1alpha1.NodeDeletionPolicy{policyFor("a")}, want: Condition{MassFailure: "19 of 21 nodes of the cluster are not ready"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(test.nodes, test.policies...)
			got, err := NewLostNodes(policies{s}, nodeList{s}, testingclock.NewFakePassiveClock(noon)).Condition(t.Context(), "a-0")
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestLostNodesAreReadOnceASecond(t *testing.T) {
	s := newStore(nodesOf("a", 3, 1))
	clock := testingclock.NewFakePassiveClock(noon)
	lost := NewLostNodes(policies{s}, nodeList{s}, clock)
	condition := func() Condition {
		t.Helper()
		got, err := lost.Condition(t.Context(), "a-0")
		require.NoError(t, err)
		return got
	}
	require.True(t, condition().Lost)
	s.nodes[0].Ready = true
	require.True(t, condition().Lost)
	clock.SetTime(noon.Add(lostAge))
	require.False(t, condition().Lost)
}
