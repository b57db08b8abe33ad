package nodedeletion

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// apiServer is one with policies, and counts the requests. index is what an informer would have
// filled from its nodes.
type apiServer struct {
	client.WithWatch
	t     testing.TB
	index *Index
	// stored is the server without what follows.
	stored                            client.WithWatch
	mu                                sync.Mutex
	whole, versions, updates, patches int
	// beforeWrite runs before each write of a ledger; writeErr fails those of a policy.
	beforeWrite func(policy string)
	writeErr    map[string]error
}

func newAPIServer(t testing.TB, nodes []Node, policies ...client.Object) *apiServer {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, guardv1alpha1.AddToScheme(scheme))
	s := &apiServer{t: t, index: NewIndex()}
	for i := range nodes {
		s.index.change(nodes[i].Name, &nodes[i])
	}
	s.stored = crfake.NewClientBuilder().WithScheme(scheme).WithObjects(policies...).WithStatusSubresource(&guardv1alpha1.NodeDeletionPolicy{}).Build()
	count := func(requests *int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		*requests++
	}
	write := func(object client.Object) error {
		if s.beforeWrite != nil {
			s.beforeWrite(object.GetName())
		}
		return s.writeErr[object.GetName()]
	}
	s.WithWatch = interceptor.NewClient(s.stored, interceptor.Funcs{
		Get: func(ctx context.Context, next client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if _, ok := object.(*guardv1alpha1.NodeDeletionPolicy); ok {
				count(&s.whole)
			} else {
				count(&s.versions)
			}
			return next.Get(ctx, key, object, options...)
		},
		SubResourceUpdate: func(ctx context.Context, next client.Client, name string, object client.Object, options ...client.SubResourceUpdateOption) error {
			count(&s.updates)
			if err := write(object); err != nil {
				return err
			}
			return next.SubResource(name).Update(ctx, object, options...)
		},
		SubResourcePatch: func(ctx context.Context, next client.Client, name string, object client.Object, patch client.Patch, options ...client.SubResourcePatchOption) error {
			count(&s.patches)
			if err := write(object); err != nil {
				return err
			}
			return next.SubResource(name).Patch(ctx, object, patch, options...)
		},
	})
	return s
}

func (s *apiServer) rule() *Rule {
	return NewRule(s, s.index, NewLiveLedgers(s, s, s), admission.Enforce, clock.RealClock{})
}

func (s *apiServer) policy(name string) *guardv1alpha1.NodeDeletionPolicy {
	policy := &guardv1alpha1.NodeDeletionPolicy{}
	require.NoError(s.t, s.stored.Get(context.Background(), client.ObjectKey{Name: name}, policy))
	return policy
}

// change is that of another client.
func (s *apiServer) change(name string, change func(*guardv1alpha1.NodeDeletionPolicy)) {
	policy := s.policy(name)
	change(policy)
	status := policy.Status
	require.NoError(s.t, s.stored.Update(context.Background(), policy))
	policy.Status = status
	require.NoError(s.t, s.stored.Status().Update(context.Background(), policy))
}

// ledger returns the names of the nodes in it.
func (s *apiServer) ledger(name string) []string {
	nodes := []string{}
	for _, deletion := range s.policy(name).Status.Deletions {
		nodes = append(nodes, deletion.Node)
	}
	return nodes
}

// cacheOf returns a cache that has the policy as it is now.
func cacheOf(s *apiServer, name string) client.Client {
	return crfake.NewClientBuilder().WithScheme(s.Scheme()).WithObjects(s.policy(name)).Build()
}

func TestLiveLedgersReadWhatTheCacheDoesNotHave(t *testing.T) {
	s := newAPIServer(t, nil, policyOf("p", 5, time.Hour, "", ago(time.Minute)))
	ledgers := NewLiveLedgers(cacheOf(s, "p"), s, s)
	policy, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.Equal(t, []int{1, 0}, []int{s.versions, s.whole}, "the cache is right")

	policy.Status.Deletions, _ = Charge(policy.Status.Deletions, pool(1, 1)[0], "me", noon)
	require.NoError(t, ledgers.UpdateStatus(t.Context(), policy))
	require.Equal(t, []int{1, 0}, []int{s.patches, s.updates})
	require.Equal(t, []string{"gone0", "n000"}, s.ledger("p"))

	s.versions, s.whole = 0, 0
	own, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.Equal(t, []int{1, 0}, []int{s.versions, s.whole}, "the cache is behind, by the own write")
	require.Len(t, own.Status.Deletions, 2)

	err = ledgers.UpdateStatus(t.Context(), policy)
	require.True(t, apierrors.IsConflict(err), "a write of what the cache had: %v", err)
	require.Equal(t, []string{"gone0", "n000"}, s.ledger("p"))

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
	require.Equal(t, []string{"gone0", "n001"}, s.ledger("p"))

	_, err = ledgers.Get(t.Context(), "none")
	require.True(t, apierrors.IsNotFound(err), "%v", err)
}

func TestLiveLedgersOfASuccessor(t *testing.T) {
	policy := policyOf("p", 5, time.Hour, "")
	policy.UID = "second"
	s := newAPIServer(t, nil, policy)
	cached := policyOf("p", 1, time.Hour, "")
	cached.UID, cached.ResourceVersion = "first", "999"
	ledgers := NewLiveLedgers(crfake.NewClientBuilder().WithScheme(s.Scheme()).WithObjects(cached).Build(), s, s)
	live, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.Equal(t, types.UID("second"), live.UID)
}

// What the API server's own policy reads is written with each charge.
func TestLiveLedgersWriteWhatCounts(t *testing.T) {
	s := newAPIServer(t, nil, policyOf("p", 5, time.Hour, "", ago(time.Minute)))
	ledgers := NewLiveLedgers(cacheOf(s, "p"), s, s)
	policy, err := ledgers.Get(t.Context(), "p")
	require.NoError(t, err)
	require.True(t, record(policy, Node{Name: "new", UID: "new"}, "jane", noon))
	count(policy, admission.Enforce, noon)
	require.NoError(t, ledgers.UpdateStatus(t.Context(), policy))
	require.Equal(t, 1, s.patches, "patches")
	live := s.policy("p")
	require.NotNil(t, live.Status.DeletionsCounted)
	require.EqualValues(t, 2, *live.Status.DeletionsCounted)
	require.Equal(t, policy.Status.NextDeletionExpires.UTC(), live.Status.NextDeletionExpires.UTC())
}

// A patch makes one ledger the other.
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
			s := newAPIServer(t, nil, policy)
			raw, err := json.Marshal(patch)
			require.NoError(t, err)
			require.NoError(t, s.Status().Patch(t.Context(), policyMetadata("p"), client.RawPatch(types.JSONPatchType, raw)))
			require.Equal(t, test.after, s.ledger("p"))
			require.False(t, slices.ContainsFunc(patch, func(o patchOperation) bool { return o.Op == "replace" }))
		})
	}
}
