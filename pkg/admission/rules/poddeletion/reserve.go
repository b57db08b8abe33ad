package poddeletion

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	policyclient "k8s.io/client-go/kubernetes/typed/policy/v1"
	"k8s.io/utils/clock"
)

// StatusReader reads a budget from the API server, not from a cache.
type StatusReader interface {
	Get(ctx context.Context, name types.NamespacedName) (*policyv1.PodDisruptionBudget, error)
}

// StatusWriter writes the status of a budget if its resource version is still that
// of the API server, and returns what was written. Otherwise the error is a conflict.
type StatusWriter interface {
	UpdateStatus(ctx context.Context, budget *policyv1.PodDisruptionBudget) (*policyv1.PodDisruptionBudget, error)
}

// Budgets are the budgets at the API server.
type Budgets interface {
	StatusReader
	StatusWriter
}

// NewBudgets returns the budgets that the client reaches.
func NewBudgets(client policyclient.PodDisruptionBudgetsGetter) Budgets { return apiBudgets{client} }

type apiBudgets struct {
	client policyclient.PodDisruptionBudgetsGetter
}

func (b apiBudgets) Get(ctx context.Context, name types.NamespacedName) (*policyv1.PodDisruptionBudget, error) {
	return b.client.PodDisruptionBudgets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
}

func (b apiBudgets) UpdateStatus(ctx context.Context, budget *policyv1.PodDisruptionBudget) (*policyv1.PodDisruptionBudget, error) {
	return b.client.PodDisruptionBudgets(budget.Namespace).UpdateStatus(ctx, budget, metav1.UpdateOptions{})
}

// conflictRetries are the waits after conflicts. Reviews of this process take turns,
// so that a conflict comes from another replica, an eviction or the disruption
// controller, and is over soon. Together they stay below the time that the API
// server gives a review.
var conflictRetries = wait.Backoff{Duration: 4 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 10, Cap: 300 * time.Millisecond}

// Reservations takes disruptions from budgets. It is safe for concurrent use.
type Reservations struct {
	index   *Index
	budgets Budgets
	clock   clock.PassiveClock
	retries wait.Backoff

	mu sync.Mutex
	// turns holds those budgets that a review is busy with.
	turns map[types.NamespacedName]*turn
}

// NewReservations returns reservations on the budgets that the index finds.
func NewReservations(index *Index, budgets Budgets, clock clock.PassiveClock) *Reservations {
	return &Reservations{
		index: index, budgets: budgets, clock: clock, retries: conflictRetries,
		turns: map[types.NamespacedName]*turn{},
	}
}

// turn makes reviews of one budget take turns, so that they do not conflict with
// each other and each starts from what the one before has written.
type turn struct {
	// busy has room for the one whose turn it is.
	busy chan struct{}
	// waiting counts those that have or want the turn.
	waiting int
	// latest is what the last one read or wrote, at that time. It is kept only as long
	// as somebody waits: after that the index knows better.
	latest   *policyv1.PodDisruptionBudget
	latestAt time.Time
}

// enter waits for the turn on the budget. leave must be called when it returned one.
func (r *Reservations) enter(ctx context.Context, name types.NamespacedName) (*turn, error) {
	r.mu.Lock()
	t := r.turns[name]
	if t == nil {
		t = &turn{busy: make(chan struct{}, 1)}
		r.turns[name] = t
	}
	t.waiting++
	r.mu.Unlock()
	select {
	case t.busy <- struct{}{}:
		return t, nil
	case <-ctx.Done():
		r.forget(name, t)
		return nil, ctx.Err()
	}
}

func (r *Reservations) leave(name types.NamespacedName, t *turn) {
	<-t.busy
	r.forget(name, t)
}

func (r *Reservations) forget(name types.NamespacedName, t *turn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.waiting--; t.waiting == 0 {
		delete(r.turns, name)
	}
}

// answer is what the budget of a pod says.
type answer struct {
	budget  types.NamespacedName
	account account
	// why is set in a refusal.
	why string
	// left is the number of disruptions after a charge.
	left int32
	// at is the time of the charge. It is zero in a dry run.
	at time.Time
}

// Reserve takes one disruption for the pod from the budget that selects it, and
// returns what that says. With dryRun nothing is written.
//
// A pod that several budgets select is refused, as by eviction. The disruption
// controller looks at one of them only, which it picks arbitrarily, when such a pod
// changes, so the figures of the others may be old: to charge them all would rest on
// numbers that nobody keeps.
func (r *Reservations) Reserve(ctx context.Context, pod *corev1.Pod, dryRun bool) (answer, error) {
	return r.ask(ctx, pod, byDelete, dryRun)
}

