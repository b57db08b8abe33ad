/*
Package rules is the table of the webhook's rules: which requests the API server sends to which
path, what judges them, and what becomes of them when they cannot be judged.

Each rule is a package below this one. Its name is that of its page in docs/control-plane, and the
first part of its paths. Its doc.go is its specification, which the page prints.
*/
package rules

import (
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"kubelet-guard.io/pkg/admission"
)

// pathPrefix is that of all paths.
const pathPrefix = "/validate/"

// Name is that of a rule's page in docs/control-plane, and without hyphens that of its package.
type Name string

// The rules of the webhook.
const (
	DeletionProtection Name = "deletion-protection"
	ReplicasProtection Name = "replicas-protection"
	OperationWindow    Name = "operation-window"
	PodDeletion        Name = "pod-deletion"
	NodeDeletion       Name = "node-deletion"
	Protection         Name = "protection"
	// Override has no package: it is in package admission.
	Override Name = "override"
)

// Package returns the name of the rule's package, "" for Override.
func (n Name) Package() string {
	if n == Override {
		return ""
	}
	return strings.ReplaceAll(string(n), "-", "")
}

// Row is a row of the table: one path, and what is served there.
type Row struct {
	Rule Name
	Path string
	// Objects are those of the requests.
	Objects string
	// FailurePolicy is what becomes of a request that cannot be judged, here and in the entries
	// of the webhook configuration with this path; Because is why.
	FailurePolicy admission.FailurePolicy
	Because       string

	// judges returns what judges the requests, one after the other. It is nil where validates is set.
	judges func(*Rules) []admission.Rule
	// validates returns what validates objects of the guard's own kinds.
	validates func(*Rules, *runtime.Scheme) http.Handler
}

