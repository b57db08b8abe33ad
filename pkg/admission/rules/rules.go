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
	Budgets *poddeletion.Index
	Nodes   *nodedeletion.Index
	// ProtectedNodes knows which nodes protected pods are bound to.
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
	cascading   deletionprotection.Cascading
	resources   deletionprotection.Resources
	definitions deletionprotection.Definitions
	evictions   deletionprotection.Evictions

	replicas    replicasprotection.Rule
	replicaSets replicasprotection.ReplicaSets
	scales      replicasprotection.Scales

	windows             *operationwindow.Rule
	windowConfiguration operationwindow.Configuration

	pods          *poddeletion.Rule
	records       *poddeletion.RecordRule
	budgetChanges *poddeletion.Changes

	nodes               *nodedeletion.Rule
	policyConfiguration nodedeletion.Configuration

	protection protection.Rule
}

// New returns the rules of a cluster.
func New(c Cluster, o Options) (*Rules, error) {
	lookup := replicasprotection.Lookup{Definitions: c.Definitions}
	dependents := deletionprotection.Cluster{Metadata: c.Metadata, Core: c.Core}
	reservations := poddeletion.NewReservations(c.Budgets, poddeletion.NewBudgets(c.Core.PolicyV1()), o.Clock)
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
	return &Rules{
		cascading:   deletionprotection.Cascading{Dependents: dependents, Scale: lookup},
		resources:   deletionprotection.Resources{Scale: lookup},
		definitions: deletionprotection.Definitions{Dependents: dependents},
		evictions:   deletionprotection.Evictions{Metadata: c.Metadata},

		replicas:    replicasprotection.Rule{Scale: lookup},
		replicaSets: replicasprotection.ReplicaSets{Live: c.Live},
		scales:      replicasprotection.Scales{Live: c.Live},

		windows:             operationwindow.NewRule(c.Client, c.Live, o.ServerClock),
		windowConfiguration: operationwindow.Configuration{Namespaces: c.Client},

		pods:          poddeletion.NewRule(reservations, lost, c.Live, controllers, o.DeletedNodeHold, o.Clock),
		records:       records,
		budgetChanges: poddeletion.NewChanges(c.Budgets, poddeletion.NewProtectedPods(c.Metadata)),

		nodes: nodedeletion.NewRule(c.Client, c.Nodes, nodedeletion.NewLiveLedgers(c.Client, c.Live, c.Client),
			o.Modes.Of(admission.NodeDeletion), o.ServerClock),
		policyConfiguration: nodedeletion.Configuration{Policies: c.Client},

		protection: protection.Rule{Pods: protection.Cluster{Metadata: c.Metadata}, Cached: c.Client},
	}, nil
}

// podDeletions are the rules about a DELETE of a pod. The record comes last: it has to be written
// exactly when the delete passes, also by override or in audit mode.
func (r *Rules) podDeletions() []admission.Rule { return []admission.Rule{r.pods, r.records} }