// Evictable returns what the budget would say to an eviction, and writes nothing.
func (r *Reservations) Evictable(ctx context.Context, pod *corev1.Pod) (answer, error) {
	return r.ask(ctx, pod, byEviction, true)
}

func (r *Reservations) ask(ctx context.Context, pod *corev1.Pod, how way, dryRun bool) (answer, error) {
	if err := r.index.Filled(); err != nil {
		return answer{}, err
	}
	selecting := r.index.Selecting(pod.Namespace, pod.Labels)
	switch len(selecting) {
	case 0:
		return answer{account: accountUnselected}, nil
	case 1:
		return r.reserve(ctx, selecting[0], pod, how, dryRun)
	}
	// The index may not have seen yet that all but one are gone.
	var still []string
	for _, budget := range selecting {
		live, err := r.budgets.Get(ctx, types.NamespacedName{Namespace: budget.Namespace, Name: budget.Name})
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return answer{}, fmt.Errorf("read poddisruptionbudget %s/%s: %w", budget.Namespace, budget.Name, err)
		case selectorOf(live).Matches(labels.Set(pod.Labels)):
			still = append(still, live.Name)
			selecting[0] = live
		}
	}
	switch len(still) {
	case 0:
		return answer{account: accountUnselected}, nil
	case 1:
		return r.reserve(ctx, selecting[0], pod, how, dryRun)
	}
	return answer{
		budget:  types.NamespacedName{Namespace: pod.Namespace, Name: strings.Join(still, ",")},
		account: accountSeveral,
	}, nil
}

func (r *Reservations) reserve(ctx context.Context, cached *policyv1.PodDisruptionBudget, pod *corev1.Pod, how way, dryRun bool) (answer, error) {
	name := types.NamespacedName{Namespace: cached.Namespace, Name: cached.Name}
	result := answer{budget: name}
	budget, live, at := cached, false, time.Time{}
	if !dryRun {
		started := r.clock.Now()
		turn, err := r.enter(ctx, name)
		if err != nil {
			return result, fmt.Errorf("waiting for other deletes under poddisruptionbudget %s: %w", name, err)
		}
		defer r.leave(name, turn)
		if turn.latest != nil {
			// What came from the API server while this review waited is as good as if it
			// had asked itself: of many deletes that have to be refused, few ask.
			budget, live, at = turn.latest, turn.latestAt.After(started), turn.latestAt
		}
		if live && !selectorOf(budget).Matches(labels.Set(pod.Labels)) {
			result.account = accountUnselected
			return result, nil
		}
		defer func() {
			if live {
				turn.latest, turn.latestAt = budget, at
			}
		}()
	}
	refresh := func() error {
		asked := r.clock.Now()
		read, err := r.budgets.Get(ctx, name)
		if err != nil {
			if apierrors.IsNotFound(err) {
				result.account = accountUnselected
				return nil
			}
			return fmt.Errorf("read poddisruptionbudget %s: %w", name, err)
		}
		budget, live, at = read, true, asked
		if !selectorOf(budget).Matches(labels.Set(pod.Labels)) {
			result.account = accountUnselected
		}
		return nil
	}
	retries := r.retries
	for {
		now := r.clock.Now()
		result.account, result.why = judge(budget, pod, how, now)
		if !live && (dryRun || result.account != accountCharge) {
			if err := refresh(); err != nil {
				return result, err
			}
			if result.account == accountUnselected {
				return result, nil
			}
			continue
		}
		if dryRun || result.account != accountCharge {
			return result, nil
		}
		written, err := r.budgets.UpdateStatus(ctx, charge(budget, pod.Name, now))
		switch {
		case err == nil:
			budget, live, at = written, true, now
			result.left, result.at = written.Status.DisruptionsAllowed, now
			return result, nil
		case apierrors.IsNotFound(err):
			result.account = accountUnselected
			return result, nil
		case !apierrors.IsConflict(err):
			return result, fmt.Errorf("reserve a disruption of poddisruptionbudget %s: %w", name, err)
		case retries.Steps <= 1:
			return result, fmt.Errorf("poddisruptionbudget %s was changed by others at each of %d attempts to reserve a disruption; try again", name, r.retries.Steps)
		case live:
			// What was read a moment ago is old already: others are busy with it. The
			// first conflict usually means no more than an old cache.
			if err := r.pause(ctx, retries.Step()); err != nil {
				return result, err
			}
		default:
			retries.Steps--
		}
		if err := refresh(); err != nil {
			return result, err
		}
		if result.account == accountUnselected {
			return result, nil
		}
	}
}

func (r *Reservations) pause(ctx context.Context, duration time.Duration) error {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
