package main

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/deletionprotection"
	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
	"kubelet-guard.io/pkg/admission/rules/poddeletion"
	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
)

// newPodDeletionEntries makes the rules about the deletion of pods, and has the
// manager run the collector of records.
func newPodDeletionEntries(mgr ctrl.Manager, core kubernetes.Interface, known indexes, fleet *fleetmetrics.Cluster, o *options) ([]admission.Entry, error) {
	now := clock.RealClock{}
	reservations := poddeletion.NewReservations(known.budgets, poddeletion.NewBudgets(core.PolicyV1()), now)
	records, err := poddeletion.NewRecordRule(reservations, poddeletion.NewPodReader(core.CoreV1()),
		poddeletion.NewRecords(mgr.GetClient(), mgr.GetAPIReader(), now), o.recordTTL, now)
	if err != nil {
		return nil, err
	}
	if err := poddeletion.NewCollector(mgr.GetClient(), mgr.GetAPIReader(), now).SetupWithManager(mgr); err != nil {
		return nil, err
	}
	if err := mgr.Add(poddeletion.NewTaintEviction(mgr.GetClient(), poddeletion.NewEvictedPods(core.CoreV1()), now)); err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(mgr.GetConfig())
	if err != nil {
		return nil, err
	}
	lost := nodedeletion.NewLostNodes(nodedeletion.CachedPolicies{Reader: mgr.GetClient()}, known.nodes,
		nodedeletion.LiveNodes{Reader: mgr.GetAPIReader()}, fleet, now)
	controllers, err := poddeletion.ParseControllers(o.workloadControllers)
	if err != nil {
		return nil, fmt.Errorf("--workload-controllers: %w", err)
	}
	deletions := []admission.Rule{
		poddeletion.NewRule(reservations, lost, poddeletion.NewDaemonSetReader(mgr.GetAPIReader()), controllers, o.deletedNodeHold, now),
		// The record last: it must be written exactly when the delete passes, also by
		// override or in audit mode.
		records,
	}
	changes := []admission.Rule{poddeletion.NewChanges(known.budgets, poddeletion.NewProtectedPods(metadataClient))}
	return []admission.Entry{
		{Path: "/validate/pod-deletion", FailurePolicy: admission.FailClosed, Rules: deletions},
		{Path: "/validate/daemon-pod-deletion", FailurePolicy: admission.FailOpen, Rules: deletions},
		{Path: "/validate/pod-eviction", FailurePolicy: admission.FailOpen, Rules: []admission.Rule{deletionprotection.Evictions{Metadata: metadataClient}, records}},
		{Path: "/validate/disruption-budget", FailurePolicy: admission.FailClosed, Rules: changes},
		{Path: "/validate/pod-labels", FailurePolicy: admission.FailOpen, Rules: changes},
	}, nil
}
