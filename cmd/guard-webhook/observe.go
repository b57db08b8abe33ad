package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	ctrl "sigs.k8s.io/controller-runtime"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/coverage"
)

// observe registers the metrics that belong to no rule: when the certificate expires,
// and how many protected pods have a guarded kubelet.
func observe(mgr ctrl.Manager, core kubernetes.Interface, registry prometheus.Registerer, o *options) error {
	fleet, err := coverage.NewCluster(core, mgr.GetClient())
	if err != nil {
		return err
	}
	if err := mgr.Add(fleet); err != nil {
		return err
	}
	for _, collector := range []prometheus.Collector{coverage.NewCollector(fleet), admission.NewCertificateExpiry(o.port)} {
		if err := registry.Register(collector); err != nil {
			return err
		}
	}
	return nil
}