// Table returns the rows, by rule.
func Table() []Row {
	return []Row{
		{
			Rule: DeletionProtection, Path: pathPrefix + "deletion-protection",
			Objects:       "DELETE of objects of any kind that are labelled `deletion-protection: cascading`",
			FailurePolicy: admission.FailClosed, Because: "the label requests protection",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.cascading, r.resources} },
		},
		{
			Rule: DeletionProtection, Path: pathPrefix + "deletion-protection/definitions",
			Objects:       "DELETE of CustomResourceDefinitions",
			FailurePolicy: admission.FailOpen, Because: "the definition itself has no label",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.definitions} },
		},
		{
			Rule: ReplicasProtection, Path: pathPrefix + "replicas-protection",
			Objects:       "UPDATE of custom kinds that are labelled `replicas-protection: confirm`",
			FailurePolicy: admission.FailClosed, Because: "the label requests protection",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.replicas} },
		},
		{
			Rule: ReplicasProtection, Path: pathPrefix + "replicas-protection/replicasets",
			Objects:       "UPDATE of ReplicaSets and their `/scale` in namespaces with `protect-pods`",
			FailurePolicy: admission.FailClosed, Because: "the namespace is labelled, and the deployment controller needs no `/scale`",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.replicaSets} },
		},
		{
			Rule: ReplicasProtection, Path: pathPrefix + "replicas-protection/replicasets-elsewhere",
			Objects:       "`/scale` of ReplicaSets in other namespaces",
			FailurePolicy: admission.FailOpen, Because: "most of them have no label",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.scales} },
		},
		{
			Rule: ReplicasProtection, Path: pathPrefix + "replicas-protection/scale-down",
			Objects:       "`/scale` to a lower number in namespaces with `scale-review: webhook`",
			FailurePolicy: admission.FailClosed, Because: "the label on the namespace accepts that an outage blocks scale-downs",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.scales} },
		},
		{
			Rule: ReplicasProtection, Path: pathPrefix + "replicas-protection/scale-up",
			Objects:       "`/scale` to a higher number in namespaces with `scale-review: webhook`",
			FailurePolicy: admission.FailOpen, Because: "autoscalers must be able to add pods during an outage",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.scales} },
		},
		{
			Rule: OperationWindow, Path: pathPrefix + "operation-window",
			Objects:       "UPDATE of Deployments, StatefulSets, DaemonSets, ReplicaSets and their `/scale` in namespaces with `operation-windows: enforced`",
			FailurePolicy: admission.FailClosed, Because: "the label on the namespace accepts that an outage blocks changes",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.replicaSets, r.windows} },
		},
		{
			Rule: OperationWindow, Path: pathPrefix + "operation-window/configuration",
			Objects:       "CREATE and UPDATE of OperationWindows",
			FailurePolicy: admission.FailOpen, Because: "the condition Valid reports a window that was not validated",
			validates: func(r *Rules, scheme *runtime.Scheme) http.Handler {
				return ctrlwebhook.WithValidator(scheme, r.windowValidator)
			},
		},
		{
			Rule: PodDeletion, Path: pathPrefix + "pod-deletion",
			Objects:       "DELETE of protected pods",
			FailurePolicy: admission.FailClosed, Because: "the label requests protection",
			judges: func(r *Rules) []admission.Rule { return r.podDeletions() },
		},
		{
			Rule: PodDeletion, Path: pathPrefix + "pod-deletion/daemon-sets",
			Objects:       "DELETE of protected pods by the DaemonSet controller",
			FailurePolicy: admission.FailOpen, Because: "an outage must not stop roll-outs",
			judges: func(r *Rules) []admission.Rule { return r.podDeletions() },
		},
		{
			Rule: PodDeletion, Path: pathPrefix + "pod-deletion/evictions",
			Objects:       "evictions in namespaces with `protect-pods`",
			FailurePolicy: admission.FailOpen, Because: "the pod may have no label, and the API server checks its budget",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.evictions, r.records} },
		},
		{
			Rule: PodDeletion, Path: pathPrefix + "pod-deletion/budgets",
			Objects:       "UPDATE and DELETE of PodDisruptionBudgets in namespaces with `protect-pods`",
			FailurePolicy: admission.FailClosed, Because: "the namespace is labelled, and a lost budget protects nothing",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.budgetChanges} },
		},
		{
			Rule: PodDeletion, Path: pathPrefix + "pod-deletion/labels",
			Objects:       "UPDATE of the labels of protected pods by people",
			FailurePolicy: admission.FailOpen, Because: "labels must be changeable during an outage",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.budgetChanges} },
		},
		{
			Rule: NodeDeletion, Path: pathPrefix + "node-deletion",
			Objects:       "DELETE of nodes without the label `deletion-protection`",
			FailurePolicy: admission.FailOpen, Because: "the node has no label; nodes of pools with `whenUnavailable: Hold` are in an entry of their own, which the webhook adds",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.nodes} },
		},
		{
			Rule: NodeDeletion, Path: pathPrefix + "node-deletion/labelled",
			Objects:       "DELETE of nodes with the label `deletion-protection`",
			FailurePolicy: admission.FailClosed, Because: "the label requests protection",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.nodes} },
		},
		{
			Rule: NodeDeletion, Path: pathPrefix + "node-deletion/configuration",
			Objects:       "CREATE and UPDATE of NodeDeletionPolicies",
			FailurePolicy: admission.FailOpen, Because: "the condition Valid reports a policy that was not validated",
			validates: func(r *Rules, scheme *runtime.Scheme) http.Handler {
				return ctrlwebhook.WithValidator(scheme, r.policyValidator)
			},
		},
		{
			Rule: Protection, Path: pathPrefix + "protection",
			Objects:       "UPDATE and DELETE of namespaces with `protect-pods`",
			FailurePolicy: admission.FailClosed, Because: "the label requests protection",
			judges: func(r *Rules) []admission.Rule { return []admission.Rule{r.protection} },
		},
		{
			Rule: Override, Path: pathPrefix + "override",
			Objects:       "what a policy would refuse, with the annotation `override`",
			FailurePolicy: admission.FailClosed, Because: "only the webhook can check that the override has not expired",
			judges: func(r *Rules) []admission.Rule {
				return []admission.Rule{r.cascading, r.resources, r.replicas, r.protection}
			},
		},
	}
}

// Handler returns what serves the path of the row. frame makes a handler of an entry with rules.
func (r Row) Handler(rules *Rules, scheme *runtime.Scheme, frame func(admission.Entry) (*admission.Handler, error)) (http.Handler, error) {
	if r.validates != nil {
		return r.validates(rules, scheme), nil
	}
	handler, err := frame(admission.Entry{Path: r.Path, Rules: r.judges(rules), FailurePolicy: r.FailurePolicy})
	if err != nil {
		return nil, err
	}
	return &ctrlwebhook.Webhook{Handler: handler}, nil
}
