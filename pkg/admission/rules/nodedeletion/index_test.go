package nodedeletion

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

func nodeObject(name, pool string, ready bool) *corev1.Node {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid of " + name), Labels: map[string]string{"pool": pool}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}},
	}
}

// Whatever events come, a pool is what a scan of all nodes finds.
func TestIndexFollowsTheNodes(t *testing.T) {
	selectors := []labels.Selector{labels.Everything(), labels.SelectorFromSet(labels.Set{"pool": "a"}), labels.SelectorFromSet(labels.Set{"pool": "b"})}
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			index, want := NewIndex(), map[string]*corev1.Node{}
			type loan struct{ nodes, copied []Node }
			var lent []loan
			for range 300 {
				name := fmt.Sprint("node", random.IntN(10))
				node := nodeObject(name, []string{"a", "b", "c"}[random.IntN(3)], random.IntN(2) == 0)
				switch random.IntN(6) {
				case 0:
					index.OnDelete(cache.DeletedFinalStateUnknown{Key: name, Obj: node})
					delete(want, name)
				case 1:
					now := metav1.Now()
					node.DeletionTimestamp = &now
					fallthrough
				default:
					index.OnUpdate(nil, node)
					want[name] = node
				}
				for _, selector := range selectors {
					var selected []Node
					for _, node := range want {
						if selector.Matches(labels.Set(node.Labels)) {
							selected = append(selected, NodeOf(node))
						}
					}
					got, err := index.List(selector)
					require.NoError(t, err)
					require.ElementsMatch(t, selected, got)
					lent = append(lent, loan{got, slices.Clone(got)})
				}
			}
			for _, l := range lent {
				require.Equal(t, l.copied, l.nodes, "what was handed out must not change")
			}
		})
	}
}

func TestIndexKeepsAPoolWhileNothingChangesThatCounts(t *testing.T) {
	index := NewIndex()
	index.OnAdd(nodeObject("a-0", "a", true), true)
	index.OnAdd(nodeObject("b-0", "b", true), true)
	poolOf := func() *Node {
		nodes, err := index.List(labels.SelectorFromSet(labels.Set{"pool": "a"}))
		require.NoError(t, err)
		return &nodes[0]
	}
	before := poolOf()
	heartbeat := nodeObject("a-0", "a", true)
	heartbeat.Status.Conditions[0].LastHeartbeatTime = metav1.Now()
	index.OnUpdate(nil, heartbeat)
	index.OnUpdate(nil, nodeObject("b-0", "b", false))
	require.Same(t, before, poolOf())
	index.OnUpdate(nil, nodeObject("a-0", "a", false))
	require.NotSame(t, before, poolOf())
}

func TestIndexForgetsPools(t *testing.T) {
	index := NewIndex()
	for i := range 3 * mostPools {
		_, err := index.List(labels.SelectorFromSet(labels.Set{"pool": fmt.Sprint(i)}))
		require.NoError(t, err)
	}
	require.LessOrEqual(t, len(index.pools), mostPools)
}

func TestIndexKnowsNothingBeforeTheFirstList(t *testing.T) {
	index, filled := NewIndex(), false
	index.HasSynced = func() bool { return filled }
	_, err := index.List(labels.Everything())
	require.Error(t, err)
	filled = true
	_, err = index.List(labels.Everything())
	require.NoError(t, err)
}
