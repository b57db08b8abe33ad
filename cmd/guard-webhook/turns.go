package main

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"
)

const (
	// reviewsAtOnce of one path are decoded and judged side by side. More gain nothing on the
	// few cores of a replica, and each holds ten times the size of its object: hundreds at
	// once would leave no room below the memory limit, and the collector the only work.
	reviewsAtOnce = 32
	// longestTurn is how long a review waits for its turn. It is short compared with the time-outs
	// of the entries: reviews may also wait for each other, as those that charge a ledger
	// do, and have to refuse in time.
	longestTurn = time.Second
)

// inTurn lets a few requests through at a time. A request that has waited for longestTurn
// goes on all the same.
func inTurn(hook http.Handler) http.Handler {
	turns := semaphore.NewWeighted(reviewsAtOnce)
	return http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		waiting, cancel := context.WithTimeout(request.Context(), longestTurn)
		err := turns.Acquire(waiting, 1)
		cancel()
		if err == nil {
			defer turns.Release(1)
		}
		hook.ServeHTTP(response, request)
	})
}
