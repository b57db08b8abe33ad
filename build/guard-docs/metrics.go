package main

import (
	"fmt"
	"maps"
	"os"
	"regexp"
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

// advice names the alerts that are made from each metric, as in
// manifests/monitoring/rules, and says what the help does not.
var advice = map[string]string{
	metricPrefix + "refused_kills_total": "KubeletGuardKillRefused, KubeletGuardRuntimeStop.",
	metricPrefix + "audited_kills_total": "KubeletGuardKillAudited.",
	metricPrefix + "allowed_kills_total": "none. With `refused_kills_total` it distinguishes ordinary deletions (`ExplicitDeletion`) from what `allowedCauses` let through.",
	metricPrefix + "errors_total":        "KubeletGuardErrors.",
	metricPrefix + "decision_duration_seconds": "KubeletGuardDecisionsSlow. Decisions are made under locks of the kubelet. " +
		"A query of the runtime is given up after 2 s.",
	metricPrefix + "info": "none. A mode other than that of the node's pool is a mistake. Nodes with a stock kubelet: " +
		"`kubernetes_build_info{job=\"kubelet\"} unless on (instance) kubelet_guard_info`.",
	metricPrefix + "protected_pods": "none. A sudden drop to zero is wrong on a node that runs pods with the label.",
	metricPrefix + "held_pods": "KubeletGuardManyNodesHold, KubeletGuardPressureHeld. " +
		"The number of held pods is in the node condition `kubelet-guard.io/HoldingPods`.",
	metricPrefix + "oldest_hold_seconds": "KubeletGuardHoldTooOld.",
	metricPrefix + "unconfirmed_pods":    "KubeletGuardPodsUnconfirmed.",
	metricPrefix + "waiting_pods":        "KubeletGuardPodsWaiting.",
}

// metricsPage returns docs/metrics.md. It reads the metrics where the kubelet's
// /metrics reads them, so that what it lists is what a node serves.
func metricsPage() (string, error) {
	families, err := guardMetrics()
	if err != nil {
		return "", err
	}
	var page strings.Builder
	page.WriteString(`<!-- Written by make generate from pkg/kubelet/guard and pkg/dataprotection/snapshots; do not edit. -->

# Metrics

The guarded kubelet serves these at ` + "`/metrics`" + ` on its authenticated port,
next to its own. No label names a pod or a namespace, every label set is closed,
and every series exists from the start with the value 0, so that ` + "`increase()`" + `
sees the first event. All have the stability level ALPHA.
[monitoring.md](monitoring.md) has the alerts. [Those of guard-etcd](#metrics-of-guard-etcd)
follow.
`)
	for _, family := range families {
		writeMetric(&page, family, labelValues(family), advice[family.GetName()], "runbooks")
	}
	if err := writeEtcdMetrics(&page); err != nil {
		return "", err
	}
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

// alertName is the name of an alert, which is that of its runbook.
var alertName = regexp.MustCompile(`\b(KubeletGuard|GuardWebhook|GuardPolicy|EtcdBackup|EtcdHistory)[A-Z]\w+`)

// writeMetric writes the section of a metric. Alerts are linked to their runbooks in the
// given folder.
func writeMetric(page *strings.Builder, family *dto.MetricFamily, labels, advice, runbooks string) {
	help := strings.TrimPrefix(family.GetHelp(), "[ALPHA] ")
	fmt.Fprintf(page, "\n## %s\n\n%s: %s\n", family.GetName(), kind(family), help)
	if labels != "" {
		fmt.Fprintf(page, "\n%s\n", labels)
	}
	fmt.Fprintf(page, "\n*Alert*: %s\n", alertName.ReplaceAllString(advice, "[$0]("+runbooks+"/$0.md)"))
}

// kind is the type of a metric as the first word of a sentence.
func kind(family *dto.MetricFamily) string {
	name := family.GetType().String()
	return name[:1] + strings.ToLower(name[1:])
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
