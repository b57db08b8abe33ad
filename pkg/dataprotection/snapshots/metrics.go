package snapshots

import (
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of a folder of snapshots, for the textfile collector of Prometheus' node exporter: a
// program that runs once an hour has no port to read them from.
const (
	CountMetric       = "guard_etcd_snapshots"
	UnreadableMetric  = "guard_etcd_unreadable_snapshots"
	TimestampMetric   = "guard_etcd_snapshot_timestamp_seconds"
	SizeMetric        = "guard_etcd_snapshot_size_bytes"
	DamagedKeysMetric = "guard_etcd_snapshot_damaged_keys"
	ShrunkMetric      = "guard_etcd_snapshot_shrunk_resources"
	HistoryMetric     = "guard_etcd_snapshot_history_seconds"
)

// MetricsSuffix is that of the files that the node exporter reads.
const MetricsSuffix = ".prom"

// NewMetrics returns the metrics of snapshots, the oldest first, as List returns them, and of a
// number of snapshots without a readable manifest. Without a snapshot its time is 0, so that the
// folder counts as too old.
func NewMetrics(list []*Saved, unreadable int) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	add := func(name, help string, value float64) {
		gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		gauge.Set(value)
		registry.MustRegister(gauge) // the names are different and valid
	}
	add(CountMetric, "Number of snapshots of etcd in the folder.", float64(len(list)))
	add(UnreadableMetric, "Number of folders of snapshots without a readable manifest.", float64(unreadable))
	if len(list) == 0 {
		add(TimestampMetric, timestampHelp, 0)
		return registry
	}
	newest := list[len(list)-1]
	add(TimestampMetric, timestampHelp, float64(newest.Manifest.Saved.Unix()))
	add(SizeMetric, "Size of the newest snapshot in bytes.", float64(newest.Size))
	add(DamagedKeysMetric, "Number of keys in the newest snapshot that are damaged or cannot be decrypted.", float64(len(newest.Problems)))
	add(ShrunkMetric, "Number of resources of which the newest snapshot has over 20 % and at least 10 objects less than an older one.", float64(len(Shrunk(list))))
	if newest.HistorySince != nil {
		add(HistoryMetric, "How far the history in the newest snapshot reaches back, in seconds.", newest.Manifest.Saved.Sub(*newest.HistorySince).Seconds())
	}
	return registry
}

const timestampHelp = "When the newest snapshot was saved, in seconds since the epoch. 0: there is none."

// WriteMetrics writes the metrics of the snapshots in a folder to a file, which is complete or as
// it was before.
func WriteMetrics(file, dir string) error {
	list, unreadable, err := read(dir)
	if err != nil {
		return err
	}
	return prometheus.WriteToTextfile(filepath.Clean(file), NewMetrics(list, len(unreadable)))
}
