package main

import (
	"encoding/json"
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

const dashboardPath = "manifests/monitoring/grafana/kubelet-guard.json"

// Grafana's grid is 24 wide.
const (
	statWidth, statHeight   = 4, 4
	graphWidth, graphHeight = 12, 8
)

// datasource is a variable of the dashboard, so that it fits any Grafana.
var datasource = common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}

// figure is a number at the top.
type figure struct {
	title, description, expr, unit string
	// calm is the highest value that is not red. Nil for figures that have none.
	calm *float64
}

// graph is a panel with a line per series.
type graph struct {
	title, description, unit string
	queries                  []query
}

type query struct{ expr, legend string }

// row is a heading with panels below it.
type row struct {
	title   string
	figures []figure
	graphs  []graph
}

// rows are the dashboard, from top to bottom: what is wrong now, the nodes, the control
// plane. Kubelets have the label instance for their node.
func rows() []row {
	none := cog.ToPtr(0.0)
	return []row{
		{
			title: "Now",
			figures: []figure{
				{title: "Held pods", description: "Pods that run because an attempt to stop them was refused, by cause and pod.", expr: `sum(kubelet_guard_held_pods)`, calm: none},
				{title: "Oldest hold", description: "KubeletGuardHoldTooOld fires after an hour.", expr: `max(kubelet_guard_oldest_hold_seconds)`, unit: "s", calm: cog.ToPtr(3600.0)},
				{title: "Unguarded nodes with protected pods", description: "The label promises there what nobody keeps.", expr: `max(guard_webhook_nodes_with_protected_pods{kubelet="Unguarded"})`, calm: none},
				{title: "Refused kills, last hour", expr: `sum(increase(kubelet_guard_refused_kills_total[1h]))`, description: "Attempts of kubelets to stop a protected pod.", calm: none},
				{title: "Overrides, last day", expr: `sum(increase(guard_webhook_decisions_total{decision="Overridden"}[1d]))`, description: "Requests that passed by the override annotation.", calm: none},
				{title: "Webhook replicas", expr: `sum(up{job="guard-webhook"})`, description: "GuardWebhookReplicaDown fires below two."},
			},
		},
		{
			title: "Nodes",
			graphs: []graph{
				{title: "Held pods by cause", description: "What each cause means is in docs/configuration.md, what to do in docs/holds.md.", unit: "short", queries: []query{{`sum by (cause) (kubelet_guard_held_pods) > 0`, "{{cause}}"}}},
				{title: "Held pods by node", description: "The ten nodes with most.", unit: "short", queries: []query{{`topk(10, sum by (instance) (kubelet_guard_held_pods) > 0)`, "{{instance}}"}}},
				{title: "Pods that wait for held pods", description: "By node. They do not start because a held pod of the same name uses what only one of them may. KubeletGuardPodsWaiting fires after five minutes.", unit: "short", queries: []query{{`kubelet_guard_waiting_pods > 0`, "{{instance}}"}}},
				{title: "Pods that kubelets do not manage", description: "By node. The kubelet has not received its pods from the API server since it started. KubeletGuardPodsUnconfirmed fires after five minutes.", unit: "short", queries: []query{{`kubelet_guard_unconfirmed_pods > 0`, "{{instance}}"}}},
				{title: "Refused and audited kills by cause", description: "In five minutes. Audited: stopped in mode Audit, kept in mode Enforce.", unit: "short", queries: []query{
					{`sum by (cause) (increase(kubelet_guard_refused_kills_total[5m])) > 0`, "refused {{cause}}"},
					{`sum by (cause) (increase(kubelet_guard_audited_kills_total[5m])) > 0`, "audited {{cause}}"},
				}},
				{title: "Allowed kills by cause", description: "ExplicitDeletion is the ordinary end of a protected pod; the others are causes that the configuration exempts.", unit: "short", queries: []query{{`sum by (cause) (increase(kubelet_guard_allowed_kills_total[5m])) > 0`, "{{cause}}"}}},
				{title: "Protected pods", description: "As the kubelets count them, and by their labels. A gap between the two is pods on unguarded nodes, or a podSelector that is not the default.", unit: "short", queries: []query{
					{`sum(kubelet_guard_protected_pods)`, "on guarded kubelets"},
					{`max by (kubelet) (guard_webhook_protected_pods)`, "labelled, kubelet {{kubelet}}"},
					{`max(guard_webhook_protected_pods_without_budget)`, "labelled, without a budget"},
				}},
				{title: "Nodes", description: "By kubelet, and the guarded ones by mode and version.", unit: "short", queries: []query{
					{`max by (kubelet) (guard_webhook_nodes)`, "{{kubelet}}"},
					{`count by (mode, version) (kubelet_guard_info)`, "{{mode}} {{version}}"},
				}},
				{title: "Roll-outs", description: "Nodes of each pool, from kube-state-metrics. KubeletGuardRolloutStopped fires when nothing moves for 15 minutes.", unit: "short", queries: []query{
					{`max by (daemonset) (kube_daemonset_status_desired_number_scheduled{namespace="kubelet-guard-rollout"})`, "{{daemonset}} nodes"},
					{`max by (daemonset) (kube_daemonset_status_updated_number_scheduled{namespace="kubelet-guard-rollout"})`, "{{daemonset}} started"},
					{`max by (daemonset) (kube_daemonset_status_number_available{namespace="kubelet-guard-rollout"})`, "{{daemonset}} healthy"},
					{`max by (daemonset) (kube_daemonset_status_number_unavailable{namespace="kubelet-guard-rollout"}) > 0`, "{{daemonset}} unhealthy"},
				}},
				{title: "Errors of the guard", description: "By operation; docs/metrics.md has what each costs.", unit: "ops", queries: []query{{`sum by (operation) (rate(kubelet_guard_errors_total[$__rate_interval]))`, "{{operation}}"}}},
				{title: "Decision latency on the nodes", description: "Protected pods only, all nodes together.", unit: "s", queries: []query{
					{`histogram_quantile(0.99, sum by (le) (rate(kubelet_guard_decision_duration_seconds_bucket[$__rate_interval])))`, "99 %"},
					{`histogram_quantile(0.5, sum by (le) (rate(kubelet_guard_decision_duration_seconds_bucket[$__rate_interval])))`, "50 %"},
				}},
			},
		},
		{
			title: "Control plane",
			graphs: []graph{
				{title: "Refused by the webhook", description: "By rule. In mode Audit these requests passed with a warning.", unit: "ops", queries: []query{{`sum by (rule, mode) (rate(guard_webhook_decisions_total{decision="Refused"}[$__rate_interval])) > 0`, "{{rule}} ({{mode}})"}}},
				{title: "Refused by policies", description: "The rules that the API server decides without the webhook.", unit: "ops", queries: []query{{`sum by (policy, enforcement_action) (rate(apiserver_validating_admission_policy_check_total{policy=~".+[.]kubelet-guard[.].+",enforcement_action=~"deny|warn"}[$__rate_interval])) > 0`, "{{policy}} ({{enforcement_action}})"}}},
				{title: "Reviews by decision", description: "Everything that reaches the webhook.", unit: "ops", queries: []query{{`sum by (decision) (rate(guard_webhook_decisions_total[$__rate_interval]))`, "{{decision}}"}}},
				{title: "Overrides and failures", description: "By rule, in five minutes.", unit: "short", queries: []query{
					{`sum by (rule) (increase(guard_webhook_decisions_total{decision="Overridden"}[5m])) > 0`, "overridden {{rule}}"},
					{`sum by (rule) (increase(guard_webhook_decisions_total{decision="Failed"}[5m])) > 0`, "failed {{rule}}"},
				}},
				{title: "Decision latency of the webhook", description: "99th percentile by rule. The API server gives up after 5 s.", unit: "s", queries: []query{{`histogram_quantile(0.99, sum by (le, rule) (rate(guard_webhook_decision_duration_seconds_bucket[$__rate_interval])))`, "{{rule}}"}}},
				{title: "Calls that the API server could not make", description: "Refused by failurePolicy Fail, or let through by Ignore.", unit: "ops", queries: []query{
					{`sum by (name) (rate(apiserver_admission_webhook_rejection_count{name=~".+[.]kubelet-guard[.]io",error_type="calling_webhook_error"}[$__rate_interval])) > 0`, "refused {{name}}"},
					{`sum by (name) (rate(apiserver_admission_webhook_fail_open_count{name=~".+[.]kubelet-guard[.]io"}[$__rate_interval])) > 0`, "passed {{name}}"},
				}},
				{title: "Cache age", description: "The oldest replica, by resource. GuardWebhookCacheTooOld fires after five minutes.", unit: "s", queries: []query{{`max by (resource) (guard_webhook_cache_age_seconds)`, "{{resource}}"}}},
				{title: "Certificate", description: "How long the one that is served is valid.", unit: "s", queries: []query{{`min(guard_webhook_certificate_not_after_timestamp_seconds) - time()`, "valid for"}}},
			},
		},
		{
			title: "Snapshots of etcd",
			graphs: []graph{
				{title: "Age of the newest snapshot", description: "By control plane host. EtcdBackupTooOld fires after three hours.", unit: "s", queries: []query{{`time() - (guard_etcd_snapshot_timestamp_seconds > 0)`, "{{instance}}"}}},
				{title: "Size of the newest snapshot", description: "By control plane host.", unit: "bytes", queries: []query{{`guard_etcd_snapshot_size_bytes`, "{{instance}}"}}},
				{title: "What is wrong with snapshots", description: "Damaged keys and resources that shrank are of the newest one. EtcdBackupDamaged and EtcdBackupShrank fire above 0.", unit: "short", queries: []query{
					{`guard_etcd_snapshot_damaged_keys > 0`, "damaged keys, {{instance}}"},
					{`guard_etcd_unreadable_snapshots > 0`, "unreadable snapshots, {{instance}}"},
					{`guard_etcd_snapshot_shrunk_resources > 0`, "resources that shrank, {{instance}}"},
				}},
				{title: "Snapshots", description: "By control plane host.", unit: "short", queries: []query{{`guard_etcd_snapshots`, "{{instance}}"}}},
				{title: "History", description: "How long a deleted object could be restored without a snapshot, at the moment of the newest one.", unit: "s", queries: []query{{`guard_etcd_snapshot_history_seconds`, "{{instance}}"}}},
			},
		},
	}
}

