package framework

import "time"

// Periods that hold for pods on every node.
const (
	// GracePeriod is short because the workload ends on SIGTERM at once; a deletion
	// that takes this long was not passed on to the process.
	GracePeriod = 5 * time.Second
	// APILag covers a status or an event on its way to the API; the kubelet syncs
	// statuses at least every 10 s.
	APILag = 20 * time.Second
	// KillTimeout is how long a stock kubelet may take to kill what it kills. It needs 2 s
	// on an idle machine; housekeeping and resyncs run every 2 and 10 s.
	KillTimeout = 30 * time.Second
	// HoldPeriod is how long a pod must have been kept, from the moment on when others
	// under the same fault were dead: three times the 2 s within which each of the kubelet's
	// loops runs (housekeeping 2 s, PLEG 1 s, config sources 1 s), so that a kill that is
	// merely late is seen.
	HoldPeriod = 6 * time.Second
)
