package main

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	toolscache "k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
	"kubelet-guard.io/pkg/admission/rules/poddeletion"
)

// indexes find what rules look up for each review.
type indexes struct {
	budgets *poddeletion.Index
	nodes   *nodedeletion.Index
}

// newIndexes returns indexes that the manager fills. A replica is not ready before it has.
func newIndexes(ctx context.Context, mgr ctrl.Manager) (indexes, error) {
	all := indexes{budgets: poddeletion.NewIndex(), nodes: nodedeletion.NewIndex()}
	for _, index := range []struct {
		name    string
		object  client.Object
		handler toolscache.ResourceEventHandler
		synced  *func() bool
		filled  func() error
	}{
		{"budgets", &policyv1.PodDisruptionBudget{}, all.budgets, &all.budgets.HasSynced, all.budgets.Filled},
		{"nodes", &corev1.Node{}, all.nodes, &all.nodes.HasSynced, all.nodes.Filled},
	} {
		informer, err := mgr.GetCache().GetInformer(ctx, index.object)
		if err != nil {
			return indexes{}, err
		}
		registration, err := informer.AddEventHandler(index.handler)
		if err != nil {
			return indexes{}, fmt.Errorf("follow %s: %w", index.name, err)
		}
		*index.synced = registration.HasSynced
		if err := mgr.AddReadyzCheck(index.name, func(*http.Request) error { return index.filled() }); err != nil {
			return indexes{}, err
		}
	}
	return all, nil
}
