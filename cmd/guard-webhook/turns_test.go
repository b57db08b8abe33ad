package main

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReviewsTakeTurns(t *testing.T) {
	for _, test := range []struct {
		name string
		// each is how long one review takes, all how long three times the turns do.
		each, all time.Duration
		most      int
	}{
		{"one after another", longestTurn / 10, 3 * longestTurn / 10, reviewsAtOnce},
		{"none waits longer than its turn", 10 * longestTurn, 11 * longestTurn, 3 * reviewsAtOnce},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var (
					mu        sync.Mutex
					now, most int
				)
				count := func(change int) {
					mu.Lock()
					defer mu.Unlock()
					now += change
					most = max(most, now)
				}
				hook := inTurn(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					count(1)
					time.Sleep(test.each)
					count(-1)
				}))
				started := time.Now()
				var wait sync.WaitGroup
				for range 3 * reviewsAtOnce {
					wait.Go(func() {
						hook.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/validate/anything", nil))
					})
				}
				wait.Wait()
				require.Equal(t, test.all, time.Since(started))
				require.Equal(t, test.most, most)
			})
		})
	}
}
