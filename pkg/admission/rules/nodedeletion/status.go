package nodedeletion

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// settle is how long the controller waits after an event, so that a series of
// deletions is followed by few writes: each competes with the charges.
const settle = time.Second

// Status returns the status of the policy at the time. others are all policies,
// nodes those of its pool, mode that of the rule.
func Status(policy *guardv1alpha1.NodeDeletionPolicy, others []guardv1alpha1.NodeDeletionPolicy, nodes []Node, mode admission.Mode, now time.Time) guardv1alpha1.NodeDeletionPolicyStatus {
	after := policy.DeepCopy()
	usage := Measure(policy, nodes, now)
	after.Status.Deletions = within(policy.Status.Deletions, usage.Period+pruneMargin, now)
	count(after, mode, now)
	status := after.Status
	status.ObservedGeneration = policy.Generation
	status.Nodes, status.ReadyNodes = int32(usage.Pool.Nodes), int32(usage.Pool.Ready)
	status.DeletionsAllowed = int32(usage.Allowed())

	valid := metav1.Condition{Type: guardv1alpha1.NodeDeletionPolicyValid, Status: metav1.ConditionTrue, Reason: "Valid", Message: "The policy is understood"}
	if errs := ValidateNodeDeletionPolicy(policy, nil); len(errs) > 0 {
		valid.Status, valid.Reason = metav1.ConditionFalse, "Invalid"
		valid.Message = fmt.Sprintf("No node of the pool may be deleted: %v", errs.ToAggregate())
		status.DeletionsAllowed = 0
	} else if errs := ValidateNodeDeletionPolicy(policy, others); len(errs) > 0 {
		valid.Status, valid.Reason = metav1.ConditionFalse, "SameSelector"
		valid.Message = fmt.Sprintf("Both policies count: %v", errs.ToAggregate())
	}
	valid.ObservedGeneration = policy.Generation
	valid.LastTransitionTime = metav1.NewTime(now)
	meta.SetStatusCondition(&status.Conditions, valid)
	return status
}

// StatusController keeps the status of all NodeDeletionPolicies, takes deletions that
// count no longer out of their ledgers, and corrects those that were written with a time
// ahead. One replica runs it.
type StatusController struct {
	Client client.Client
	Clock  clock.PassiveClock
	// Mode of the rule.
	Mode admission.Mode
}

// SetupWithManager adds the controller to the manager, for its leader.
func (c *StatusController) SetupWithManager(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("node-deletion-policy-status").
		Watches(&guardv1alpha1.NodeDeletionPolicy{}, later(func(_ context.Context, policy client.Object) []string {
			return []string{policy.GetName()}
		})).
		Watches(&corev1.Node{}, later(c.policies), builder.WithPredicates(predicate.Funcs{UpdateFunc: counts})).
		Complete(c)
}

// counts reports whether a change of a node is one that policies see.
func counts(change event.UpdateEvent) bool {
	before, wasNode := change.ObjectOld.(*corev1.Node)
	after, isNode := change.ObjectNew.(*corev1.Node)
	if !wasNode || !isNode {
		return true
	}
	return !same(NodeOf(before), NodeOf(after))
}

// policies returns the names of all policies: a node may have left a pool.
func (c *StatusController) policies(ctx context.Context, _ client.Object) []string {
	policies, err := listPolicies(ctx, c.Client)
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Failed to list the node deletion policies")
		return nil
	}
	names := make([]string, len(policies))
	for i := range policies {
		names[i] = policies[i].Name
	}
	return names
}

// later returns a handler that has the policies reconciled after a while.
func later(policies func(context.Context, client.Object) []string) handler.EventHandler {
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	add := func(ctx context.Context, object client.Object, q queue) {
		for _, name := range policies(ctx, object) {
			q.AddAfter(reconcile.Request{NamespacedName: client.ObjectKey{Name: name}}, settle)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { add(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) { add(ctx, e.ObjectNew, q) },
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q queue) { add(ctx, e.Object, q) },
	}
}

// Reconcile writes the status of one policy, and comes back when a deletion counts
// no longer, or after a conflict with a charge.
func (c *StatusController) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	policy := &guardv1alpha1.NodeDeletionPolicy{}
	if err := c.Client.Get(ctx, request.NamespacedName, policy); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	others, err := listPolicies(ctx, c.Client)
	if err != nil {
		return reconcile.Result{}, err
	}
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.NodeSelector)
	if err != nil {
		selector = labels.Nothing()
	}
	pool := &corev1.NodeList{}
	if err := c.Client.List(ctx, pool, client.MatchingLabelsSelector{Selector: selector}, client.UnsafeDisableDeepCopy); err != nil {
		return reconcile.Result{}, err
	}
	nodes := make([]Node, len(pool.Items))
	for i := range pool.Items {
		nodes[i] = NodeOf(&pool.Items[i])
	}
	now := c.Clock.Now()
	before := policy.DeepCopy()
	policy.Status = Status(policy, others, nodes, c.Mode, now)
	if !equality.Semantic.DeepEqual(before.Status, policy.Status) {
		if err := c.Client.Status().Update(ctx, policy); apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: settle}, nil
		} else if err != nil {
			return reconcile.Result{}, client.IgnoreNotFound(err)
		}
	}
	if next := nextChange(policy, now); !next.IsZero() {
		return reconcile.Result{RequeueAfter: max(next.Sub(now), settle)}, nil
	}
	return reconcile.Result{}, nil
}

// nextChange returns when time alone changes the status: when a deletion counts no longer,
// or leaves the ledger. It is zero when the ledger is empty.
func nextChange(policy *guardv1alpha1.NodeDeletionPolicy, now time.Time) time.Time {
	var next time.Time
	for _, deletion := range policy.Status.Deletions {
		at := deletion.Time.Add(periodOf(&policy.Spec))
		if !at.After(now) {
			at = at.Add(pruneMargin)
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}
