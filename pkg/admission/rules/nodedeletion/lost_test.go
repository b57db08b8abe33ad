package nodedeletion

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// nodesOf returns nodes of a pool, of which the first are not ready.
func nodesOf(pool string, total, lost int) []Node {
	nodes := make([]Node, total)
	for i := range nodes {
		nodes[i] = Node{Name: fmt.Sprintf("%s-%d", pool, i), Labels: map[string]string{"pool": pool}, Ready: i >= lost, Reported: true}
	}
	return nodes
}

func policyFor(pool string) *guardv1alpha1.NodeDeletionPolicy {
	return &guardv1alpha1.NodeDeletionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: pool},
		Spec:       guardv1alpha1.NodeDeletionPolicySpec{NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"pool": pool}}},
	}
}

// liveNodes are those that have an object at the API server, in addition to the cached ones.
type liveNodes []string

func (l liveNodes) reader() client.Reader {
	builder := fake.NewClientBuilder()
	for _, name := range l {
		builder.WithObjects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	return builder.Build()
}

// protectedOn are the nodes that protected pods are bound to.
type protectedOn []string

func (p protectedOn) visit(visit func(string)) error {
	for _, node := range p {
		visit(node)
	}
	return nil
}

func newLostNodes(s *apiServer, live liveNodes, protected protectedOn, clock clock.PassiveClock) *LostNodes {
	return NewLostNodes(s, s.index, live.reader(), protected.visit, clock)
}

func TestDeletedNodes(t *testing.T) {
	gone := func(count int) (names protectedOn) {
		for i := range count {
			names = append(names, fmt.Sprintf("gone-%d", i))
		}
		return append(names, "a-0")
	}
	for name, test := range map[string]struct {
		nodes     []Node
		live      liveNodes
		protected protectedOn
		want      Health
	}{
		"one of four":                        {nodes: nodesOf("a", 3, 0), protected: gone(1), want: Health{Deleted: true, Lost: true}},
		"two of three":                       {nodes: nodesOf("a", 1, 0), protected: gone(2), want: Health{Deleted: true, Lost: true}},
		"all":                                {protected: gone(1), want: Health{Deleted: true, MassFailure: "protected pods are on 2 nodes that were deleted, and 2 of 2 nodes are not ready or deleted"}},
		"many":                               {nodes: nodesOf("a", 45, 0), protected: gone(55), want: Health{Deleted: true, MassFailure: "protected pods are on 55 nodes that were deleted, and 55 of 100 nodes are not ready or deleted"}},
		"with many that are not ready":       {nodes: nodesOf("a", 95, 50), protected: gone(5), want: Health{Deleted: true, MassFailure: "protected pods are on 5 nodes that were deleted, and 55 of 100 nodes are not ready or deleted"}},
		"new, so that the cache lacks it":    {nodes: nodesOf("a", 3, 0), live: liveNodes{"gone-0"}, protected: gone(1)},
		"without protected pods on any node": {nodes: nodesOf("a", 3, 0), want: Health{Deleted: true, Lost: true}},
	} {
		t.Run(name, func(t *testing.T) {
			lost := newLostNodes(newAPIServer(t, test.nodes), test.live, test.protected, testingclock.NewFakePassiveClock(noon))
			for range 2 {
				got, err := lost.Health(t.Context(), "gone-0", false)
				require.NoError(t, err)
				require.Equal(t, test.want, got)
			}
		})
	}
}

func TestANodeThatWasJustDeleted(t *testing.T) {
	lost := newLostNodes(newAPIServer(t, nodesOf("a", 3, 0)), liveNodes{"a-1"}, nil, testingclock.NewFakePassiveClock(noon))
	for name, test := range map[string]struct {
		node string
		live bool
		want Health
	}{
		"by the cache":      {"a-0", false, Health{}},
		"by the API server": {"a-0", true, Health{Deleted: true, Lost: true}},
		"one that is there": {"a-1", true, Health{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := lost.Health(t.Context(), test.node, test.live)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestLostNodesAndMassFailures(t *testing.T) {
	for name, test := range map[string]struct {
		nodes    []Node
		policies []client.Object
		want     Health
	}{
		"ready":                             {nodes: nodesOf("a", 3, 0)},
		"deleted":                           {nodes: nodesOf("b", 3, 1), want: Health{Deleted: true, Lost: true}},
		"new, nothing reported":             {nodes: []Node{{Name: "a-0"}, {Name: "a-1", Ready: true, Reported: true}}},
		"one of three":                      {nodes: nodesOf("a", 3, 1), want: Health{Lost: true}},
		"two of three":                      {nodes: nodesOf("a", 3, 2), want: Health{Lost: true}},
		"all of three":                      {nodes: nodesOf("a", 3, 3), want: Health{MassFailure: "3 of 3 nodes of the cluster are not ready"}},
		"the only one":                      {nodes: nodesOf("a", 1, 1), want: Health{MassFailure: "1 of 1 nodes of the cluster are not ready"}},
		"half of many":                      {nodes: nodesOf("a", 100, 54), want: Health{Lost: true}},
		"more than half":                    {nodes: nodesOf("a", 100, 55), want: Health{MassFailure: "55 of 100 nodes of the cluster are not ready"}},
		"a whole pool of a cluster":         {nodes: append(nodesOf("a", 4, 4), nodesOf("b", 20, 0)...), want: Health{Lost: true}},
		"a whole pool that has a policy":    {nodes: append(nodesOf("a", 4, 4), nodesOf("b", 20, 0)...), policies: []client.Object{policyFor("a")}, want: Health{MassFailure: "4 of 4 nodes of the pool of NodeDeletionPolicy a are not ready"}},
		"another pool":                      {nodes: append(nodesOf("a", 4, 1), nodesOf("b", 20, 20)...), policies: []client.Object{policyFor("a"), policyFor("b")}, want: Health{Lost: true}},
		"a small pool in a healthy cluster": {nodes: append(nodesOf("a", 1, 1), nodesOf("b", 20, 0)...), policies: []client.Object{policyFor("a")}, want: Health{Lost: true}},
		"a small pool in an ill cluster":    {nodes: append(nodesOf("a", 1, 1), nodesOf("b", 20, 18)...), policies: []client.Object{policyFor("a")}, want: Health{MassFailure: "19 of 21 nodes of the cluster are not ready"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t, test.nodes, test.policies...)
			got, err := newLostNodes(s, nil, nil, testingclock.NewFakePassiveClock(noon)).Health(t.Context(), "a-0", false)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestLostNodesAreReadOnceASecond(t *testing.T) {
	s := newAPIServer(t, nodesOf("a", 3, 1))
	clock := testingclock.NewFakePassiveClock(noon)
	lost := newLostNodes(s, nil, nil, clock)
	health := func() Health {
		t.Helper()
		got, err := lost.Health(t.Context(), "a-0", false)
		require.NoError(t, err)
		return got
	}
	require.True(t, health().Lost)
	s.index.OnUpdate(nil, nodeObject("a-0", "a", true))
	require.True(t, health().Lost)
	clock.SetTime(noon.Add(lostAge))
	require.False(t, health().Lost)
}
