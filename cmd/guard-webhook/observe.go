package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
)

// observe registers the metrics that belong to no rule: when the certificate expires,
// and how many protected pods have a guarded kubelet and a budget.
func observe(fleet *fleetmetrics.Cluster, registry prometheus.Registerer, o *options) error {
	for _, collector := range []prometheus.Collector{fleetmetrics.NewCollector(fleet), admission.NewCertificateExpiry(o.port)} {
		if err := registry.Register(collector); err != nil {
			return err
		}
	}
	return nil
}
