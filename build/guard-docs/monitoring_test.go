package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const runbooks = "docs/runbooks"

// ofOthers are the metrics that the alerts and the dashboard use and that are not
// ours, with their labels. Those of the API server are stable names of its packages
// apiserver/admission/metrics and apiserver/admission/plugin/policy/validating/metrics,
// kube_* are stable metrics of kube-state-metrics.
var ofOthers = map[string][]string{
	"up": {"job"},
	"apiserver_admission_webhook_rejection_count":       {"name", "type", "operation", "error_type", "rejection_code"},
	"apiserver_admission_webhook_fail_open_count":       {"name", "type"},
	"apiserver_validating_admission_policy_check_total": {"policy", "policy_binding", "error_type", "enforcement_action"},

	"kube_daemonset_status_desired_number_scheduled": daemonSetLabels,
	"kube_daemonset_status_updated_number_scheduled": daemonSetLabels,
	"kube_daemonset_status_number_available":         daemonSetLabels,
	"kube_daemonset_status_number_unavailable":       daemonSetLabels,
	"kube_pod_info":              {"namespace", "pod", "uid", "host_ip", "pod_ip", "node", "created_by_kind", "created_by_name", "priority_class", "host_network"},
	"kube_pod_status_ready":      {"namespace", "pod", "uid", "condition"},
	"kube_node_status_condition": {"node", "condition", "status"},
}

var daemonSetLabels = []string{"namespace", "daemonset"}

// onlyInAlerts are metrics that have one meaning and are not worth a graph.
var onlyInAlerts = []string{"kube_pod_info", "kube_pod_status_ready", "kube_node_status_condition"}

func alerts(t *testing.T) []rule {
	t.Helper()
	alerts, err := readAlerts(root)
	require.NoError(t, err)
	var all []rule
	for _, group := range alerts.Groups {
		all = append(all, group.Rules...)
	}
	require.NotEmpty(t, all)
	return all
}

// withoutAlert are runbooks of what no metric shows, or not in time.
var withoutAlert = []string{"UnsafeDeletion", "ObjectDeleted", "DefinitionDeleted", "KeyDamaged", "EtcdLost"}

// assertRunbook checks the headings of a runbook.
func assertRunbook(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, runbooks, name+".md"))
	require.NoError(t, err)
	var headings []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			headings = append(headings, strings.TrimSpace(line))
		}
	}
	assert.Equal(t, []string{"# " + name, "## Meaning", "## Impact", "## Diagnosis", "## Mitigation"}, headings)
}

func TestEveryAlertHasItsRunbook(t *testing.T) {
	named := map[string]bool{}
	for _, name := range withoutAlert {
		t.Run(name, func(t *testing.T) { assertRunbook(t, name) })
		named[name+".md"] = true
	}
	for _, alert := range alerts(t) {
		t.Run(alert.Alert, func(t *testing.T) {
			assert.Equal(t, runbooks+"/"+alert.Alert+".md", alert.Annotations["runbook_url"])
			named[alert.Alert+".md"] = true
			assertRunbook(t, alert.Alert)

			assert.Contains(t, []string{"critical", "warning", "info"}, alert.Labels["severity"])
			assert.NotEmpty(t, alert.Annotations["summary"])
			assert.NotEmpty(t, alert.Annotations["description"])
		})
	}
	files, err := os.ReadDir(filepath.Join(root, runbooks))
	require.NoError(t, err)
	for _, file := range files {
		assert.True(t, named[file.Name()], "%s/%s belongs to no alert", runbooks, file.Name())
	}
}

func TestEveryAlertIsListedAndTested(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs/monitoring.md"))
	require.NoError(t, err)
	tests, err := os.ReadFile(filepath.Join(root, strings.TrimSuffix(alertsPath, ".yaml")+"_test.yaml"))
	require.NoError(t, err)
	require.Contains(t, string(page), "(metrics.md)")
	require.Contains(t, string(page), "(control-plane/metrics.md)")
	for _, name := range withoutAlert {
		assert.Contains(t, string(page), "["+name+"](runbooks/"+name+".md)")
	}
	for _, alert := range alerts(t) {
		assert.Contains(t, string(page), "["+alert.Alert+"](runbooks/"+alert.Alert+".md)")
		assert.Regexp(t, `alertname: `+alert.Alert+`\n\s+eval_time: \S+\n\s+exp_alerts:`, string(tests), "a test in which %s fires", alert.Alert)
	}
}

// metric is what a query may use of a gathered metric.
type metric struct {
	labels []string
	// values of the labels, nil for metrics of others.
	values map[string][]string
}

