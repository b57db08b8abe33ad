package poddeletion

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

func newBudget(name string, selector *metav1.LabelSelector) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: selector},
	}
}

func matching(pairs ...string) *metav1.LabelSelector {
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		selector.MatchLabels[pairs[i]] = pairs[i+1]
	}
	return selector
}

func expressing(expressions ...metav1.LabelSelectorRequirement) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: expressions}
}

func names(budgets []*policyv1.PodDisruptionBudget) []string {
	var all []string
	for _, budget := range budgets {
		all = append(all, budget.Name)
	}
	return all
}

func TestIndexFindsWhatASelectorSelects(t *testing.T) {
	in := metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", "api"}}
	exists := metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpExists}
	notIn := metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"web"}}
	absent := metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpDoesNotExist}
	malformed := metav1.LabelSelectorRequirement{Key: "app", Operator: "Near"}
	web := map[string]string{"app": "web", "tier": "front"}
	for name, test := range map[string]struct {
		selector *metav1.LabelSelector
		labels   map[string]string
		selected bool
	}{
		"one label":                             {matching("app", "web"), web, true},
		"another value":                         {matching("app", "api"), web, false},
		"all of several labels":                 {matching("app", "web", "tier", "front"), web, true},
		"one of several labels only":            {matching("app", "web", "tier", "back"), web, false},
		"one of several values":                 {expressing(in), web, true},
		"none of several values":                {expressing(in), map[string]string{"app": "db"}, false},
		"a label of any value":                  {expressing(exists), web, true},
		"another value than that":               {expressing(notIn), web, false},
		"another value than that, no label":     {expressing(notIn), nil, true},
		"no such label":                         {expressing(absent), map[string]string{"tier": "front"}, true},
		"an empty selector, all pods":           {&metav1.LabelSelector{}, nil, true},
		"no selector, no pod":                   {nil, web, false},
		"a selector nobody understands, no pod": {expressing(malformed), web, false},
	} {
		t.Run(name, func(t *testing.T) {
			index := NewIndex()
			index.Set(newBudget("budget", test.selector))
			require.Equal(t, test.selected, len(index.Selecting("shop", test.labels)) == 1)
			require.Empty(t, index.Selecting("elsewhere", test.labels))
		})
	}
}

func TestIndexFollowsTheInformer(t *testing.T) {
	index := NewIndex()
	web, api := map[string]string{"app": "web"}, map[string]string{"app": "api"}
	first := newBudget("a", matching("app", "web"))
	index.OnAdd(first, true)
	index.OnAdd(newBudget("b", &metav1.LabelSelector{}), true)
	require.Equal(t, []string{"a", "b"}, names(index.Selecting("shop", web)))

	counted := first.DeepCopy()
	counted.Status.DisruptionsAllowed = 3
	index.OnUpdate(first, counted)
	require.Equal(t, counted, index.Selecting("shop", web)[0])

	moved := newBudget("a", matching("app", "api"))
	index.OnUpdate(counted, moved)
	require.Equal(t, []string{"b"}, names(index.Selecting("shop", web)))
	require.Equal(t, []string{"a", "b"}, names(index.Selecting("shop", api)))

	index.OnUpdate(nil, newBudget("b", nil))
	require.Equal(t, []string{"a"}, names(index.Selecting("shop", api)), "an empty selector was removed")
	index.OnUpdate(nil, newBudget("b", &metav1.LabelSelector{}))
	require.Equal(t, []string{"a", "b"}, names(index.Selecting("shop", api)), "an empty selector came")

	index.OnDelete(cache.DeletedFinalStateUnknown{Key: "shop/a", Obj: moved})
	require.Equal(t, []string{"b"}, names(index.Selecting("shop", api)))
	index.OnDelete(newBudget("b", nil))
	index.OnDelete(newBudget("b", nil))
	require.Empty(t, index.namespaces, "an empty namespace is forgotten")
}

// scan is the index as nobody would write it, to compare with.
type scan map[types.NamespacedName]*policyv1.PodDisruptionBudget

func (s scan) selecting(namespace string, podLabels map[string]string) []*policyv1.PodDisruptionBudget {
	var found []*policyv1.PodDisruptionBudget
	for name, budget := range s {
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err == nil && name.Namespace == namespace && selector.Matches(labels.Set(podLabels)) {
			found = append(found, budget)
		}
	}
	slices.SortFunc(found, func(a, b *policyv1.PodDisruptionBudget) int { return cmp.Compare(a.Name, b.Name) })
	return found
}

var (
	randomKeys   = []string{"app", "tier", "zone"}
	randomValues = []string{"a", "b", "c", ""}
)

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

func randomLabels(random *rand.Rand) map[string]string {
	set := map[string]string{}
	for range random.IntN(4) {
		set[pick(random, randomKeys)] = pick(random, randomValues)
	}
	return set
}

func randomSelector(random *rand.Rand) *metav1.LabelSelector {
	if random.IntN(20) == 0 {
		return nil
	}
	selector := &metav1.LabelSelector{MatchLabels: randomLabels(random)}
	for range random.IntN(3) {
		expression := metav1.LabelSelectorRequirement{Key: pick(random, randomKeys), Operator: pick(random, []metav1.LabelSelectorOperator{
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist, "Near",
		})}
		if expression.Operator == metav1.LabelSelectorOpIn || expression.Operator == metav1.LabelSelectorOpNotIn {
			for range 1 + random.IntN(2) {
				expression.Values = append(expression.Values, pick(random, randomValues))
			}
		}
		selector.MatchExpressions = append(selector.MatchExpressions, expression)
	}
	return selector
}

// FuzzIndex makes the same random changes to the index and to the scan, and compares both.
func FuzzIndex(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		index, reference := NewIndex(), scan{}
		for step := range 100 {
			name := types.NamespacedName{Namespace: pick(random, []string{"shop", "bank"}), Name: fmt.Sprint(random.IntN(12))}
			switch random.IntN(4) {
			case 0:
				index.Delete(name)
				delete(reference, name)
			default:
				budget := newBudget(name.Name, randomSelector(random))
				budget.Namespace = name.Namespace
				index.Set(budget)
				reference[name] = budget
			}
			podLabels := randomLabels(random)
			for _, namespace := range []string{"shop", "bank"} {
				want := names(reference.selecting(namespace, podLabels))
				require.Equal(t, len(want) > 0, index.Selects(namespace, podLabels), "seed %d, step %d, namespace %s, labels %v", seed, step, namespace, podLabels)
				require.Equal(t, want, names(index.Selecting(namespace, podLabels)),
					"seed %d, step %d, namespace %s, labels %v", seed, step, namespace, podLabels)
			}
		}
		for name := range maps.Keys(reference) {
			index.Delete(name)
		}
		require.Empty(t, index.namespaces, "seed %d: something is left of deleted budgets", seed)
	})
}

// BenchmarkIndex looks up the one budget of a pod. All budgets share labels, as those
// of one product do.
func BenchmarkIndex(b *testing.B) {
	for _, count := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("budgets=%d", count), func(b *testing.B) {
			index := NewIndex()
			for i := range count {
				index.Set(newBudget(fmt.Sprint(i), matching("app.kubernetes.io/part-of", "shop", "app.kubernetes.io/name", fmt.Sprint("service-", i))))
			}
			podLabels := map[string]string{"app.kubernetes.io/part-of": "shop", "app.kubernetes.io/name": "service-7", "pod-template-hash": "5d8f"}
			b.ReportAllocs()
			for b.Loop() {
				if len(index.Selecting("shop", podLabels)) != 1 {
					b.Fatal("the pod has one budget")
				}
			}
		})
	}
}
