package poddeletion

import (
	"testing"

	"github.com/stretchr/testify/require"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// What an update of the status would remove must not be missing.
func TestPackedBudgetHasWhatAnUpdateSends(t *testing.T) {
	budget := newBudget("web", matching("app", "web"))
	budget.UID, budget.ResourceVersion, budget.Generation = "1", "2", 3
	budget.Labels, budget.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d"}
	budget.Finalizers = []string{"example.com/keep"}
	budget.OwnerReferences = []metav1.OwnerReference{{Kind: "Deployment", Name: "web"}}
	budget.Status.Conditions = []metav1.Condition{{Type: policyv1.DisruptionAllowedCondition, Reason: policyv1.SufficientPodsReason}}
	want := budget.DeepCopy()
	budget.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "helm"}}
	object, err := Transform(budget)
	require.NoError(t, err)
	packed := object.(*Packed)
	require.Equal(t, want, packed.Unpack())
	key, err := cache.MetaNamespaceKeyFunc(packed)
	require.NoError(t, err)
	require.Equal(t, "shop/web", key)
	require.Equal(t, "2", packed.GetObjectMeta().GetResourceVersion())
	again, err := Transform(packed)
	require.NoError(t, err)
	require.Same(t, packed, again)
}

// An empty selector selects everything and an absent one nothing, packed as well.
func TestPackedBudgetKeepsItsSelector(t *testing.T) {
	for _, selector := range []*metav1.LabelSelector{nil, {}, matching("app", "web")} {
		unpacked := Pack(newBudget("web", selector)).Unpack()
		require.Equal(t, selector == nil, unpacked.Spec.Selector == nil)
		require.Equal(t, selectorOf(newBudget("web", selector)).String(), selectorOf(unpacked).String())
	}
}

func TestIndexIsFilledWithPackedBudgets(t *testing.T) {
	index := NewIndex()
	packed := Pack(newBudget("web", matching("app", "web")))
	index.OnAdd(packed, true)
	require.Equal(t, []string{"web"}, names(index.Selecting("shop", map[string]string{"app": "web"})))
	generation := index.Generation()
	index.OnUpdate(packed, packed)
	require.Equal(t, generation, index.Generation(), "nothing has changed")
	index.OnDelete(cache.DeletedFinalStateUnknown{Key: types.NamespacedName{Namespace: "shop", Name: "web"}.String(), Obj: packed})
	require.Empty(t, index.Selecting("shop", map[string]string{"app": "web"}))
	require.NotEqual(t, generation, index.Generation())
}
