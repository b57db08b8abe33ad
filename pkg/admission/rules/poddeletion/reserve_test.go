package poddeletion

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyclient "k8s.io/client-go/kubernetes/typed/policy/v1"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
)

var budgetsResource = schema.GroupResource{Group: policyv1.GroupName, Resource: "poddisruptionbudgets"}

// server keeps budgets as the API server does: a write with an old resource version is a conflict.
type server struct {
	policyclient.PodDisruptionBudgetInterface
	mu      sync.Mutex
	version int
	budgets map[types.NamespacedName]*policyv1.PodDisruptionBudget
	reads   int
	writes  int
	// beforeWrite, if set, runs before a write is checked.
	beforeWrite func()
	// failWrite, if set, may refuse a write.
	failWrite func(*policyv1.PodDisruptionBudget) error
}

func newServer(budgets ...*policyv1.PodDisruptionBudget) *server {
	s := &server{budgets: map[types.NamespacedName]*policyv1.PodDisruptionBudget{}}
	for _, budget := range budgets {
		s.put(budget)
	}
	return s
}

// put changes a budget as another client would, and returns it as it is then.
func (s *server) put(budget *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudget {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store(budget)
}

func (s *server) store(budget *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudget {
	s.version++
	budget = budget.DeepCopy()
	budget.ResourceVersion = strconv.Itoa(s.version)
	s.budgets[types.NamespacedName{Namespace: budget.Namespace, Name: budget.Name}] = budget
	return budget
}

// PodDisruptionBudgets returns itself: all budgets are in the namespace shop.
func (s *server) PodDisruptionBudgets(string) policyclient.PodDisruptionBudgetInterface { return s }

func (s *server) Get(_ context.Context, name string, _ metav1.GetOptions) (*policyv1.PodDisruptionBudget, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if budget := s.budgets[types.NamespacedName{Namespace: "shop", Name: name}]; budget != nil {
		return budget.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(budgetsResource, name)
}

func (s *server) UpdateStatus(_ context.Context, budget *policyv1.PodDisruptionBudget, _ metav1.UpdateOptions) (*policyv1.PodDisruptionBudget, error) {
	if s.beforeWrite != nil {
		s.beforeWrite()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failWrite != nil {
		if err := s.failWrite(budget); err != nil {
			return nil, err
		}
	}
	current := s.budgets[types.NamespacedName{Namespace: budget.Namespace, Name: budget.Name}]
	switch {
	case current == nil:
		return nil, apierrors.NewNotFound(budgetsResource, budget.Name)
	case current.ResourceVersion != budget.ResourceVersion:
		return nil, apierrors.NewConflict(budgetsResource, budget.Name, errors.New("changed"))
	}
	s.writes++
	return s.store(budget).DeepCopy(), nil
}

func (s *server) budget(name string) *policyv1.PodDisruptionBudget {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.budgets[types.NamespacedName{Namespace: "shop", Name: name}].DeepCopy()
}

func allowing(name string, disruptions int32) *policyv1.PodDisruptionBudget {
	budget := newBudget(name, matching("app", "web"))
	budget.Spec.MinAvailable = ptr.To(intstr.FromInt32(1))
	budget.Status.DisruptionsAllowed = disruptions
	return budget
}

// newReservations returns reservations whose index shows the budgets of the server as
// they are now, and will not follow.
func newReservations(s *server, c clock.PassiveClock) *Reservations {
	index := NewIndex()
	for _, budget := range s.budgets {
		index.Set(budget.DeepCopy())
	}
	r := NewReservations(index, s, c)
	r.retries.Duration = time.Microsecond
	return r
}

func TestReserve(t *testing.T) {
	reserve := func(t *testing.T, r *Reservations, pod *corev1.Pod, dryRun bool) outcome {
		t.Helper()
		outcome, err := r.Reserve(t.Context(), pod, dryRun)
		require.NoError(t, err)
		return outcome
	}
	clock := testclock.NewFakePassiveClock(noon)

	t.Run("a delete takes one disruption, with one write and no read", func(t *testing.T) {
		s := newServer(allowing("web", 2))
		got := reserve(t, newReservations(s, clock), newPod(), false)
		require.Equal(t, outcome{budget: types.NamespacedName{Namespace: "shop", Name: "web"}, account: accountCharge, left: 1, at: noon}, got)
		require.Equal(t, []int{0, 1}, []int{s.reads, s.writes})
		require.Equal(t, map[string]metav1.Time{"web-1": metav1.NewTime(noon)}, s.budget("web").Status.DisruptedPods)
	})
	t.Run("a pod that no budget selects passes and costs nothing", func(t *testing.T) {
		s := newServer(allowing("web", 0))
		pod := newPod()
		pod.Labels["app"] = "api"
		require.Equal(t, outcome{account: accountUnselected}, reserve(t, newReservations(s, clock), pod, false))
		require.Equal(t, []int{0, 0}, []int{s.reads, s.writes})
	})
	t.Run("the second review of a delete is not charged, also from an old cache", func(t *testing.T) {
		s := newServer(allowing("web", 2))
		first, second := newReservations(s, clock), newReservations(s, clock)
		reserve(t, first, newPod(), false)
		for _, r := range []*Reservations{first, second} {
			require.Equal(t, accountCharged, reserve(t, r, newPod(), false).account)
		}
		require.EqualValues(t, 1, s.budget("web").Status.DisruptionsAllowed)
	})
	t.Run("a refusal by an old cache is not believed", func(t *testing.T) {
		s := newServer(allowing("web", 0))
		r := newReservations(s, clock)
		s.put(allowing("web", 1))
		require.Equal(t, accountCharge, reserve(t, r, newPod(), false).account)
	})
	t.Run("nor is its word that the pod was charged", func(t *testing.T) {
		s := newServer(charge(allowing("web", 1), "web-1", noon))
		r := newReservations(s, clock)
		s.put(allowing("web", 0)) // counted again: the pod is a new one of the name
		require.Equal(t, accountRefuse, reserve(t, r, newPod(), false).account)
	})
	t.Run("nor is its word that enough are healthy without the pod", func(t *testing.T) {
		healthy := allowing("web", 0)
		healthy.Status.CurrentHealthy, healthy.Status.DesiredHealthy = 3, 3
		s := newServer(healthy)
		r := newReservations(s, clock)
		healthy.Status.CurrentHealthy = 2
		s.put(healthy)
		require.Equal(t, accountRefuse, reserve(t, r, newPod(unready), false).account)
	})
	t.Run("disruptions that an old cache shows are not spent", func(t *testing.T) {
		s := newServer(allowing("web", 1))
		r := newReservations(s, clock)
		s.put(charge(allowing("web", 1), "web-2", noon)) // an eviction was faster
		require.Equal(t, accountRefuse, reserve(t, r, newPod(), false).account)
		require.Zero(t, s.writes)
	})
	t.Run("a budget that is gone refuses nothing", func(t *testing.T) {
		s := newServer(allowing("web", 0))
		r := newReservations(s, clock)
		delete(s.budgets, types.NamespacedName{Namespace: "shop", Name: "web"})
		require.Equal(t, accountUnselected, reserve(t, r, newPod(), false).account)
	})
	t.Run("nor does one that goes before it is charged", func(t *testing.T) {
		s := newServer(allowing("web", 1))
		s.beforeWrite = func() { delete(s.budgets, types.NamespacedName{Namespace: "shop", Name: "web"}) }
		require.Equal(t, accountUnselected, reserve(t, newReservations(s, clock), newPod(), false).account)
	})
	t.Run("nor does one that selects others now", func(t *testing.T) {
		s := newServer(allowing("web", 0))
		r := newReservations(s, clock)
		moved := allowing("web", 0)
		moved.Spec.Selector = matching("app", "api")
		s.put(moved)
		require.Equal(t, accountUnselected, reserve(t, r, newPod(), false).account)
		require.Zero(t, s.writes)
	})
	t.Run("a dry run gives the same answer and writes nothing", func(t *testing.T) {
		s := newServer(allowing("web", 1))
		r := newReservations(s, clock)
		for range 3 {
			require.Equal(t, accountCharge, reserve(t, r, newPod(), true).account)
		}
		s.put(allowing("web", 0))
		require.Equal(t, accountRefuse, reserve(t, r, newPod(), true).account)
		require.Zero(t, s.writes)
	})
	t.Run("a pod of several budgets may not go, and none is charged", func(t *testing.T) {
		s := newServer(allowing("a", 1), allowing("b", 2))
		require.Equal(t, outcome{budget: types.NamespacedName{Namespace: "shop", Name: "a,b"}, account: accountSeveral},
			reserve(t, newReservations(s, clock), newPod(), false))
		require.Zero(t, s.writes)
	})
	t.Run("several budgets of an old cache, of which one is left, are one", func(t *testing.T) {
		s := newServer(allowing("a", 1), allowing("b", 2))
		r := newReservations(s, clock)
		delete(s.budgets, types.NamespacedName{Namespace: "shop", Name: "a"})
		require.Equal(t, outcome{budget: types.NamespacedName{Namespace: "shop", Name: "b"}, account: accountCharge, left: 1, at: noon},
			reserve(t, r, newPod(), false))
	})
	t.Run("attempts are bounded", func(t *testing.T) {
		s := newServer(allowing("web", 5))
		s.beforeWrite = func() { s.put(s.budget("web")) }
		_, err := newReservations(s, clock).Reserve(t.Context(), newPod(), false)
		require.EqualError(t, err, "poddisruptionbudget shop/web was changed by others at each of 9 attempts to reserve a disruption; try again")
	})
	t.Run("an error of the API server is none of the budget's", func(t *testing.T) {
		s := newServer(allowing("web", 5))
		s.failWrite = func(*policyv1.PodDisruptionBudget) error { return errors.New("etcd is away") }
		_, err := newReservations(s, clock).Reserve(t.Context(), newPod(), false)
		require.EqualError(t, err, "reserve a disruption of poddisruptionbudget shop/web: etcd is away")
	})
	t.Run("an index that is not filled yet is not believed", func(t *testing.T) {
		index := NewIndex()
		index.HasSynced = func() bool { return false }
		_, err := NewReservations(index, newServer(), clock).Reserve(t.Context(), newPod(), false)
		require.EqualError(t, err, "the poddisruptionbudgets are not all known yet, a moment after the start")
	})
	t.Run("a review that waited need not read again what was read meanwhile", func(t *testing.T) {
		s, clock := newServer(allowing("web", 1)), testclock.NewFakeClock(noon)
		r := newReservations(s, clock)
		name := types.NamespacedName{Namespace: "shop", Name: "web"}
		turn, err := r.turns.enter(t.Context(), name)
		require.NoError(t, err)
		got := make(chan outcome)
		go func() {
			outcome, err := r.Reserve(t.Context(), newPod(), false)
			assert.NoError(t, err)
			got <- outcome
		}()
		require.Eventually(t, func() bool { r.turns.mu.Lock(); defer r.turns.mu.Unlock(); return turn.waiting == 2 }, time.Minute, time.Millisecond)
		turn.latest = reading{budget: allowing("web", 0), live: true, at: noon.Add(time.Second)}
		r.turns.leave(name, turn)
		require.Equal(t, accountRefuse, (<-got).account)
		require.Zero(t, s.reads)
	})
	t.Run("a review that is over stops waiting for its turn", func(t *testing.T) {
		s := newServer(allowing("web", 5))
		r := newReservations(s, clock)
		name := types.NamespacedName{Namespace: "shop", Name: "web"}
		turn, err := r.turns.enter(t.Context(), name)
		require.NoError(t, err)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = r.Reserve(over, newPod(), false)
		require.ErrorIs(t, err, context.Canceled)
		r.turns.leave(name, turn)
		require.Empty(t, r.turns.byBudget, "nothing is kept of reviews that are over")
	})
}

// TestManyDeletesSpendABudgetOnce runs deletes in several replicas of the webhook with
// caches of different age, each seen in two reviews, among evictions and recounts.
func TestManyDeletesSpendABudgetOnce(t *testing.T) {
	const replicas, deletes, allowed = 3, 200, 3
	s := newServer(allowing("web", allowed))
	all := make([]*Reservations, replicas)
	for i := range all {
		all[i] = newReservations(s, clock.RealClock{})
		all[i].retries = conflictRetries
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		passed = map[string]bool{}
	)
	stop := make(chan struct{})
	wg.Go(func() { // another client writes the status without changing what it says
		for {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
				_, _ = s.UpdateStatus(t.Context(), s.budget("web"), metav1.UpdateOptions{})
			}
		}
	})
	var reviews sync.WaitGroup
	for i := range deletes {
		for review := range 2 {
			reviews.Go(func() {
				pod := newPod(named(fmt.Sprint("web-", i)))
				outcome, err := all[(i+review)%replicas].Reserve(t.Context(), pod, false)
				if !assert.NoError(t, err) {
					return
				}
				if !outcome.refuses() {
					mu.Lock()
					passed[pod.Name] = true
					mu.Unlock()
				}
			})
		}
	}
	reviews.Wait()
	close(stop)
	wg.Wait()
	require.Len(t, passed, allowed)
	require.Len(t, s.budget("web").Status.DisruptedPods, allowed)
	require.Zero(t, s.budget("web").Status.DisruptionsAllowed)
}
