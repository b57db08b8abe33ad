package poddeletion

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"
)

func TestTurns(t *testing.T) {
	web, db := types.NamespacedName{Namespace: "shop", Name: "web"}, types.NamespacedName{Namespace: "shop", Name: "db"}
	t.Run("one review at a time has the turn on a budget", func(t *testing.T) {
		var (
			all    turns
			wg     sync.WaitGroup
			active int
		)
		for range 50 {
			wg.Go(func() {
				got, err := all.enter(t.Context(), web)
				if !assert.NoError(t, err) {
					return
				}
				active++
				assert.Equal(t, 1, active)
				active--
				all.leave(web, got)
			})
		}
		wg.Wait()
		require.Empty(t, all.byBudget)
	})
	t.Run("budgets do not wait for each other", func(t *testing.T) {
		var all turns
		first, err := all.enter(t.Context(), web)
		require.NoError(t, err)
		second, err := all.enter(t.Context(), db)
		require.NoError(t, err)
		all.leave(web, first)
		all.leave(db, second)
	})
	t.Run("the latest reading is kept while others wait, and no longer", func(t *testing.T) {
		var all turns
		first, err := all.enter(t.Context(), web)
		require.NoError(t, err)
		first.latest = reading{budget: allowing("web", 1), at: noon}
		first.waiting++ // another review
		all.leave(web, first)
		second, err := all.enter(t.Context(), web)
		require.NoError(t, err)
		require.Equal(t, noon, second.latest.at)
		second.waiting--
		all.leave(web, second)
		third, err := all.enter(t.Context(), web)
		require.NoError(t, err)
		require.Nil(t, third.latest.budget)
		all.leave(web, third)
	})
	t.Run("a review that is over stops waiting", func(t *testing.T) {
		var all turns
		first, err := all.enter(t.Context(), web)
		require.NoError(t, err)
		over, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = all.enter(over, web)
		require.ErrorIs(t, err, context.Canceled)
		all.leave(web, first)
		require.Empty(t, all.byBudget)
	})
}
