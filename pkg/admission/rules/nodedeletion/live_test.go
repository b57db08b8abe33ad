package nodedeletion

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// apiServer is one with a policy, and counts the requests.
type apiServer struct {
	client.Client
	whole, versions, updates, patches int
}

func newAPIServer(t *testing.T, policy *guardv1alpha1.NodeDeletionPolicy) *apiServer {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, guardv1alpha1.AddToScheme(scheme))
	s := &apiServer{}
	s.Client = crfake.NewClientBuilder().WithScheme(scheme).WithObjects(policy).WithStatusSubresource(policy).
		WithInterceptorFuncs(interceptor.Funcs{
			Get: func(ctx context.Context, next client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
				if _, ok := object.(*guardv1alpha1.NodeDeletionPolicy); ok {
					s.whole++
				} else {
					s.versions++
				}
				return next.Get(ctx, key, object, options...)
			},
			SubResourceUpdate: func(ctx context.Context, next client.Client, name string, object client.Object, options ...client.SubResourceUpdateOption) error {
				s.updates++
				return next.SubResource(name).Update(ctx, object, options...)
			},
			SubResourcePatch: func(ctx context.Context, next client.Client, name string, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
				s.patches++
				return next.SubResource(name).Patch(ctx, object, patch, options...)
			},
		}).Build()
	return s
}

// cacheOf returns a cache that has the policy as it is now.
func cacheOf(t *testing.T, s *apiServer, name string) client.Client {
	t.Helper()
	policy := &guardv1alpha1.NodeDeletionPolicy{}
	require.NoError(t, s.Get(t.Context(), client.ObjectKey{Name: name}, policy))
	s.whole = 0
	return crfake.NewClientBuilder().WithScheme(s.Scheme()).WithObjects(policy).Build()
}

func ledger(t *testing.T, s *apiServer, name string) []string {
	t.Helper()
	policy := &guardv1alpha1.NodeDeletionPolicy{}
	require.NoError(t, s.Get(t.Context(), client.ObjectKey{Name: name}, policy))
	var nodes []string
	for _, deletion := range policy.Status.Deletions {
		nodes = append(nodes, deletion.Node)
	}
	return nodes
}

func TestLiveLedgersReadWhatTheCacheDoesNotHave(t *testing.T) {
	s := newAPIServer(t, policyOf("p", 5, time.Hour, "", ago(time.Minute)))
	ledgers := NewLiveLedgers(cacheOf(t, s, "p"), s, s)
	policy, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.Equal(t, []int{1, 0}, []int{s.versions, s.whole}, "the cache is right")

	policy.Status.Deletions, _ = Charge(policy.Status.Deletions, pool(1, 1)[0], "me", noon)
	require.NoError(t, ledgers.UpdateStatus(t.Context(), policy))
	require.Equal(t, []int{1, 0}, []int{s.patches, s.updates})
	require.Equal(t, []string{"gone0", "n000"}, ledger(t, s, "p"))

	s.versions, s.whole = 0, 0
	own, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.Equal(t, []int{1, 0}, []int{s.versions, s.whole}, "the cache is behind, by the own write")
	require.Len(t, own.Status.Deletions, 2)

	err = ledgers.UpdateStatus(t.Context(), policy)
	require.True(t, apierrors.IsConflict(err), "a write of what the cache had: %v", err)
	require.Equal(t, []string{"gone0", "n000"}, ledger(t, s, "p"))

	other := NewLiveLedgers(s, s, s)
	theirs, err := other.Get(t.Context(), "p")
	require.NoError(t, err)
	theirs.Status.Deletions, _ = Charge(theirs.Status.Deletions, pool(2, 2)[1], "you", noon)
	require.NoError(t, other.UpdateStatus(t.Context(), theirs))
	s.versions, s.whole = 0, 0
	live, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, []int{s.versions, s.whole}, "another replica has written")
	require.Len(t, live.Status.Deletions, 3)
	live.Status.Deletions, _ = Refund(live.Status.Deletions, "n000")
	require.NoError(t, ledgers.UpdateStatus(t.Context(), live))
	require.Equal(t, 1, s.updates, "nobody knows what to change")
	require.Equal(t, []string{"gone0", "n001"}, ledger(t, s, "p"))

	_, err = ledgers.Get(t.Context(), "none")
	require.True(t, apierrors.IsNotFound(err), "%v", err)
}

