package main

import (
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	ctrl "sigs.k8s.io/controller-runtime"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/coverage"
	"kubelet-guard.io/pkg/admission/deletion"
	"kubelet-guard.io/pkg/admission/grant"
	"kubelet-guard.io/pkg/admission/replicas"
	"kubelet-guard.io/pkg/admission/scale"
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
func newEntries(mgr ctrl.Manager, core kubernetes.Interface, known indexes, fleet *coverage.Cluster, o *options) ([]admission.Entry, error) {
	metadataClient, err := metadata.NewForConfig(mgr.GetConfig())
	if err != nil {
		return nil, err
	}
	definitions, err := apiextensions.NewForConfig(mgr.GetConfig())
	if err != nil {
		return nil, err
	}

	lookup := scale.Lookup{Definitions: definitions.CustomResourceDefinitions()}
	dependents := deletion.Cluster{Metadata: metadataClient, Core: core}
	cascading := deletion.Cascading{Sources: deletion.Sources{
		Pods: dependents, Claims: dependents, ClaimUsers: dependents, Endpoints: dependents, Instances: dependents, Scale: lookup,
	}}
	resources := deletion.Resources{Scale: lookup}
	changes := replicas.Rule{Scale: lookup}
	protection := grant.Rule{Pods: grant.Cluster{Metadata: metadataClient}, Namespaces: grant.CachedNamespaces{Reader: mgr.GetClient()}}

	podDeletion, err := newPodDeletionEntries(mgr, core, known, fleet, o)
	if err != nil {
		return nil, err
	}

	return append([]admission.Entry{
		{Path: "/validate/cascading-deletion", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{cascading, resources}},
		// Unlabelled, so that an outage lets it pass.
		{Path: "/validate/definition-deletion", FailurePolicy: admission.FailOpen, Rules: []admission.Rule{deletion.Definitions{Instances: dependents}}},
		{Path: "/validate/replicas", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{changes}},
		{Path: "/validate/protection", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{protection}},
		// What the policies leave to the webhook because of the annotation.
		{Path: "/validate/override", FailurePolicy: admission.FailClosed, Rules: []admission.Rule{cascading, resources, changes, protection}},
	}, podDeletion...), nil
}
