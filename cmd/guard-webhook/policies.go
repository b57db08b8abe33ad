package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
	"kubelet-guard.io/pkg/admission/rules/operationwindow"
	"kubelet-guard.io/pkg/admission/rules/replicasprotection"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// newPolicyEntries makes the rules that objects of our own configure, has the
// manager keep the status of these objects, and puts the validation of them onto the
// server. Windows and ledgers go by the given clock.
func newPolicyEntries(ctx context.Context, mgr ctrl.Manager, index *nodedeletion.Index, o *options, modes admission.Modes, now clock.Clock) ([]admission.Entry, error) {
	namespaces := &metav1.PartialObjectMetadata{}
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	// Every replica fills these caches before it is ready, not with its first review.
	for _, object := range []client.Object{
		&guardv1alpha1.OperationWindow{}, &guardv1alpha1.NodeDeletionPolicy{}, namespaces,
	} {
		if _, err := mgr.GetCache().GetInformer(ctx, object); err != nil {
			return nil, err
		}
	}
	windows := &operationwindow.StatusController{Client: mgr.GetClient(), Clock: now, Mode: modes.Of(admission.OperationWindow)}
	if err := windows.SetupWithManager(mgr); err != nil {
		return nil, err
	}
	mode := modes.Of(admission.NodeDeletion)
	ledgers := &nodedeletion.StatusController{Client: mgr.GetClient(), Clock: now, Mode: mode}
	if err := ledgers.SetupWithManager(mgr); err != nil {
		return nil, err
	}

	outages := &nodedeletion.OutageController{Client: mgr.GetClient(), Configuration: o.webhookConfiguration, Mode: mode}
	if err := outages.SetupWithManager(mgr); err != nil {
		return nil, err
	}

	policies := nodedeletion.CachedPolicies{Reader: mgr.GetClient()}
	server := mgr.GetWebhookServer()
	server.Register(operationwindow.ConfigurationPath, ctrlwebhook.WithValidator(mgr.GetScheme(), operationwindow.Configuration{Namespaces: mgr.GetClient()}))
	server.Register(nodedeletion.ConfigurationPath, ctrlwebhook.WithValidator(mgr.GetScheme(), nodedeletion.Configuration{Policies: policies}))

	workloads := operationwindow.LiveWorkloads{Reader: mgr.GetAPIReader()}
	operations := operationwindow.NewRule(operationwindow.CachedWindows{Reader: mgr.GetClient()}, workloads, now)
	withDeployment := replicasprotection.ReplicaSets{Workloads: workloads}
	scales := replicasprotection.Scales{Workloads: workloads}
	deletions := nodedeletion.NewRule(policies, index,
		nodedeletion.NewLiveLedgers(mgr.GetClient(), mgr.GetAPIReader(), mgr.GetClient()), mode, now)
	return []admission.Entry{
		{Path: "/validate/operation-window", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{withDeployment, operations}},
		{Path: "/validate/replicasets", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{withDeployment}},
		// Most of these have no label, so that an outage lets them pass.
		{Path: "/validate/replicasets-elsewhere", FailurePolicy: admission.FailOpen, Rules: []admission.Rule{scales}},
		// Labelled or not, in namespaces that chose it. An outage holds scale-downs alone.
		{Path: "/validate/scale-down", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{scales}},
		{Path: "/validate/scale-up", FailurePolicy: admission.FailOpen, Rules: []admission.Rule{scales}},
		// A deletion that cannot be judged is refused for labelled nodes, and for those of
		// pools whose policy says so.
		{Path: "/validate/node-deletion", FailurePolicy: admission.FailOpen, Rules: []admission.Rule{deletions}},
		{Path: "/validate/labelled-node-deletion", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{deletions}},
	}, nil
}