func TestLiveLedgersOfASuccessor(t *testing.T) {
	policy := policyOf("p", 5, time.Hour, "")
	policy.UID = "second"
	s := newAPIServer(t, policy)
	cached := policyOf("p", 1, time.Hour, "")
	cached.UID, cached.ResourceVersion = "first", "999"
	ledgers := NewLiveLedgers(crfake.NewClientBuilder().WithScheme(s.Scheme()).WithObjects(cached).Build(), s, s)
	live, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.Equal(t, types.UID("second"), live.UID)
}

// A patch makes of one ledger the other.
// What the API server's own policy reads is written with each charge.
func TestLiveLedgersWriteWhatCounts(t *testing.T) {
	s := newAPIServer(t, policyOf("p", 5, time.Hour, "", ago(time.Minute)))
	ledgers := NewLiveLedgers(cacheOf(t, s, "p"), s, s)
	policy, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.True(t, record(policy, Node{Name: "new", UID: "new"}, "jane", noon))
	count(policy, admission.Enforce, noon)
	require.NoError(t, ledgers.UpdateStatus(t.Context(), policy))
	require.Equal(t, 1, s.patches, "patches")
	live := &guardv1alpha1.NodeDeletionPolicy{}
	require.NoError(t, s.Get(t.Context(), client.ObjectKey{Name: "p"}, live))
	require.NotNil(t, live.Status.DeletionsCounted)
	require.EqualValues(t, 2, *live.Status.DeletionsCounted)
	require.Equal(t, policy.Status.NextDeletionExpires.UTC(), live.Status.NextDeletionExpires.UTC())
}

func TestPatchOf(t *testing.T) {
	entries := func(nodes ...string) []guardv1alpha1.NodeDeletion {
		var list []guardv1alpha1.NodeDeletion
		for _, node := range nodes {
			list = append(list, guardv1alpha1.NodeDeletion{UID: types.UID(node), Node: node, Time: metav1.NewMicroTime(noon)})
		}
		return list
	}
	for _, test := range []struct {
		before, after []string
		whole         bool
	}{
		{before: []string{"a"}, after: []string{"a", "b"}},
		{before: []string{"a", "b"}, after: []string{"b"}},
		{before: []string{"a", "b", "c"}, after: []string{"b", "d"}},
		{before: []string{"a", "b", "c"}, after: []string{"a", "d", "b", "c"}},
		{before: []string{"a", "b"}, after: []string{"c"}},
		{before: []string{"a", "b", "c", "d"}, after: []string{"e", "b", "d", "f"}},
		{before: []string{"a", "b"}, after: []string{"a", "b"}, whole: true},
		{before: []string{"a", "b"}, after: []string{"b", "a"}, whole: true},
		{before: nil, after: []string{"a"}, whole: true},
		{before: []string{"a"}, after: nil, whole: true},
	} {
		t.Run(fmt.Sprint(test.before, test.after), func(t *testing.T) {
			patch := patchOf(entries(test.before...), entries(test.after...))
			if test.whole {
				require.Empty(t, patch)
				return
			}
			policy := policyOf("p", 5, time.Hour, "")
			policy.Status.Deletions = entries(test.before...)
			s := newAPIServer(t, policy)
			raw, err := json.Marshal(patch)
			require.NoError(t, err)
			require.NoError(t, s.Status().Patch(t.Context(), policyMetadata("p"), client.RawPatch(types.JSONPatchType, raw)))
			require.Equal(t, test.after, ledger(t, s, "p"))
			require.False(t, slices.ContainsFunc(patch, func(o patchOperation) bool { return o.Op == "replace" }))
		})
	}
}
