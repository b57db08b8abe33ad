package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/utils/clock"
	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
)

const webhookMetricsPath = "docs/control-plane/metrics.md"

// webhookAdvice is for the webhook what advice is for the kubelet. Alerts are named as
// in manifests/monitoring/rules.
var webhookAdvice = map[string]string{
	admission.DecisionsMetric: "GuardWebhookRefusalsRising, GuardWebhookOverrideUsed, GuardWebhookDecisionsFailing. " +
		"Rules that the API server decides by policies are not in it: those are in `apiserver_validating_admission_policy_check_total` (GuardPolicyRefusalsRising).",
	admission.DecisionDurationMetric: "GuardWebhookDecisionsSlow. The way to the webhook and back is in `apiserver_admission_webhook_admission_duration_seconds`.",
	admission.CacheAgeMetric:         "GuardWebhookCacheTooOld. An idle watch brings a bookmark about once a minute, so an age of a few minutes is a lost watch.",
	admission.CertificateMetric:      "GuardWebhookCertificateExpiring. It is read from the server itself, so it is right however the certificate is renewed.",
	fleetmetrics.NodesMetric:         "none.",
	fleetmetrics.ProtectedNodesMetric: "KubeletGuardNodesUnguarded. Every replica counts the whole cluster: take `max`, not `sum`, over replicas. " +
		"A kubelet is guarded when its version has the suffix `+guard.<release>`; a guarded one whose configuration selects other labels, or whose mode is `Off`, counts as guarded.",
	fleetmetrics.ProtectedPodsMetric: "none.",
	fleetmetrics.WithoutBudgetMetric: "none. A namespace and labels that several pods share count as one kind of pod, as of the moment of the read. " +
		"A budget whose selector names a label that each pod has for itself (`statefulset.kubernetes.io/pod-name`, an index, or any whose value is the pod's name) is not seen here. " +
		"There is no series while a replica does not know all pods and budgets, nor where protected pods have more than 50,000 sets of labels. `kubectl guard status` names the namespaces.",
}

// webhookLabels describes the values of a label whose values are not all there at the
// start.
var webhookLabels = map[string]string{
	"mode":     "that of the rule, one of `Enforce`, `Audit`",
	"resource": "a resource that the webhook caches, with its group, such as `nodes` or `poddisruptionbudgets.policy`",
}

// emptyCluster is a fleetmetrics.Lister.
type emptyCluster struct{}

func (emptyCluster) Nodes(func(name, version string)) error          { return nil }
func (emptyCluster) ProtectedPods(func(node string, pods int)) error { return nil }
func (emptyCluster) WithoutBudget() (int, error)                     { return 0, nil }

// webhookMetrics returns the metrics of the webhook, sorted by name, as it serves them
// after its start, but for those of the libraries.
func webhookMetrics() ([]*dto.MetricFamily, error) {
	registry := prometheus.NewRegistry()
	if _, err := admission.NewMetrics(registry, admission.Modes{Default: admission.Enforce}); err != nil {
		return nil, err
	}
	if _, err := admission.NewCacheAge(registry, clock.RealClock{}, "pods"); err != nil {
		return nil, err
	}
	// Nobody listens on port 0.
	for _, collector := range []prometheus.Collector{fleetmetrics.NewCollector(emptyCluster{}), admission.NewCertificateExpiry(0)} {
		if err := registry.Register(collector); err != nil {
			return nil, err
		}
	}
	families, err := registry.Gather()
	if err != nil {
		return nil, err
	}
	return families, complete(families, webhookAdvice, "webhookAdvice in build/guard-docs/webhook.go")
}

// complete fails unless there is advice for exactly these metrics.
func complete(families []*dto.MetricFamily, advice map[string]string, where string) error {
	var missing []string
	without := maps.Clone(advice)
	for _, family := range families {
		if _, ok := advice[family.GetName()]; !ok {
			missing = append(missing, family.GetName())
		}
		delete(without, family.GetName())
	}
	if len(missing) > 0 || len(without) > 0 {
		return fmt.Errorf("%s: add advice for %v, remove that for %v", where, missing, slices.Sorted(maps.Keys(without)))
	}
	return nil
}

// webhookMetricsPage returns docs/control-plane/metrics.md.
func webhookMetricsPage() (string, error) {
	families, err := webhookMetrics()
	if err != nil {
		return "", err
	}
	var page strings.Builder
	page.WriteString(`<!-- Written by make generate from pkg/admission; do not edit. -->

# Metrics of the webhook

The webhook serves these at ` + "`/metrics`" + `, plain HTTP on port 8080 of its pods, next to
those of its libraries (` + "`controller_runtime_*`, `rest_client_*`, `go_*`" + `). No label names an
object, every label set is closed, and every series that can occur exists from the
start, so that ` + "`increase()`" + ` sees the first event. [monitoring.md](../monitoring.md)
has the alerts, and how to collect the metrics.
`)
	for _, family := range families {
		writeMetric(&page, family, webhookLabelValues(family), webhookAdvice[family.GetName()], "../runbooks")
	}
	page.WriteString(`
## Of the API server

What the API server knows about the webhook and the policies, and the alerts use:

| metric | what for |
|---|---|
| ` + "`apiserver_admission_webhook_rejection_count{name,error_type}`" + ` | ` + "`error_type=\"calling_webhook_error\"`" + `: the webhook could not be called |
| ` + "`apiserver_admission_webhook_fail_open_count{name}`" + ` | could not be called, and the request passed |
| ` + "`apiserver_validating_admission_policy_check_total{policy,enforcement_action}`" + ` | refusals of policies (` + "`deny`" + `), and what the overlay audit lets through with a warning (` + "`warn`" + `). A policy has no series before its first refusal |
`)
	return page.String(), nil
}

// webhookLabelValues returns the values that the labels of a metric take.
func webhookLabelValues(family *dto.MetricFamily) string {
	seen := map[string][]string{}
	for _, metric := range family.GetMetric() {
		for _, label := range metric.GetLabel() {
			if value := "`" + label.GetValue() + "`"; !slices.Contains(seen[label.GetName()], value) {
				seen[label.GetName()] = append(seen[label.GetName()], value)
			}
		}
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		values := "one of " + strings.Join(seen[name], ", ")
		if text, ok := webhookLabels[name]; ok {
			values = text
		}
		lines = append(lines, fmt.Sprintf("`%s`: %s.", name, values))
	}
	if bounds := buckets(family); bounds != "" {
		lines = append(lines, bounds)
	}
	return strings.Join(lines, "\n")
}
