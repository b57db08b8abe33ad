package admission

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
)

// Names of the metrics.
const (
	DecisionsMetric        = "guard_webhook_decisions_total"
	DecisionDurationMetric = "guard_webhook_decision_duration_seconds"
	CacheAgeMetric         = "guard_webhook_cache_age_seconds"
)

// unknownOperation stands for one that no webhook entry has: the operation of a review is
// what its sender wrote, and must not make a series.
const unknownOperation = "Unknown"

// operations that webhook entries send.
func operations() []admissionv1.Operation {
	return []admissionv1.Operation{admissionv1.Create, admissionv1.Update, admissionv1.Delete}
}

// Metrics counts decisions. It is safe for concurrent use.
type Metrics struct {
	decisions *prometheus.CounterVec
	durations *prometheus.HistogramVec
}

// NewMetrics registers the metrics, with every series that can occur at zero. A rule
// has one mode for the life of the process, so only that one is made.
func NewMetrics(registerer prometheus.Registerer, modes Modes) (*Metrics, error) {
	m := &Metrics{
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: DecisionsMetric,
			Help: "Reviews that a rule judged. In mode Audit a Refused or Failed request was let through. The rule Override counts the override annotations that were judged.",
		}, []string{"rule", "decision", "mode", "operation"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: DecisionDurationMetric,
			Help: "How long a rule took to judge a review, without the way to the webhook and back.",
			// Decisions from a cache take microseconds, those that query the API server
			// milliseconds; timeoutSeconds of the entries is at most five seconds.
			Buckets: []float64{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5},
		}, []string{"rule"}),
	}
	for _, rule := range RuleNames() {
		m.durations.WithLabelValues(string(rule))
		for _, verdict := range Verdicts() {
			for _, operation := range append(operations(), unknownOperation) {
				m.decisions.WithLabelValues(string(rule), string(verdict), string(modes.Of(rule)), string(operation))
			}
		}
	}
	for _, collector := range []prometheus.Collector{m.decisions, m.durations} {
		if err := registerer.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Metrics) observe(rule RuleName, verdict Verdict, mode Mode, operation admissionv1.Operation, took time.Duration) {
	if !slices.Contains(operations(), operation) {
		operation = unknownOperation
	}
	m.decisions.WithLabelValues(string(rule), string(verdict), string(mode), string(operation)).Inc()
	m.durations.WithLabelValues(string(rule)).Observe(took.Seconds())
}
