package operationwindow

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// resyncPeriod is when a window whose state does not change within the Horizon is
// reconciled again.
const resyncPeriod = 24 * time.Hour

// Reasons of the conditions.
const (
	reasonValid                = "Valid"
	reasonInvalid              = "Invalid"
	reasonEnforced             = "Enforced"
	reasonAuditMode            = "AuditMode"
	reasonNamespaceNotEnforced = "NamespaceNotEnforced"
	reasonSystemNamespace      = "SystemNamespace"
)

// Status returns the status of the window at the time, given the labels of its
// namespace and the mode of the rule.
func Status(window *guardv1alpha1.OperationWindow, namespace map[string]string, mode admission.Mode, now time.Time) guardv1alpha1.OperationWindowStatus {
	status := *window.Status.DeepCopy()
	status.ObservedGeneration = window.Generation
	status.State, status.Until = guardv1alpha1.OperationWindowClosed, nil

	read := Read(window)
	valid := metav1.Condition{Type: guardv1alpha1.OperationWindowValid, Status: metav1.ConditionTrue, Reason: reasonValid, Message: "The window is understood"}
	if read.problem != nil {
		valid.Status, valid.Reason = metav1.ConditionFalse, reasonInvalid
		valid.Message = fmt.Sprintf("The window counts as closed: %v", read.problem)
	} else {
		if read.open(now) {
			status.State = guardv1alpha1.OperationWindowOpen
		}
		if until, ok := read.schedule.NextChange(now); ok {
			at := metav1.NewTime(until.UTC())
			status.Until = &at
		}
	}
	effective := metav1.Condition{Type: guardv1alpha1.OperationWindowEffective, Status: metav1.ConditionTrue, Reason: reasonEnforced, Message: "Changes are held to the window"}
	switch {
	case window.Namespace == guardv1alpha1.SystemNamespace:
		effective.Status, effective.Reason = metav1.ConditionFalse, reasonSystemNamespace
		effective.Message = fmt.Sprintf("Changes in the namespace %s are never held to windows", window.Namespace)
	case namespace[guardv1alpha1.OperationWindowsLabel] != guardv1alpha1.OperationWindowsEnforced:
		effective.Status, effective.Reason = metav1.ConditionFalse, reasonNamespaceNotEnforced
		effective.Message = notEnforced(window.Namespace)
	case mode == admission.Audit:
		effective.Status, effective.Reason = metav1.ConditionFalse, reasonAuditMode
		effective.Message = "The rule is in audit mode: changes outside the window get a warning and pass"
	}
	for _, condition := range []metav1.Condition{valid, effective} {
		condition.ObservedGeneration = window.Generation
		condition.LastTransitionTime = metav1.NewTime(now)
		meta.SetStatusCondition(&status.Conditions, condition)
	}
	return status
}

// notEnforced returns why a window has no effect, with the command that gives it one.
func notEnforced(namespace string) string {
	return fmt.Sprintf("Nothing is held to the window, because its namespace is not labelled: kubectl label namespace %s %s=%s",
		namespace, guardv1alpha1.OperationWindowsLabel, guardv1alpha1.OperationWindowsEnforced)
}

// StatusController keeps the status of all OperationWindows. One replica runs it.
type StatusController struct {
	Client client.Client
	Clock  clock.PassiveClock
	// Mode of the rule.
	Mode admission.Mode
}

// SetupWithManager adds the controller to the manager, for its leader.
func (c *StatusController) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("operation-window-status").
		For(&guardv1alpha1.OperationWindow{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesMetadata(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(c.windowsOf), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		Complete(c)
}

// windowsOf returns requests for all windows of a namespace.
func (c *StatusController) windowsOf(ctx context.Context, namespace client.Object) []reconcile.Request {
	list := &guardv1alpha1.OperationWindowList{}
	if err := c.Client.List(ctx, list, client.InNamespace(namespace.GetName())); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Failed to list the operation windows", "namespace", namespace.GetName())
		return nil
	}
	requests := make([]reconcile.Request, 0, len(list.Items))
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return requests
}

// Reconcile writes the status of one window, and comes back when it changes.
func (c *StatusController) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	window := &guardv1alpha1.OperationWindow{}
	if err := c.Client.Get(ctx, request.NamespacedName, window); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	namespace, err := namespaceMeta(ctx, c.Client, window.Namespace)
	if err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	now := c.Clock.Now()
	before := window.DeepCopy()
	window.Status = Status(window, namespace.Labels, c.Mode, now)
	if !equality.Semantic.DeepEqual(before.Status, window.Status) {
		if err := c.Client.Status().Patch(ctx, window, client.MergeFrom(before)); err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	wait := resyncPeriod
	if until := window.Status.Until; until != nil {
		wait = min(wait, max(until.Sub(now), time.Second))
	}
	return reconcile.Result{RequeueAfter: wait}, nil
}

func namespaceMeta(ctx context.Context, reader client.Reader, name string) (*metav1.PartialObjectMetadata, error) {
	return admission.Metadata(ctx, reader, corev1.SchemeGroupVersion.WithKind("Namespace"), client.ObjectKey{Name: name})
}
