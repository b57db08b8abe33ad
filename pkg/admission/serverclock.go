package admission

import (
	"net/http"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// serverClockTolerance is the difference below which the own clock is taken to be right: the
// time in a response has no fractions of a second, and is as old as the response.
const serverClockTolerance = 10 * time.Second

// ServerClock has the time of the API server, by the dates of its responses. Replicas whose
// own clocks differ so agree on what has expired, and with the times that the API server
// writes into objects. Until the first response, and with a small difference, it has that of
// its own clock. Timers are not concerned. It is safe for concurrent use.
type ServerClock struct {
	clock.Clock
	// ahead is by how much the API server's clock is ahead, in nanoseconds.
	ahead atomic.Int64
}

// NewServerClock returns a ServerClock that starts from the given one.
func NewServerClock(own clock.Clock) *ServerClock { return &ServerClock{Clock: own} }

// Now implements clock.Clock.
func (c *ServerClock) Now() time.Time { return c.Clock.Now().Add(time.Duration(c.ahead.Load())) }

// Since implements clock.Clock.
func (c *ServerClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }

// Wrap returns a transport to the API server that reads the dates of its responses.
func (c *ServerClock) Wrap(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(request *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(request)
		if err != nil {
			return response, err
		}
		date, err := http.ParseTime(response.Header.Get("Date"))
		if err != nil {
			return response, nil
		}
		ahead := date.Sub(c.Clock.Now())
		if ahead.Abs() < serverClockTolerance {
			ahead = 0
		}
		c.ahead.Store(int64(ahead))
		return response, nil
	})
}
