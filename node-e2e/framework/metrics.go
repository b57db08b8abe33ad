package framework

import (
	"bytes"
	"maps"
	"slices"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics is one reading of a server's metrics, by family.
type Metrics map[string]*dto.MetricFamily

// ParseMetrics reads metrics in text format.
func ParseMetrics(text []byte) (Metrics, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(bytes.NewReader(text))
}

// Series returns the series of a family that have these labels, among others.
func (m Metrics) Series(name string, labels map[string]string) []*dto.Metric {
	return slices.DeleteFunc(slices.Clone(m[name].GetMetric()), func(series *dto.Metric) bool {
		has := LabelsOf(series)
		differs := maps.Clone(labels)
		maps.DeleteFunc(differs, func(name, value string) bool { return has[name] == value })
		return len(differs) > 0
	})
}

// Sum adds up all series of a counter or gauge.
func (m Metrics) Sum(name string) float64 {
	total := 0.0
	for _, series := range m[name].GetMetric() {
		total += valueOf(series)
	}
	return total
}

// ByLabel adds up series of a counter or gauge by the value of a label, without those that
// are zero.
func ByLabel[K ~string](series []*dto.Metric, label string) map[K]int {
	values := map[K]int{}
	for _, s := range series {
		if v := int(valueOf(s)); v != 0 {
			values[K(LabelsOf(s)[label])] += v
		}
	}
	return values
}

// LabelsOf returns the labels of a series.
func LabelsOf(series *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, pair := range series.GetLabel() {
		labels[pair.GetName()] = pair.GetValue()
	}
	return labels
}

func valueOf(series *dto.Metric) float64 {
	return series.GetCounter().GetValue() + series.GetGauge().GetValue()
}
