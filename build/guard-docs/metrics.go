package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/klog/v2"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	metricsPath  = "docs/metrics.md"
	metricPrefix = "kubelet_guard_"
)

// advice is what to do with each metric; it is the one part of the page
// that the code does not know.
var advice = map[string]string{
	metricPrefix + "refused_kills_total": "Warn on any increase: something wanted a healthy pod dead. Page on `cause=\"RuntimeStop\"`: the kubelet took a path that no hook knows, which is a bug of this project.",
	metricPrefix + "audited_kills_total": "Before a pool goes from `Audit` to `Enforce`, every increase should be understood: it is a pod that was stopped and will be held from then on.",
	metricPrefix + "allowed_kills_total": "No alert. With `refused_kills_total` it distinguishes ordinary deletions (`ExplicitDeletion`) from what `allowedCauses` let through.",
	metricPrefix + "errors_total":        "Warn on a rate that stays above zero for 10 minutes. With `operation=\"Runtime\"` the container runtime does not respond, so that pods that are gone may count as alive; with `Processes` the kernel does not report which processes run, with the same effect; with `StateDirectory` pods are not saved for the next start of the kubelet; with `PodDeletion` records that release held pods cannot be read.",
	metricPrefix + "decision_duration_seconds": "Warn when the 99th percentile stays above 0.1 s: decisions are made under locks of the kubelet. " +
		"A question to the runtime is given up after 2 s.",
	metricPrefix + "info":                "Warn when the mode of a node is not that of its pool, and when nodes that should be guarded have no such series: they run a stock kubelet.",
	metricPrefix + "protected_pods":      "Warn on a sudden drop to zero on a node that runs pods with the label.",
	metricPrefix + "held_pods":           "Warn when above zero for 5 minutes, page when many nodes hold pods at once: then the control plane or a roll-out is at fault, not a node. With `cause=\"Evicted\"` other pods may be evicted in their place for as long as it lasts. What to do is in [holds.md](holds.md).",
	metricPrefix + "oldest_hold_seconds": "Warn above one day: a hold is to be understood and ended, not lived with.",
	metricPrefix + "unconfirmed_pods":    "Warn when above zero for 5 minutes: the kubelet cannot read its pods, so that it neither starts nor ends any.",
	metricPrefix + "waiting_pods":        "Page when above zero for 5 minutes: nobody serves under the name of such a pod until an operator decides.",
}

// metricsPage returns docs/metrics.md. It reads the metrics where the kubelet's
// /metrics reads them, so that what it lists is what a node serves.
func metricsPage() (string, error) {
	families, err := guardMetrics()
	if err != nil {
		return "", err
	}
	var page strings.Builder
	page.WriteString(`<!-- Written by make generate from pkg/kubelet/guard; do not edit. -->

# Metrics

The guarded kubelet serves these at ` + "`/metrics`" + ` on its authenticated port,
next to its own. No label names a pod or a namespace, every label set is closed,
and every series exists from the start with the value 0, so that ` + "`increase()`" + `
sees the first event. The alerts made from them are in [monitoring.md](monitoring.md).

| metric | type | labels |
|---|---|---|
`)
	writeTable(&page, families)
	for _, family := range families {
		help := strings.TrimPrefix(family.GetHelp(), "[ALPHA] ")
		fmt.Fprintf(&page, "\n## %s\n\n%s\n", family.GetName(), help)
		if values := labelValues(family); values != "" {
			fmt.Fprintf(&page, "\n%s\n", values)
		}
		fmt.Fprintf(&page, "\n*Alert*: %s\n", advice[family.GetName()])
	}
	page.WriteString(`
## Expressions to start from

` + "```" + `
# A kill was refused, by cause, in the last 10 minutes.
sum by (cause) (increase(kubelet_guard_refused_kills_total[10m])) > 0

# The last line of defence had to step in: please report it.
increase(kubelet_guard_refused_kills_total{cause="RuntimeStop"}[1h]) > 0

# Pods are held on this node.
sum by (instance) (kubelet_guard_held_pods) > 0

# The decisions wait for the container runtime.
histogram_quantile(0.99, sum by (le, instance) (rate(kubelet_guard_decision_duration_seconds_bucket[10m]))) > 0.1

# Nodes whose kubelet is not guarded.
kubernetes_build_info{job="kubelet"} unless on (instance) kubelet_guard_info
` + "```" + `

All metrics have the stability level ALPHA. A pod that two causes hold counts
under both in ` + "`kubelet_guard_held_pods`" + `; the number of held pods is in the node
condition ` + "`kubelet-guard.io/HoldingPods`" + `.
`)
	return page.String(), nil
}

// guardMetrics returns the guard's metrics, sorted by name, as a node with the
// default configuration serves them after its start.
func guardMetrics() ([]*dto.MetricFamily, error) {
	klog.SetLogger(klog.Logger{})
	root, err := os.MkdirTemp("", "guard-docs")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(root) }()
	if guard.Handler() == nil {
		if _, err := guard.Start(root, "node", nil, nil, nil); err != nil {
			return nil, err
		}
	}
	all, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		return nil, err
	}
	families := slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return !strings.HasPrefix(f.GetName(), metricPrefix) })
	return families, complete(families, advice, "advice in build/guard-docs/metrics.go")
}

// writeTable writes the rows of the table of metrics.
func writeTable(page *strings.Builder, families []*dto.MetricFamily) {
	for _, family := range families {
		fmt.Fprintf(page, "| [`%s`](#%s) | %s | %s |\n", family.GetName(), family.GetName(), kind(family), strings.Join(labelNames(family), ", "))
	}
}

func kind(family *dto.MetricFamily) string { return strings.ToLower(family.GetType().String()) }

func labelNames(family *dto.MetricFamily) []string {
	var names []string
	for _, label := range family.GetMetric()[0].GetLabel() {
		names = append(names, "`"+label.GetName()+"`")
	}
	return names
}

// labelValues returns the values that the labels of a metric take.
func labelValues(family *dto.MetricFamily) string {
	seen := map[string][]string{}
	for _, metric := range family.GetMetric() {
		for _, label := range metric.GetLabel() {
			seen[label.GetName()] = append(seen[label.GetName()], "`"+label.GetValue()+"`")
		}
	}
	switch {
	case len(seen["cause"]) == len(guard.Causes()):
		return "`cause`: one of the [causes](configuration.md#causes)."
	case len(seen["cause"]) > 0:
		return "`cause`: one of the [causes](configuration.md#causes), or `" + string(guard.ExplicitDeletion) + "`."
	case len(seen["mode"]) > 0:
		return "`mode`: one of the [modes](configuration.md#mode); `version`: that of the kubelet, such as `v1.36.3+guard.0.1.0`."
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		lines = append(lines, fmt.Sprintf("`%s`: one of %s.", name, strings.Join(seen[name], ", ")))
	}
	if bounds := buckets(family); bounds != "" {
		lines = append(lines, bounds)
	}
	return strings.Join(lines, "\n")
}

// buckets returns the buckets of a histogram; it is empty for other metrics.
func buckets(family *dto.MetricFamily) string {
	if family.GetType() != dto.MetricType_HISTOGRAM {
		return ""
	}
	var bounds []string
	for _, bucket := range family.GetMetric()[0].GetHistogram().GetBucket() {
		bounds = append(bounds, fmt.Sprintf("%g", bucket.GetUpperBound()))
	}
	return "Buckets, in seconds: " + strings.Join(bounds, ", ") + "."
}
