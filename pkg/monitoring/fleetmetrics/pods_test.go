package fleetmetrics

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/admission/rules/poddeletion"
)

// podOn returns a pod with the labels ("app", "web", ...).
func podOn(node, name string, labels ...string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid of " + name), Labels: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for i := 0; i < len(labels); i += 2 {
		pod.Labels[labels[i]] = labels[i+1]
	}
	return pod
}

func finished(pod *corev1.Pod) *corev1.Pod {
	pod.Status.Phase = corev1.PodFailed
	return pod
}

func countsOf(t *testing.T, p *pods) map[string]int {
	t.Helper()
	counts := map[string]int{}
	require.NoError(t, p.byNode(func(node string, pods int) { counts[node] = pods }))
	return counts
}

// requireCounted fails when the store has anything else than these pods.
func requireCounted(t *testing.T, p *pods, want map[string]*corev1.Pod) {
	t.Helper()
	nodes, groups, running := map[string]int{}, map[string]int{}, 0
	for _, pod := range want {
		if runs(pod) {
			nodes[pod.Spec.NodeName]++
			groups[groupOf(pod)]++
			running++
		}
	}
	require.Equal(t, nodes, countsOf(t, p))
	got := map[string]int{}
	for key, g := range p.groups {
		got[key.Value()] = g.pods
	}
	require.Equal(t, groups, got)
	require.Len(t, p.known, running)
	require.Len(t, p.nodes, len(nodes))
}

func TestPodsAreNotKnownBeforeTheFirstList(t *testing.T) {
	p := newPods()
	require.NoError(t, p.Add(podOn("a", "web")))
	require.ErrorIs(t, p.byNode(nil), errNotFilled)
	_, err := p.withoutBudget(poddeletion.NewIndex())
	require.ErrorIs(t, err, errNotFilled)
}

func TestPodsAreCountedWhereTheyAre(t *testing.T) {
	p := newPods()
	require.NoError(t, p.Replace([]any{podOn("a", "one", "app", "x"), podOn("", "two", "app", "x"), finished(podOn("a", "three"))}, ""))
	require.Equal(t, map[string]int{"a": 1}, countsOf(t, p))
	require.NoError(t, p.Update(podOn("b", "two", "app", "x")), "bound")
	require.NoError(t, p.Update(podOn("b", "two", "app", "x")), "a heartbeat")
	require.Equal(t, map[string]int{"a": 1, "b": 1}, countsOf(t, p))
	require.NoError(t, p.Update(finished(podOn("b", "two", "app", "x"))))
	require.NoError(t, p.Delete(podOn("c", "never seen")))
	require.Equal(t, map[string]int{"a": 1}, countsOf(t, p))
	require.NoError(t, p.Delete(podOn("a", "one")))
	require.Empty(t, countsOf(t, p))
	require.Error(t, p.Add(&corev1.Node{}))
}

// What events and lists say in any order is what is counted, and nothing is left over.
func TestPodsFollowEventsAndLists(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			p, want := newPods(), map[string]*corev1.Pod{}
			require.NoError(t, p.Replace(nil, ""))
			for range 300 {
				name := fmt.Sprint("pod", random.IntN(20))
				pod := podOn([]string{"", "a", "b", "c"}[random.IntN(4)], name, "app", fmt.Sprint(random.IntN(3)))
				if random.IntN(4) == 0 {
					pod = finished(pod)
				}
				switch random.IntN(8) {
				case 0:
					require.NoError(t, p.Delete(pod))
					delete(want, name)
				case 1:
					// Some are gone, and one has come, without an event.
					if random.IntN(2) == 0 {
						clear(want)
					}
					want[name] = pod
					var list []any
					for _, pod := range want {
						list = append(list, sightingOf(pod))
					}
					require.NoError(t, p.Replace(list, ""))
				default:
					require.NoError(t, p.Update(pod))
					want[name] = pod
				}
				requireCounted(t, p, want)
			}
		})
	}
}

