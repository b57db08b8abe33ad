package poddeletion

import (
	"context"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// turns has the reviews of one budget take turns, so that they do not conflict with each other and
// each starts from what the previous one has read or written. It is safe for concurrent use. The
// zero value is ready.
type turns struct {
	mu sync.Mutex
	// byBudget holds the budgets for which a review has or wants the turn.
	byBudget map[types.NamespacedName]*turn
}

// turn is that of the reviews of one budget.
type turn struct {
	// busy has room for the review whose turn it is.
	busy chan struct{}
	// waiting counts the reviews that have or want the turn.
	waiting int
	// latest is what the last review read or wrote. It is kept only as long as others wait: after
	// that the index is as recent.
	latest reading
}

// enter waits for the turn on the budget. leave must be called when it returned one.
func (t *turns) enter(ctx context.Context, budget types.NamespacedName) (*turn, error) {
	t.mu.Lock()
	if t.byBudget == nil {
		t.byBudget = map[types.NamespacedName]*turn{}
	}
	wanted := t.byBudget[budget]
	if wanted == nil {
		wanted = &turn{busy: make(chan struct{}, 1)}
		t.byBudget[budget] = wanted
	}
	wanted.waiting++
	t.mu.Unlock()
	select {
	case wanted.busy <- struct{}{}:
		return wanted, nil
	case <-ctx.Done():
		t.forget(budget, wanted)
		return nil, ctx.Err()
	}
}

// leave ends the turn.
func (t *turns) leave(budget types.NamespacedName, ended *turn) {
	<-ended.busy
	t.forget(budget, ended)
}

func (t *turns) forget(budget types.NamespacedName, ended *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ended.waiting--; ended.waiting == 0 {
		delete(t.byBudget, budget)
	}
}
