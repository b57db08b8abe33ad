package rules

import (
	"fmt"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/deletionprotection"
	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
	"kubelet-guard.io/pkg/admission/rules/operationwindow"
	"kubelet-guard.io/pkg/admission/rules/poddeletion"
	"kubelet-guard.io/pkg/admission/rules/protection"
	"kubelet-guard.io/pkg/admission/rules/replicasprotection"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Cluster is what the rules read and write.
type Cluster struct {
	// Client reads from caches and writes.
	Client client.Client
	// Live reads from the API server.
	Live client.Reader
	// Core, Metadata and Definitions read from the API server, too.
	Core        kubernetes.Interface
	Metadata    metadata.Interface
	Definitions apiextensions.CustomResourceDefinitionInterface
	// Budgets and Nodes are indexes of caches.
	Budgets        *poddeletion.Index
	Nodes          *nodedeletion.Index
	ProtectedNodes nodedeletion.ProtectedNodes
}

// Options are the settings of the rules.
type Options struct {
	Modes admission.Modes
	// RecordLifetime is how long a PodDeletion record is kept.
	RecordLifetime time.Duration
	// DeletedNodeHold is how long pods of deleted nodes are kept.
	DeletedNodeHold time.Duration
	// WorkloadControllers are those that may scale past budgets, besides those of Kubernetes.
	WorkloadControllers map[string]string
	// Clock is that of this machine, ServerClock that of the API server.
	Clock, ServerClock clock.Clock
}

// Rules are all rules of the webhook, as the rows of the table use them.
type Rules struct {
	cascading, resources, definitions, evictions admission.Rule
	replicas, replicaSets, scales                admission.Rule
	windows                                      admission.Rule
	pods, records, budgetChanges                 admission.Rule
	nodes                                        admission.Rule
	protection                                   admission.Rule

	windowValidator admission.Validator[*guardv1alpha1.OperationWindow]
	policyValidator admission.Validator[*guardv1alpha1.NodeDeletionPolicy]
}

// New returns the rules of a cluster.
func New(c Cluster, o Options) (*Rules, error) {
	lookup := replicasprotection.Lookup{Definitions: c.Definitions}
	dependents := deletionprotection.Cluster{Metadata: c.Metadata, Core: c.Core}
	reservations := poddeletion.NewReservations(c.Budgets, c.Core.PolicyV1(), o.Clock)
	records, err := poddeletion.NewRecordRule(reservations, c.Core.CoreV1(),
		poddeletion.NewRecords(c.Client, c.Live, o.Clock), o.RecordLifetime, o.Clock)
	if err != nil {
		return nil, err
	}
	controllers, err := poddeletion.ParseControllers(o.WorkloadControllers)
	if err != nil {
		return nil, fmt.Errorf("--workload-controllers: %w", err)
	}
	lost := nodedeletion.NewLostNodes(c.Client, c.Nodes, c.Live, c.ProtectedNodes, o.Clock)
	cascading := deletionprotection.Cascading{Dependents: dependents, Scale: lookup}
	pods := poddeletion.NewRule(reservations, lost.Health, c.Live, controllers, o.DeletedNodeHold, o.Clock)
	ledgers := nodedeletion.NewLiveLedgers(c.Client, c.Live, c.Client)
	nodes := nodedeletion.NewRule(c.Client, c.Nodes, ledgers, o.Modes.Of(admission.NodeDeletion), o.ServerClock)
	return &Rules{
		cascading:   admission.Rule{Name: admission.CascadingDeletion, Review: cascading.Review},
		resources:   admission.Rule{Name: admission.ResourceDeletion, Review: deletionprotection.Resources{Scale: lookup}.Review},
		definitions: admission.Rule{Name: admission.CascadingDeletion, Review: deletionprotection.Definitions{Dependents: dependents}.Review},
		evictions:   admission.Rule{Name: admission.CascadingDeletion, Review: deletionprotection.Evictions{Metadata: c.Metadata}.Review},

		replicas:    admission.Rule{Name: admission.Replicas, Review: replicasprotection.Rule{Scale: lookup}.Review},
		replicaSets: admission.Rule{Name: admission.Replicas, Review: replicasprotection.ReplicaSets{Live: c.Live}.Review},
		scales:      admission.Rule{Name: admission.Replicas, Review: replicasprotection.Scales{Live: c.Live}.Review},

		windows: admission.Rule{Name: admission.OperationWindow, Review: operationwindow.NewRule(c.Client, c.Live, o.ServerClock).Review},

		pods:          admission.Rule{Name: admission.PodDeletion, Review: pods.Review},
		records:       admission.Rule{Name: admission.PodDeletionRecord, Review: records.Review},
		budgetChanges: admission.Rule{Name: admission.DisruptionBudget, Review: poddeletion.NewChanges(c.Budgets, c.Metadata).Review},

		nodes: admission.Rule{Name: admission.NodeDeletion, Review: nodes.Review},

		protection: admission.Rule{Name: admission.Protection, Review: protection.Rule{Metadata: c.Metadata, Cached: c.Client}.Review},

		windowValidator: operationwindow.NewValidator(c.Client),
		policyValidator: nodedeletion.NewValidator(c.Client),
	}, nil
}

// podDeletions are the rules about a DELETE of a pod. The record comes last: it has to be written
// exactly when the delete passes, also by override or in audit mode.
func (r *Rules) podDeletions() []admission.Rule { return []admission.Rule{r.pods, r.records} }