func TestGroupsAreWithoutLabelsOfOnePod(t *testing.T) {
	member := func(name, index string) *corev1.Pod {
		pod := podOn("a", name, "app", "db", "statefulset.kubernetes.io/pod-name", name, "apps.kubernetes.io/pod-index", index, "example.com/member", name)
		pod.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Name: "db", Controller: new(true)}}
		return pod
	}
	first := groupOf(member("db-0", "0"))
	require.Equal(t, first, groupOf(member("db-1", "1")))
	namespace, labels := ungroup(first)
	require.Equal(t, "shop", namespace)
	require.Equal(t, map[string]string{"app": "db"}, labels)
	_, labels = ungroup(groupOf(podOn("a", "web", "app", "web")))
	require.Equal(t, map[string]string{"app": "web"}, labels, "a pod of its own")
	_, labels = ungroup(groupOf(podOn("a", "bare")))
	require.Empty(t, labels)
}

func selecting(name, app string) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}},
	}
}

// countingIndex counts the queries of the index.
type countingIndex struct {
	*poddeletion.Index
	times int
}

func (a *countingIndex) Selects(namespace string, labels map[string]string) bool {
	a.times++
	return a.Index.Selects(namespace, labels)
}

type unfilled struct{ *poddeletion.Index }

func (unfilled) Filled() error { return errors.New("not filled") }

func TestPodsWithoutBudget(t *testing.T) {
	p, budgets := newPods(), &countingIndex{Index: poddeletion.NewIndex()}
	var list []any
	for i := range 10 {
		list = append(list, podOn("a", fmt.Sprint("web", i), "app", "web"), podOn("a", fmt.Sprint("db", i), "app", "db"))
	}
	require.NoError(t, p.Replace(list, ""))
	without := func(want int, questions int, why string) {
		t.Helper()
		budgets.times = 0
		got, err := p.withoutBudget(budgets)
		require.NoError(t, err)
		require.Equal(t, want, got, why)
		require.Equal(t, questions, budgets.times, why)
	}
	without(20, 2, "no budget at all")
	without(20, 0, "nothing has changed")
	budgets.Set(selecting("web", "web"))
	without(10, 2, "a new budget")
	status := selecting("web", "web")
	status.Status.DisruptionsAllowed = 1
	budgets.Set(status)
	without(10, 0, "a new status")
	require.NoError(t, p.Delete(podOn("a", "db0", "app", "db")))
	require.NoError(t, p.Add(podOn("a", "cache", "app", "cache")))
	without(10, 1, "one pod less, and one of a new group")
	budgets.Set(selecting("web", "other"))
	without(20, 3, "the budget selects others")
	budgets.Set(selecting("web", "db"))
	without(11, 3, "and others again")
	budgets.Delete(types.NamespacedName{Namespace: "shop", Name: "web"})
	without(20, 3, "the budget is gone")

	_, err := p.withoutBudget(unfilled{poddeletion.NewIndex()})
	require.Error(t, err, "not all budgets are known")
}

func TestPodsWithTooManySetsOfLabels(t *testing.T) {
	p := newPods()
	require.NoError(t, p.Replace(nil, ""))
	for i := range maxGroups + 1 {
		require.NoError(t, p.Add(podOn("a", fmt.Sprint(i), "one", fmt.Sprint("of ", i))))
	}
	require.Len(t, p.groups, maxGroups)
	_, err := p.withoutBudget(poddeletion.NewIndex())
	require.ErrorIs(t, err, errTooManyGroups)
	require.Equal(t, map[string]int{"a": maxGroups + 1}, countsOf(t, p), "the others are counted")

	require.NoError(t, p.Delete(podOn("a", "0")))
	last := podOn("a", fmt.Sprint(maxGroups), "one", fmt.Sprint("of ", maxGroups))
	require.NoError(t, p.Update(last))
	without, err := p.withoutBudget(poddeletion.NewIndex())
	require.NoError(t, err, "there is room again")
	require.Equal(t, maxGroups, without)
}
