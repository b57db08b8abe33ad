package main

import (
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	ctrl "sigs.k8s.io/controller-runtime"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/deletionprotection"
	"kubelet-guard.io/pkg/admission/rules/protection"
	"kubelet-guard.io/pkg/admission/rules/replicasprotection"
	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
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

// newEntries makes the rules and says which of them each path asks. The paths are
// those of manifests/control-plane/webhook/configuration.yaml.
func newEntries(mgr ctrl.Manager, core kubernetes.Interface, known indexes, fleet *fleetmetrics.Cluster, o *options) ([]admission.Entry, error) {
	metadataClient, err := metadata.NewForConfig(mgr.GetConfig())
	if err != nil {
		return nil, err
	}
	definitions, err := apiextensions.NewForConfig(mgr.GetConfig())
	if err != nil {
		return nil, err
	}

	lookup := replicasprotection.Lookup{Definitions: definitions.CustomResourceDefinitions()}
	dependents := deletionprotection.Cluster{Metadata: metadataClient, Core: core}
	cascading := deletionprotection.Cascading{Sources: deletionprotection.Sources{
		Pods: dependents, Claims: dependents, ClaimUsers: dependents, Endpoints: dependents, Instances: dependents, Scale: lookup,
	}}
	resources := deletionprotection.Resources{Scale: lookup}
	changes := replicasprotection.Rule{Scale: lookup}
	grants := protection.Rule{Pods: protection.Cluster{Metadata: metadataClient}, Namespaces: protection.CachedNamespaces{Reader: mgr.GetClient()}}

	podDeletion, err := newPodDeletionEntries(mgr, core, known, fleet, o)
	if err != nil {
		return nil, err
	}

	return append([]admission.Entry{
		{Path: "/validate/cascading-deletion", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{cascading, resources}},
		// Unlabelled, so that an outage lets it pass.
		{Path: "/validate/definition-deletion", FailurePolicy: admission.FailOpen, Rules: []admission.Rule{deletionprotection.Definitions{Instances: dependents}}},
		{Path: "/validate/replicas", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{changes}},
		{Path: "/validate/protection", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{grants}},
		// What the policies leave to the webhook because of the annotation.
		{Path: "/validate/override", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{cascading, resources, changes, grants}},
	}, podDeletion...), nil
}
