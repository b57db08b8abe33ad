package main

import (
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"

	"kubelet-guard.io/pkg/dataprotection/snapshots"
)

// etcdAdvice is for guard-etcd what advice is for the kubelet.
var etcdAdvice = map[string]string{
	snapshots.CountMetric:       "none.",
	snapshots.UnreadableMetric:  "EtcdBackupDamaged. They are neither restored nor removed by `--keep`.",
	snapshots.TimestampMetric:   "EtcdBackupTooOld.",
	snapshots.SizeMetric:        "none.",
	snapshots.DamagedKeysMetric: "EtcdBackupDamaged. The manifest of the snapshot names them.",
	snapshots.ShrunkMetric:      "EtcdBackupShrank. `guard-etcd save` prints them. Resources that come and go, such as pods and events, do not count.",
	snapshots.HistoryMetric: "EtcdHistoryShort. To about ten seconds, at the moment of the snapshot. " +
		"There is no series when no lease of the control plane dates the history.",
}

// etcdMetrics returns the metrics of guard-etcd save, sorted by name, as it writes them with a
// snapshot.
func etcdMetrics() ([]*dto.MetricFamily, error) {
	now := time.Unix(0, 0)
	snapshot := &snapshots.Saved{Manifest: &snapshots.Manifest{Saved: now, HistorySince: &now}}
	families, err := snapshots.NewMetrics([]*snapshots.Saved{snapshot}, 0).Gather()
	if err != nil {
		return nil, err
	}
	return families, complete(families, etcdAdvice, "etcdAdvice in build/guard-docs/etcd.go")
}

// writeEtcdMetrics writes the part of guard-etcd in docs/metrics.md.
func writeEtcdMetrics(page *strings.Builder) error {
	families, err := etcdMetrics()
	if err != nil {
		return err
	}
	page.WriteString(`
# Metrics of guard-etcd

` + "`guard-etcd save --metrics-file`" + ` writes these for the textfile collector of Prometheus'
node exporter: the state of the folder of snapshots after the save. All are without labels.
[data-protection.md](data-protection.md#every-hour) says how they are collected.
`)
	for _, family := range families {
		writeMetric(page, family, "", etcdAdvice[family.GetName()], "runbooks")
	}
	return nil
}
