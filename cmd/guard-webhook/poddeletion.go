package main

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/budget"
	"kubelet-guard.io/pkg/admission/coverage"
	"kubelet-guard.io/pkg/admission/deletion"
	"kubelet-guard.io/pkg/admission/nodes"
)

// newPodDeletionEntries makes the rules about the deletion of pods, and has the
// manager run the collector of records.
func newPodDeletionEntries(mgr ctrl.Manager, core kubernetes.Interface, known indexes, fleet *coverage.Cluster, o *options) ([]admission.Entry, error) {
	now := clock.RealClock{}
	reservations := budget.NewReservations(known.budgets, budget.NewBudgets(core.PolicyV1()), now)
	records, err := budget.NewRecordRule(reservations, budget.NewPodReader(core.CoreV1()),
		budget.NewRecords(mgr.GetClient(), mgr.GetAPIReader(), now), o.recordTTL, now)
	if err != nil {
		return nil, err
	}
	if err := budget.NewCollector(mgr.GetClient(), mgr.GetAPIReader(), now).SetupWithManager(mgr); err != nil {
		return nil, err
	}
	if err := mgr.Add(budget.NewTaintEviction(mgr.GetClient(), budget.NewEvictedPods(core.CoreV1()), now)); err != nil {
		return nil, err
	}
	metadataClient, err := metadata.NewForConfig(mgr.GetConfig())
	if err != nil {
		return nil, err
	}
	lost := nodes.NewLostNodes(nodes.CachedPolicies{Reader: mgr.GetClient()}, known.nodes,
		nodes.LiveNodes{Reader: mgr.GetAPIReader()}, fleet, now)
	controllers, err := budget.ParseControllers(o.workloadControllers)
	if err != nil {
		return nil, fmt.Errorf("--workload-controllers: %w", err)
	}
	deletions := []admission.Rule{
		budget.NewRule(reservations, lost, budget.NewDaemonSetReader(mgr.GetAPIReader()), controllers, o.deletedNodeHold, now),
		// The record last: it must be written exactly when the delete passes, also by
		// override or in audit mode.
		records,
	}
	changes := []admission.Rule{budget.NewChanges(known.budgets, budget.NewProtectedPods(metadataClient))}
	return []admission.Entry{
		{Path: "/validate/pod-deletion", FailurePolicy: admission.FailClosed, Rules: deletions},
		{Path: "/validate/daemon-pod-deletion", FailurePolicy: admission.FailOpen, Rules: deletions},
		{Path: "/validate/pod-eviction", FailurePolicy: admission.FailOpen, Rules: []admission.Rule{deletion.Evictions{Metadata: metadataClient}, records}},
		{Path: "/validate/disruption-budget", FailurePolicy: admission.FailClosed, Rules: changes},
		{Path: "/validate/pod-labels", FailurePolicy: admission.FailOpen, Rules: changes},
	}, nil
}