// ourMetrics returns the metrics of all programs by their name, the series of
// histograms included.
func ourMetrics(t *testing.T) map[string]metric {
	t.Helper()
	node, err := guardMetrics()
	require.NoError(t, err)
	webhook, err := webhookMetrics()
	require.NoError(t, err)
	etcd, err := etcdMetrics()
	require.NoError(t, err)
	known := map[string]metric{}
	for _, family := range slices.Concat(node, webhook, etcd) {
		m := metric{values: map[string][]string{}}
		for _, series := range family.GetMetric() {
			for _, label := range series.GetLabel() {
				m.values[label.GetName()] = append(m.values[label.GetName()], label.GetValue())
			}
		}
		for name := range m.values {
			m.labels = append(m.labels, name)
		}
		known[family.GetName()] = m
		if family.GetType() == dto.MetricType_HISTOGRAM {
			m.labels = append(m.labels, "le")
			known[family.GetName()+"_bucket"] = m
		}
	}
	for name, labels := range ofOthers {
		known[name] = metric{labels: labels}
	}
	return known
}

var (
	selector = regexp.MustCompile(`\b(?:(?:kubelet_guard|guard_webhook|guard_etcd|apiserver|kube)_[a-z_]+|up)\b(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`([a-z_]+)(=~|!~|!=|=)"([^"]*)"`)
	grouping = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// targetLabels come from the collection, not from the metric.
var targetLabels = []string{"cluster", "instance", "job"}

// checkExpression fails for metrics, labels and label values that the code does not
// have.
func checkExpression(t *testing.T, known map[string]metric, where, expression string) {
	t.Helper()
	used := selector.FindAllStringSubmatch(expression, -1)
	assert.NotEmpty(t, used, "%s: no metric in %s", where, expression)
	var labels []string
	for _, match := range used {
		name, _, _ := strings.Cut(match[0], "{")
		m, ok := known[name]
		if !assert.True(t, ok, "%s: there is no metric %s", where, name) {
			continue
		}
		labels = append(labels, m.labels...)
		for _, condition := range matcher.FindAllStringSubmatch(match[1], -1) {
			label, operator, value := condition[1], condition[2], condition[3]
			assert.Contains(t, m.labels, label, "%s: %s has no label %s", where, name, label)
			if m.values != nil && (operator == "=" || operator == "!=") {
				assert.Contains(t, m.values[label], value, "%s: %s{%s} is never %q", where, name, label, value)
			}
		}
	}
	for _, by := range grouping.FindAllStringSubmatch(expression, -1) {
		for _, label := range strings.Split(by[1], ",") {
			assert.Contains(t, slices.Concat(labels, targetLabels), strings.TrimSpace(label), "%s: no metric of %s has the label", where, expression)
		}
	}
}

func TestRulesUseMetricsThatExist(t *testing.T) {
	known := ourMetrics(t)
	for _, alert := range alerts(t) {
		checkExpression(t, known, alert.Alert, alert.Expr)
	}
}

func TestDashboardUsesMetricsThatExist(t *testing.T) {
	text, err := dashboardJSON()
	require.NoError(t, err)
	var board struct {
		Panels []struct {
			ID      int    `json:"id"`
			Type    string `json:"type"`
			Title   string `json:"title"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	require.NoError(t, json.Unmarshal([]byte(text), &board))
	known, seen := ourMetrics(t), map[int]bool{}
	for _, panel := range board.Panels {
		assert.False(t, seen[panel.ID], "%s: the id %d is used twice", panel.Title, panel.ID)
		seen[panel.ID] = true
		if panel.Type != "row" {
			assert.NotEmpty(t, panel.Targets, panel.Title)
		}
		for _, target := range panel.Targets {
			checkExpression(t, known, panel.Title, target.Expr)
		}
	}
}

func TestDashboardShowsEveryMetric(t *testing.T) {
	text, err := dashboardJSON()
	require.NoError(t, err)
	for name := range ourMetrics(t) {
		if !slices.Contains(onlyInAlerts, name) {
			assert.Contains(t, text, name)
		}
	}
}

func TestCheckExpressionFindsMistakes(t *testing.T) {
	known := ourMetrics(t)
	for name, expression := range map[string]string{
		"a metric that does not exist":         `kubelet_guard_hold_pods > 0`,
		"a label that does not exist":          `guard_webhook_decisions_total{verdict="Refused"}`,
		"a value that does not occur":          `guard_webhook_decisions_total{decision="Denied"}`,
		"a grouping by a label of no metric":   `sum by (verdict) (guard_webhook_decisions_total)`,
		"an expression without a metric of us": `vector(1)`,
	} {
		t.Run(name, func(t *testing.T) {
			fake := &testing.T{}
			checkExpression(fake, known, "test", expression)
			assert.True(t, fake.Failed())
		})
	}
}
