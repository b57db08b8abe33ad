package budget

import (
	"context"
	"fmt"
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
	"k8s.io/klog/v2"
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

// giveBackTime bounds the return of a disruption after its review has ended.
const giveBackTime = 5 * time.Second

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
	// latest is what was written last. It is kept only as long as somebody waits:
	// after that the index knows better.
	latest *policyv1.PodDisruptionBudget
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

// answer is what one budget says.
type answer struct {
	budget  types.NamespacedName
	account account
	// why is set in a refusal.
	why string
	// left is the number of disruptions after a charge.
	left int32
	// at is the time of the charge.
	at time.Time
}

// Reserve takes one disruption for the pod from each budget that selects it, and
// returns what they say; a refusal is the last answer. When one refuses, none is
// charged. With dryRun nothing is written.
//
// A pod that several budgets select is one that eviction does not handle at all. To
// refuse it as well would leave a pod that can be ended by override only, which
// teaches people to override; so it needs a disruption from every one.
func (r *Reservations) Reserve(ctx context.Context, pod *corev1.Pod, dryRun bool) ([]answer, error) {
	if err := r.index.Filled(); err != nil {
		return nil, err
	}
	selecting := r.index.Selecting(pod.Namespace, pod.Labels)
	if len(selecting) > 1 && !dryRun {
		// Ask all before one is charged: several objects cannot be swapped at once.
		answers, err := r.reserve(ctx, selecting, pod, true)
		if err != nil || refusal(answers) != nil {
			return answers, err
		}
	}
	return r.reserve(ctx, selecting, pod, dryRun)
}

func (r *Reservations) reserve(ctx context.Context, budgets []*policyv1.PodDisruptionBudget, pod *corev1.Pod, dryRun bool) ([]answer, error) {
	var answers []answer
	for _, budget := range budgets {
		answer, err := r.reserveOne(ctx, budget, pod, dryRun)
		if err == nil {
			answers = append(answers, answer)
		}
		if err != nil || answer.account == accountRefuse {
			if !dryRun {
				r.GiveBack(ctx, pod, answers)
			}
			return answers, err
		}
	}
	return answers, nil
}

// refusal returns the answer that refuses, or nil.
func refusal(answers []answer) *answer {
	for i := range answers {
		if answers[i].account == accountRefuse {
			return &answers[i]
		}
	}
	return nil
}

func (r *Reservations) reserveOne(ctx context.Context, cached *policyv1.PodDisruptionBudget, pod *corev1.Pod, dryRun bool) (answer, error) {
	name := types.NamespacedName{Namespace: cached.Namespace, Name: cached.Name}
	result := answer{budget: name}
	budget, live := cached, false
	if !dryRun {
		turn, err := r.enter(ctx, name)
		if err != nil {
			return result, fmt.Errorf("waiting for other deletes under poddisruptionbudget %s: %w", name, err)
		}
		defer r.leave(name, turn)
		if turn.latest != nil {
			budget = turn.latest
		}
		defer func() {
			// Whoever comes next may start from it; a conflict shows when it is old.
			if live {
				turn.latest = budget
			}
		}()
	}
	refresh := func() error {
		var err error
		if budget, err = r.budgets.Get(ctx, name); err != nil {
			if apierrors.IsNotFound(err) {
				result.account = accountUnselected
				return nil
			}
			return fmt.Errorf("read poddisruptionbudget %s: %w", name, err)
		}
		live = true
		if !selectorOf(budget).Matches(labels.Set(pod.Labels)) {
			result.account = accountUnselected
		}
		return nil
	}
	retries := r.retries
	for {
		now := r.clock.Now()
		result.account, result.why = judge(budget, pod, now)
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
			budget, live = written, true
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

// GiveBack returns the disruptions that the answers took for the pod, because it will
// not be deleted. Where it fails, the disruption controller does it after two minutes.
func (r *Reservations) GiveBack(ctx context.Context, pod *corev1.Pod, answers []answer) {
	// Also when the review has timed out.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTime)
	defer cancel()
	for _, answer := range answers {
		if answer.account != accountCharge {
			continue
		}
		retries := r.retries
		err := wait.ExponentialBackoffWithContext(ctx, retries, func(ctx context.Context) (bool, error) {
			budget, err := r.budgets.Get(ctx, answer.budget)
			if err != nil {
				return apierrors.IsNotFound(err), ignoreNotFound(err)
			}
			returned, charged := giveBack(budget, pod.Name, answer.at)
			if !charged {
				return true, nil
			}
			if _, err = r.budgets.UpdateStatus(ctx, returned); apierrors.IsConflict(err) {
				return false, nil
			}
			return err == nil || apierrors.IsNotFound(err), ignoreNotFound(err)
		})
		if err != nil {
			klog.FromContext(ctx).Error(err, "A reserved disruption stays reserved until the disruption controller drops it",
				"pod", klog.KObj(pod), "podDisruptionBudget", answer.budget)
		}
	}
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
