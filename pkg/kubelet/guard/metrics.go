package guard

import (
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
)

// Values of the label operation of kubelet_guard_errors_total.
const (
	opRuntime   = "Runtime"
	opProcesses = "Processes"
	opStateDir  = "StateDirectory"
	opHTTP      = "HTTP"
	opDeletion  = "PodDeletion"
)

var operations = []string{opRuntime, opProcesses, opStateDir, opHTTP, opDeletion}

const subsystem = "kubelet_guard"

// guardMetrics are the metrics of one Guard. All label sets are closed, and all
// series exist from the start: an alert on a series that does not exist yet
// never fires.
type guardMetrics struct {
	refused, audited, allowed *metrics.CounterVec
	errors                    *metrics.CounterVec
	decision                  *metrics.Histogram
	info                      *metrics.GaugeVec
	state                     *stateCollector
}

func newMetrics(g *Guard) *guardMetrics {
	m := &guardMetrics{
		refused: metrics.NewCounterVec(&metrics.CounterOpts{
			Subsystem: subsystem, Name: "refused_kills_total", StabilityLevel: metrics.ALPHA,
			Help: "Attempts to stop a protected pod that were refused. Counted once per pod and cause while the hold lasts, not once per retry.",
		}, []string{"cause"}),
		audited: metrics.NewCounterVec(&metrics.CounterOpts{
			Subsystem: subsystem, Name: "audited_kills_total", StabilityLevel: metrics.ALPHA,
			Help: "Attempts to stop a protected pod that mode Enforce would have refused. Counted once per pod and cause. Zero in mode Enforce.",
		}, []string{"cause"}),
		allowed: metrics.NewCounterVec(&metrics.CounterOpts{
			Subsystem: subsystem, Name: "allowed_kills_total", StabilityLevel: metrics.ALPHA,
			Help: "Protected pods that the kubelet was allowed to stop, because their deletion is explicit (ExplicitDeletion) or because the configuration exempts the cause. Counted once per pod and cause.",
		}, []string{"cause"}),
		errors: metrics.NewCounterVec(&metrics.CounterOpts{
			Subsystem: subsystem, Name: "errors_total", StabilityLevel: metrics.ALPHA,
			Help: "Operations of the guard that failed. A pod whose state is unknown counts as running.",
		}, []string{"operation"}),
		decision: metrics.NewHistogram(&metrics.HistogramOpts{
			Subsystem: subsystem, Name: "decision_duration_seconds", StabilityLevel: metrics.ALPHA,
			Help:    "Duration of a decision about a protected pod, including its query of the container runtime. Decisions about other pods are not measured: they cost less than the measurement.",
			Buckets: []float64{1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10},
		}),
		info: metrics.NewGaugeVec(&metrics.GaugeOpts{
			Subsystem: subsystem, Name: "info", StabilityLevel: metrics.ALPHA,
			Help: "Always 1; the labels are the mode and the version of the guard.",
		}, []string{"mode", "version"}),
		state: newStateCollector(g),
	}
	// Hidden until registered; a vector must exist before its series can.
	for _, c := range m.registerables() {
		c.Create(nil)
	}
	for _, cause := range causes {
		m.refused.WithLabelValues(string(cause))
		m.audited.WithLabelValues(string(cause))
		m.allowed.WithLabelValues(string(cause))
	}
	m.allowed.WithLabelValues(string(ExplicitDeletion))
	for _, operation := range operations {
		m.errors.WithLabelValues(operation)
	}
	m.info.WithLabelValues(string(g.config.Mode), Version()).Set(1)
	return m
}

func (m *guardMetrics) registerables() []metrics.Registerable {
	return []metrics.Registerable{m.refused, m.audited, m.allowed, m.errors, m.decision, m.info}
}

// register adds the metrics to the registry behind the kubelet's /metrics.
func (m *guardMetrics) register() error {
	for _, c := range m.registerables() {
		if err := legacyregistry.Register(c); err != nil {
			return err
		}
	}
	return legacyregistry.CustomRegister(m.state)
}

// stateCollector computes the gauges when they are read, so that they cannot
// drift from the records.
type stateCollector struct {
	metrics.BaseStableCollector
	guard *Guard

	protected, unconfirmed, held, oldest, waiting *metrics.Desc
}

func newStateCollector(g *Guard) *stateCollector {
	return &stateCollector{
		guard: g,
		protected: metrics.NewDesc(subsystem+"_protected_pods",
			"Protected pods on this node, held ones included, terminating ones not.", nil, nil, metrics.ALPHA, ""),
		unconfirmed: metrics.NewDesc(subsystem+"_unconfirmed_pods",
			"Protected pods that an earlier start of the kubelet saved, while this one has not received its pods from the API server. They run on and are not managed.", nil, nil, metrics.ALPHA, ""),
		held: metrics.NewDesc(subsystem+"_held_pods",
			"Pods that run because an attempt to stop them was refused. A pod with two causes counts under both.", []string{"cause"}, nil, metrics.ALPHA, ""),
		oldest: metrics.NewDesc(subsystem+"_oldest_hold_seconds",
			"Age of the oldest hold, in seconds; 0 when no pod is held.", nil, nil, metrics.ALPHA, ""),
		waiting: metrics.NewDesc(subsystem+"_waiting_pods",
			"Pods that do not start because a held pod of the same name runs on this node and both would use what cannot be shared.", nil, nil, metrics.ALPHA, ""),
	}
}

// DescribeWithStability implements metrics.StableCollector.
func (c *stateCollector) DescribeWithStability(ch chan<- *metrics.Desc) {
	ch <- c.protected
	ch <- c.unconfirmed
	ch <- c.held
	ch <- c.oldest
	ch <- c.waiting
}

// CollectWithStability implements metrics.StableCollector.
func (c *stateCollector) CollectWithStability(ch chan<- metrics.Metric) {
	g := c.guard
	held := make(map[Cause]int, len(causes))
	protected, oldest := 0, 0.0
	now := g.clock.Now()
	g.mu.Lock()
	for _, r := range g.knownLocked() {
		if r.stateLocked() != Terminating {
			protected++
		}
		for cause, h := range r.holds {
			held[cause]++
			oldest = max(oldest, now.Sub(h.since).Seconds())
		}
	}
	waiting, unconfirmed := len(g.waiting), g.unconfirmedLocked()
	g.mu.Unlock()
	ch <- metrics.NewLazyConstMetric(c.protected, metrics.GaugeValue, float64(protected))
	ch <- metrics.NewLazyConstMetric(c.unconfirmed, metrics.GaugeValue, float64(unconfirmed))
	for _, cause := range causes {
		ch <- metrics.NewLazyConstMetric(c.held, metrics.GaugeValue, float64(held[cause]), string(cause))
	}
	ch <- metrics.NewLazyConstMetric(c.oldest, metrics.GaugeValue, oldest)
	ch <- metrics.NewLazyConstMetric(c.waiting, metrics.GaugeValue, float64(waiting))
}
