package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
	"kubelet-guard.io/pkg/admission/rules/operationwindow"
	"kubelet-guard.io/pkg/admission/rules/poddeletion"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// cachedResources are those of which rules keep caches: the series of the cache age.
func cachedResources(o *options) []string {
	resources := []string{
		"poddisruptionbudgets.policy", "poddeletions.kubelet-guard.io",
		"namespaces", "nodes", "pods", "operationwindows.kubelet-guard.io", "nodedeletionpolicies.kubelet-guard.io",
		"validatingwebhookconfigurations.admissionregistration.k8s.io",
	}
	if o.certDir == "" {
		resources = append(resources, "secrets")
	}
	return resources
}

// fillCaches has every replica fill these caches before it is ready, not with its first review.
func fillCaches(ctx context.Context, mgr ctrl.Manager) error {
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	for _, object := range []client.Object{&guardv1alpha1.OperationWindow{}, &guardv1alpha1.NodeDeletionPolicy{}, namespaces} {
		if _, err := mgr.GetCache().GetInformer(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

// addControllers adds what the leader runs: it collects records, repeats deletions of taint
// eviction, and keeps the status of windows and policies and the entry for pools.
func addControllers(mgr ctrl.Manager, core kubernetes.Interface, o *options, modes admission.Modes, own, server clock.Clock) error {
	for _, controller := range []interface{ SetupWithManager(ctrl.Manager) error }{
		poddeletion.NewCollector(mgr.GetClient(), mgr.GetAPIReader(), own),
		&operationwindow.StatusController{Client: mgr.GetClient(), Clock: server, Mode: modes.Of(admission.OperationWindow)},
		&nodedeletion.StatusController{Client: mgr.GetClient(), Clock: server, Mode: modes.Of(admission.NodeDeletion)},
		&nodedeletion.OutageController{Client: mgr.GetClient(), Configuration: o.webhookConfiguration, Mode: modes.Of(admission.NodeDeletion)},
	} {
		if err := controller.SetupWithManager(mgr); err != nil {
			return err
		}
	}
	return mgr.Add(poddeletion.NewTaintEviction(mgr.GetClient(), core.CoreV1(), own))
}
