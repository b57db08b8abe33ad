package admission

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	testingclock "k8s.io/utils/clock/testing"
)

func TestServerClockFollowsTheDatesOfAnswers(t *testing.T) {
	noon := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	own := testingclock.NewFakeClock(noon)
	c := NewServerClock(own)
	date, failure := "", error(nil)
	transport := c.Wrap(roundTripper(func(*http.Request) (*http.Response, error) {
		if failure != nil {
			return nil, failure
		}
		return &http.Response{Header: http.Header{"Date": {date}}}, nil
	}))
	answer := func(with string) {
		t.Helper()
		date = with
		_, err := transport.RoundTrip(&http.Request{})
		require.NoError(t, err)
	}
	require.Equal(t, noon, c.Now(), "before the first answer")
	answer(noon.Add(-time.Hour).Format(http.TimeFormat))
	require.Equal(t, noon.Add(-time.Hour), c.Now(), "the own clock is an hour ahead")
	own.Step(time.Minute)
	require.Equal(t, noon.Add(-59*time.Minute), c.Now())
	require.Equal(t, time.Minute, c.Since(noon.Add(-time.Hour)))
	answer("yesterday")
	require.Equal(t, noon.Add(-59*time.Minute), c.Now(), "after an answer without a date")
	failure = errors.New("no answer")
	_, err := transport.RoundTrip(&http.Request{})
	require.Equal(t, failure, err)
	require.Equal(t, noon.Add(-59*time.Minute), c.Now())
	failure = nil
	answer(own.Now().Add(-9 * time.Second).Format(http.TimeFormat))
	require.Equal(t, own.Now(), c.Now(), "a slow answer")
}