// dashboardJSON returns the dashboard as Grafana imports it.
func dashboardJSON() (string, error) {
	//lint:ignore SA1019 The schema that succeeds it needs Grafana 12, this one is read by all.
	builder := dashboard.NewDashboardBuilder("Kubelet Guard").
		Uid("kubelet-guard").
		Description("Both sides: what the kubelets keep, and what the control plane refuses.").
		Tags([]string{"kubernetes", "kubelet-guard"}).
		Readonly().
		Timezone(common.TimeZoneBrowser).
		Time("now-6h", "now").
		Refresh("1m").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Prometheus").Type("prometheus"))
	id := uint32(0)
	next := func() uint32 { id++; return id }
	for _, row := range rows() {
		builder.WithRow(dashboard.NewRowBuilder(row.title).Id(next()))
		for _, figure := range row.figures {
			builder.WithPanel(figure.panel().Id(next()))
		}
		for _, graph := range row.graphs {
			builder.WithPanel(graph.panel().Id(next()))
		}
	}
	built, err := builder.Build()
	if err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(built, "", "  ")
	return string(text) + "\n", err
}

func (f figure) panel() *stat.PanelBuilder {
	steps := []dashboard.Threshold{{Color: "green"}}
	if f.calm != nil {
		// A threshold starts at its value, at which calm is still well.
		steps = append(steps, dashboard.Threshold{Value: cog.ToPtr(*f.calm + 0.001), Color: "red"})
	}
	unit := f.unit
	if unit == "" {
		unit = "short"
	}
	return stat.NewPanelBuilder().Title(f.title).Description(f.description).
		Datasource(datasource).Span(statWidth).Height(statHeight).Unit(unit).Decimals(0).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})).
		Thresholds(dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps)).
		WithTarget(query{expr: f.expr}.target(0).Instant())
}

func (g graph) panel() *timeseries.PanelBuilder {
	panel := timeseries.NewPanelBuilder().Title(g.title).Description(g.description).
		Datasource(datasource).Span(graphWidth).Height(graphHeight).Unit(g.unit).Min(0).
		FillOpacity(10).ShowPoints(common.VisibilityModeAuto).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	for i, query := range g.queries {
		panel.WithTarget(query.target(i))
	}
	return panel
}

func (q query) target(i int) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().RefId(fmt.Sprintf("%c", 'A'+i)).Datasource(datasource).
		Expr(q.expr).LegendFormat(q.legend)
}
