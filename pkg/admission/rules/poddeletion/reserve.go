package poddeletion

import (
	"context"
	"fmt"
	"strings"
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

// conflictRetries are the waits after conflicts. Reviews of this process take turns,
// so that a conflict comes from another replica, an eviction or the disruption
// controller, and is over soon. Together they stay below the time that the API
// server gives a review: a Cap would end them earlier.
var conflictRetries = wait.Backoff{Duration: 4 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 8}

// Reservations takes disruptions from budgets. It is safe for concurrent use.
type Reservations struct {
	index *Index
	// budgets are those at the API server, not in a cache.
	budgets policyclient.PodDisruptionBudgetsGetter
	clock   clock.PassiveClock
	retries wait.Backoff
	turns   turns
}

// NewReservations returns reservations on the budgets that the index finds.
func NewReservations(index *Index, budgets policyclient.PodDisruptionBudgetsGetter, clock clock.PassiveClock) *Reservations {
	return &Reservations{index: index, budgets: budgets, clock: clock, retries: conflictRetries}
}

// outcome is what the budget of a pod decides.
type outcome struct {
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
// returns the outcome. With dryRun nothing is written.
//
// A pod that several budgets select is refused, as by eviction. The disruption
// controller updates one of them only, which it picks arbitrarily, when such a pod
// changes, so the figures of the others may be old: to charge them all would rest on
// numbers that are not kept up to date.
func (r *Reservations) Reserve(ctx context.Context, pod *corev1.Pod, dryRun bool) (outcome, error) {
	return r.decide(ctx, pod, byDelete, dryRun)
}

// Evictable returns the outcome of an eviction, and writes nothing.
func (r *Reservations) Evictable(ctx context.Context, pod *corev1.Pod) (outcome, error) {
	return r.decide(ctx, pod, byEviction, true)
}

func (r *Reservations) decide(ctx context.Context, pod *corev1.Pod, how way, dryRun bool) (outcome, error) {
	if err := r.index.Filled(); err != nil {
		return outcome{}, err
	}
	selecting := r.index.Selecting(pod.Namespace, pod.Labels)
	switch len(selecting) {
	case 0:
		return outcome{account: accountUnselected}, nil
	case 1:
		return r.reserve(ctx, selecting[0], pod, how, dryRun)
	}
	// The index may not have seen yet that all but one are gone.
	var still []string
	for _, budget := range selecting {
		live, err := r.budgets.PodDisruptionBudgets(budget.Namespace).Get(ctx, budget.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			continue
		case err != nil:
			return outcome{}, fmt.Errorf("read poddisruptionbudget %s/%s: %w", budget.Namespace, budget.Name, err)
		case selectorOf(live).Matches(labels.Set(pod.Labels)):
			still = append(still, live.Name)
			selecting[0] = live
		}
	}
	switch len(still) {
	case 0:
		return outcome{account: accountUnselected}, nil
	case 1:
		return r.reserve(ctx, selecting[0], pod, how, dryRun)
	}
	return outcome{
		budget:  types.NamespacedName{Namespace: pod.Namespace, Name: strings.Join(still, ",")},
		account: accountSeveral,
	}, nil
}

// reading is a budget as a review knows it.
type reading struct {
	budget *policyv1.PodDisruptionBudget
	// live: it is as the API server had it at a time after the review started.
	live bool
	// at is when it was read or written, zero for one of the index.
	at time.Time
	// stale: a write has shown that it has changed.
	stale bool
}

// reserve takes a disruption from the budget that the index shows as cached.
func (r *Reservations) reserve(ctx context.Context, cached *policyv1.PodDisruptionBudget, pod *corev1.Pod, how way, dryRun bool) (outcome, error) {
	name := types.NamespacedName{Namespace: cached.Namespace, Name: cached.Name}
	known := reading{budget: cached}
	if dryRun {
		return r.judgeLive(ctx, name, &known, pod, how)
	}
	started := r.clock.Now()
	turn, err := r.turns.enter(ctx, name)
	if err != nil {
		return outcome{budget: name}, fmt.Errorf("waiting for other deletes under poddisruptionbudget %s: %w", name, err)
	}
	defer r.turns.leave(name, turn)
	if turn.latest.budget != nil {
		// What came from the API server while this review waited is as good as if the review had
		// read it: of many deletes that have to be refused, few read.
		known = turn.latest
		known.live = known.at.After(started)
	}
	defer func() {
		if known.live {
			turn.latest = known
		}
	}()
	return r.chargeKnown(ctx, name, &known, pod, how)
}

// chargeKnown charges the budget by compare-and-swap, and retries after conflicts.
func (r *Reservations) chargeKnown(ctx context.Context, name types.NamespacedName, known *reading, pod *corev1.Pod, how way) (outcome, error) {
	var (
		result    outcome
		failure   error
		conflicts int
	)
	attempt := func(ctx context.Context) (done bool, _ error) {
		result, failure = r.attempt(ctx, name, known, pod, how)
		if !apierrors.IsConflict(failure) {
			return true, nil
		}
		known.stale = true
		conflicts++
		return false, nil
	}
	if !known.live {
		// The first conflict usually means no more than an old cache, and the next attempt follows
		// at once. Later ones mean that others are busy with the budget.
		if done, _ := attempt(ctx); done {
			return result, failure
		}
	}
	switch err := wait.ExponentialBackoffWithContext(ctx, r.retries, attempt); {
	case err == nil:
		return result, failure
	case ctx.Err() != nil:
		return result, ctx.Err()
	}
	return result, fmt.Errorf("poddisruptionbudget %s was changed by others at each of %d attempts to reserve a disruption; try again", name, conflicts)
}

// attempt judges the budget and charges it once. The error of a conflict is that of the API server.
func (r *Reservations) attempt(ctx context.Context, name types.NamespacedName, known *reading, pod *corev1.Pod, how way) (outcome, error) {
	now := r.clock.Now()
	result := known.judge(name, pod, how, now)
	// What the index shows may be old: only a write that succeeds may rest on it.
	if known.stale || !known.live && result.account != accountCharge {
		var err error
		if result, err = r.judgeLive(ctx, name, known, pod, how); err != nil {
			return result, err
		}
		now = r.clock.Now()
	}
	if result.account != accountCharge {
		return result, nil
	}
	written, err := r.budgets.PodDisruptionBudgets(name.Namespace).UpdateStatus(ctx, charge(known.budget, pod.Name, now), metav1.UpdateOptions{})
	switch {
	case err == nil:
		*known = reading{budget: written, live: true, at: now}
		result.left, result.at = written.Status.DisruptionsAllowed, now
	case apierrors.IsNotFound(err):
		return outcome{budget: name, account: accountUnselected}, nil
	case !apierrors.IsConflict(err):
		err = fmt.Errorf("reserve a disruption of poddisruptionbudget %s: %w", name, err)
	}
	return result, err
}

// judgeLive reads the budget from the API server and judges it.
func (r *Reservations) judgeLive(ctx context.Context, name types.NamespacedName, known *reading, pod *corev1.Pod, how way) (outcome, error) {
	at := r.clock.Now()
	budget, err := r.budgets.PodDisruptionBudgets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return outcome{budget: name, account: accountUnselected}, nil
	case err != nil:
		return outcome{budget: name}, fmt.Errorf("read poddisruptionbudget %s: %w", name, err)
	}
	*known = reading{budget: budget, live: true, at: at}
	return known.judge(name, pod, how, r.clock.Now()), nil
}

// judge returns what the budget allows. The index has matched the labels of a budget that is not
// live.
func (k reading) judge(name types.NamespacedName, pod *corev1.Pod, how way, now time.Time) outcome {
	if k.live && !selectorOf(k.budget).Matches(labels.Set(pod.Labels)) {
		return outcome{budget: name, account: accountUnselected}
	}
	account, why := judge(k.budget, pod, how, now)
	return outcome{budget: name, account: account, why: why}
}
