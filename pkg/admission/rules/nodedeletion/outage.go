package nodedeletion

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Entries of the webhook configuration about deletions of nodes. Each node is in
// one of them.
const (
	// labelledEntry is for labelled nodes; an outage holds them.
	labelledEntry = "labelled.node-deletion.kubelet-guard.io"
	// otherEntry is for all others; an outage lets them go.
	otherEntry = "node-deletion.kubelet-guard.io"
	// PoolEntry is for those of otherEntry that an outage holds, because the
	// NodeDeletionPolicy of their pool requests it. It is in no manifest: the OutageController
	// makes it of the other two and removes it.
	PoolEntry = "pool.node-deletion.kubelet-guard.io"
	// poolCondition is the match condition that keeps PoolEntry and otherEntry apart.
	poolCondition = "pool"
)

// heldPools returns a CEL expression that holds for the nodes that an outage holds; empty
// when there are none. It does not hold for those that a user who may override them deletes
// with an override annotation: a webhook that is away cannot judge it.
func heldPools(policies []guardv1alpha1.NodeDeletionPolicy) string {
	var pools []string
	for i := range policies {
		spec := &policies[i].Spec
		// What cannot be understood selects nothing, as in the rule.
		if _, err := metav1.LabelSelectorAsSelector(&spec.NodeSelector); err != nil || spec.WhenUnavailable == guardv1alpha1.WhenUnavailableAllow {
			continue
		}
		pools = append(pools, selects(&spec.NodeSelector))
	}
	if len(pools) == 0 {
		return ""
	}
	// The cache has no order.
	slices.Sort(pools)
	return "(" + strings.Join(slices.Compact(pools), " || ") + ")" +
		" && !('" + guardv1alpha1.OverrideAnnotation + "' in oldObject.metadata.?annotations.orValue({})" +
		" && authorizer.group('').resource('nodes').name(oldObject.metadata.name).check('" + guardv1alpha1.OverrideVerb + "').allowed())"
}

// selects returns a CEL expression that holds for the nodes that the selector selects, which
// must be valid.
func selects(selector *metav1.LabelSelector) string {
	var terms []string
	in := func(key string, values ...string) string {
		return fmt.Sprintf("oldObject.metadata.?labels[%q].orValue('') in %s && oldObject.metadata.?labels[%q].hasValue()", key, list(values), key)
	}
	for _, key := range slices.Sorted(maps.Keys(selector.MatchLabels)) {
		terms = append(terms, in(key, selector.MatchLabels[key]))
	}
	for _, e := range selector.MatchExpressions {
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			terms = append(terms, in(e.Key, e.Values...))
		case metav1.LabelSelectorOpNotIn:
			terms = append(terms, "!("+in(e.Key, e.Values...)+")")
		case metav1.LabelSelectorOpExists:
			terms = append(terms, fmt.Sprintf("oldObject.metadata.?labels[%q].hasValue()", e.Key))
		case metav1.LabelSelectorOpDoesNotExist:
			terms = append(terms, fmt.Sprintf("!oldObject.metadata.?labels[%q].hasValue()", e.Key))
		}
	}
	if len(terms) == 0 {
		return "true"
	}
	return strings.Join(terms, " && ")
}

// list returns a list of strings in CEL.
func list(values []string) string {
	quoted := make([]string, len(values))
	for i, value := range values {
		quoted[i] = fmt.Sprintf("%q", value)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// WithPoolEntry sets PoolEntry in the configuration as the policies want it, and reports
// whether that changed anything. The entry is like the one for labelled nodes, also as to
// its failurePolicy, so that a change of that one is a change of both.
func WithPoolEntry(configuration *admissionregistrationv1.ValidatingWebhookConfiguration, policies []guardv1alpha1.NodeDeletionPolicy, mode admission.Mode) bool {
	before := configuration.DeepCopy()
	find := func(name string) int {
		return slices.IndexFunc(configuration.Webhooks, func(w admissionregistrationv1.ValidatingWebhook) bool { return w.Name == name })
	}
	labelled, other := find(labelledEntry), find(otherEntry)
	held := heldPools(policies)
	if labelled < 0 || other < 0 || mode == admission.Audit || *configuration.Webhooks[labelled].FailurePolicy != admissionregistrationv1.Fail {
		held = ""
	}
	if other >= 0 {
		setCondition(&configuration.Webhooks[other], negated(held))
	}
	at := find(PoolEntry)
	switch {
	case held == "" && at >= 0:
		configuration.Webhooks = slices.Delete(configuration.Webhooks, at, at+1)
	case held != "":
		entry := *configuration.Webhooks[labelled].DeepCopy()
		entry.Name = PoolEntry
		entry.ObjectSelector = configuration.Webhooks[other].ObjectSelector.DeepCopy()
		setCondition(&entry, held)
		if at < 0 {
			configuration.Webhooks = append(configuration.Webhooks, entry)
		} else {
			configuration.Webhooks[at] = entry
		}
	}
	return !equality.Semantic.DeepEqual(before.Webhooks, configuration.Webhooks)
}

// setCondition sets the pool condition of the entry, or removes it when it is empty.
func setCondition(entry *admissionregistrationv1.ValidatingWebhook, expression string) {
	entry.MatchConditions = slices.DeleteFunc(entry.MatchConditions, func(c admissionregistrationv1.MatchCondition) bool {
		return c.Name == poolCondition
	})
	if expression != "" {
		entry.MatchConditions = append(entry.MatchConditions, admissionregistrationv1.MatchCondition{Name: poolCondition, Expression: expression})
	}
}

func negated(expression string) string {
	if expression == "" {
		return ""
	}
	return "!(" + expression + ")"
}

// OutageController keeps PoolEntry in the webhook configuration, so that an outage of the
// webhook holds the nodes of the pools whose policies request it, and no others. One replica
// runs it.
type OutageController struct {
	Client client.Client
	// Configuration is the name of the ValidatingWebhookConfiguration.
	Configuration string
	// Mode of the rule. In audit mode an outage holds nothing.
	Mode admission.Mode
}

// SetupWithManager adds the controller to the manager, for its leader.
func (c *OutageController) SetupWithManager(mgr ctrl.Manager) error {
	toConfiguration := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: c.Configuration}}}
	})
	return ctrl.NewControllerManagedBy(mgr).
		Named("node-deletion-outage").
		Watches(&admissionregistrationv1.ValidatingWebhookConfiguration{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(
			predicate.NewPredicateFuncs(func(object client.Object) bool { return object.GetName() == c.Configuration }))).
		// Not its status, which every deletion writes.
		Watches(&guardv1alpha1.NodeDeletionPolicy{}, toConfiguration, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(c)
}

// Reconcile writes the configuration when its entries are not as the policies want them.
// Where there is none, the webhook is called in another way, and nothing is done.
func (c *OutageController) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{}
	if err := c.Client.Get(ctx, request.NamespacedName, configuration); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	policies, err := listPolicies(ctx, c.Client)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !WithPoolEntry(configuration, policies, c.Mode) {
		return reconcile.Result{}, nil
	}
	if err := c.Client.Update(ctx, configuration); apierrors.IsConflict(err) {
		return reconcile.Result{RequeueAfter: settle}, nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("write entry %s of ValidatingWebhookConfiguration %s: %w", PoolEntry, c.Configuration, err)
	}
	return reconcile.Result{}, nil
}
