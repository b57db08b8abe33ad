package deletionprotection

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	admissionv1 "k8s.io/api/admission/v1"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/replicasprotection"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Dependents finds what depends on an object. It is an interface for tests: fakes of clients
// apply neither limits nor selectors such as status.phase!=Failed.
type Dependents interface {
	// Pods finds the pods of a namespace that have not finished.
	Pods(ctx context.Context, namespace string) (admission.Found, error)
	// BoundClaims finds the bound persistent volume claims of a namespace.
	BoundClaims(ctx context.Context, namespace string) (admission.Found, error)
	// ClaimUsers finds the unfinished pods that mount a claim.
	ClaimUsers(ctx context.Context, namespace, claim string) (admission.Found, error)
	// ReadyEndpoints finds the ready endpoints of a service.
	ReadyEndpoints(ctx context.Context, namespace, service string) (admission.Found, error)
	// Instances finds the objects of a resource, in all namespaces: those that the label
	// selector selects, or all when it is empty.
	Instances(ctx context.Context, resource schema.GroupVersionResource, selector string) (admission.Found, error)
}

var (
	namespaces  = schema.GroupResource{Resource: "namespaces"}
	claims      = schema.GroupResource{Resource: "persistentvolumeclaims"}
	services    = schema.GroupResource{Resource: "services"}
	pods        = schema.GroupResource{Resource: "pods"}
	nodes       = schema.GroupResource{Resource: "nodes"}
	definitions = schema.GroupResource{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}
	daemonSets  = schema.GroupResource{Group: "apps", Resource: "daemonsets"}
	jobs        = schema.GroupResource{Group: "batch", Resource: "jobs"}
	cronJobs    = schema.GroupResource{Group: "batch", Resource: "cronjobs"}
)

// copies are the kinds that controllers make with the labels of their parents: nobody chose
// to label these, and the controllers have to remove what is out of date, the garbage
// collector and the namespace controller what is left over.
var copies = map[schema.GroupResource]bool{
	{Resource: "endpoints"}:                                 true,
	{Group: "discovery.k8s.io", Resource: "endpointslices"}: true,
	{Group: "apps", Resource: "controllerrevisions"}:        true,
}

// subject decodes the labelled object of a DELETE. The label is "" when neither rule
// applies.
func subject(request *admission.Request) (value string, resource schema.GroupVersionResource, err error) {
	if request.Operation != admissionv1.Delete || request.SubResource != "" || copies[schema.GroupVersionResource(request.Resource).GroupResource()] {
		return "", resource, nil
	}
	meta, err := request.OldMeta()
	if err != nil {
		return "", resource, err
	}
	return label(meta), schema.GroupVersionResource(request.Resource), nil
}

// Cascading is the rule about everything but workloads, and about "always" for
// those too.
type Cascading struct {
	Dependents Dependents
	Scale      replicasprotection.Lookup
}

// Review judges the request.
func (c Cascading) Review(ctx context.Context, request *admission.Request) admission.Decision {
	value, resource, err := subject(request)
	switch {
	case err != nil:
		return admission.Fail("%w", err)
	case value == guardv1alpha1.DeletionProtectionAlways:
		return decideAlways(request)
	case value != guardv1alpha1.DeletionProtectionCascading:
		return admission.Allow()
	}
	key := request.Key()
	switch resource.GroupResource() {
	case pods, nodes:
		// Nothing depends on a pod, and a node's deletion has a rule of its own.
		return admission.Allow()
	case namespaces:
		pods, err := c.Dependents.Pods(ctx, key.Name)
		if err != nil {
			return admission.Fail("find the pods of the namespace: %w", err)
		}
		claims, err := c.Dependents.BoundClaims(ctx, key.Name)
		if err != nil {
			return admission.Fail("find the persistent volume claims of the namespace: %w", err)
		}
		return decideNamespace(request, pods, claims)
	case claims:
		users, err := c.Dependents.ClaimUsers(ctx, key.Namespace, key.Name)
		if err != nil {
			return admission.Fail("find the pods that mount the claim: %w", err)
		}
		return decideClaim(request, users)
	case services:
		endpoints, err := c.Dependents.ReadyEndpoints(ctx, key.Namespace, key.Name)
		if err != nil {
			return admission.Fail("find the endpoints of the service: %w", err)
		}
		return decideService(request, endpoints)
	case definitions:
		return c.definition(ctx, request)
	}
	_, isWorkload, err := readWorkload(ctx, c.Scale, request, resource)
	switch {
	case err != nil:
		return admission.Fail("find out whether the kind has replicas: %w", err)
	case isWorkload:
		return admission.Allow()
	}
	return decideUnknown(request)
}

func (c Cascading) definition(ctx context.Context, request *admission.Request) admission.Decision {
	var definition apiextensionsv1.CustomResourceDefinition
	if err := request.DecodeOldObject(&definition); err != nil {
		return admission.Fail("%w", err)
	}
	resource, err := served(&definition)
	if err != nil {
		return admission.Fail("%w", err)
	}
	instances, err := c.Dependents.Instances(ctx, resource, "")
	switch {
	case apierrors.IsForbidden(err):
		return decideUnlisted(request, resource.GroupResource())
	case err != nil:
		return admission.Fail("find the custom resources of the definition: %w", err)
	}
	return decideDefinition(request, resource.GroupResource(), instances)
}

// served returns a resource through which the objects of the definition can be
// listed. One version serves the objects of all.
func served(definition *apiextensionsv1.CustomResourceDefinition) (schema.GroupVersionResource, error) {
	for _, version := range definition.Spec.Versions {
		if version.Served {
			return schema.GroupVersionResource{Group: definition.Spec.Group, Version: version.Name, Resource: definition.Spec.Names.Plural}, nil
		}
	}
	return schema.GroupVersionResource{}, fmt.Errorf("the definition serves no version, so that its custom resources cannot be listed; serve one, or take the label off")
}

// Definitions is Cascading for definitions without a label of their own: a definition takes
// its custom resources with it, and the API server deletes those without admission.
type Definitions struct{ Dependents Dependents }

// labelledInstances selects the custom resources that may not go like that.
const labelledInstances = guardv1alpha1.DeletionProtectionLabel + " in (" + guardv1alpha1.DeletionProtectionAlways + "," + guardv1alpha1.DeletionProtectionCascading + ")"

// Review judges the request.
func (d Definitions) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Operation != admissionv1.Delete || request.SubResource != "" || schema.GroupVersionResource(request.Resource).GroupResource() != definitions {
		return admission.Allow()
	}
	var definition apiextensionsv1.CustomResourceDefinition
	if err := request.DecodeOldObject(&definition); err != nil {
		return admission.Fail("%w", err)
	}
	if definition.DeletionTimestamp != nil {
		return admission.Allow()
	}
	resource, err := served(&definition)
	if err != nil {
		return admission.Fail("%w", err)
	}
	labelled, err := d.Dependents.Instances(ctx, resource, labelledInstances)
	switch {
	case apierrors.IsForbidden(err):
		return admission.Fail("the webhook may not list its custom resources, of which some may be labelled %s. %s", guardv1alpha1.DeletionProtectionLabel, letList(resource.GroupResource()))
	case err != nil:
		return admission.Fail("find the labelled custom resources of the definition: %w", err)
	}
	return decideLabelledInstances(request, resource.GroupResource(), labelled)
}

// Resources is the rule about workloads.
type Resources struct{ Scale replicasprotection.Lookup }

// Review judges the request.
func (r Resources) Review(ctx context.Context, request *admission.Request) admission.Decision {
	value, resource, err := subject(request)
	switch {
	case err != nil:
		return admission.Fail("%w", err)
	case value != guardv1alpha1.DeletionProtectionCascading:
		return admission.Allow()
	}
	w, isWorkload, err := readWorkload(ctx, r.Scale, request, resource)
	switch {
	case err != nil:
		return admission.Fail("find out whether the kind has replicas: %w", err)
	case !isWorkload:
		return admission.Allow()
	}
	return decideWorkload(request, w)
}

// readWorkload reads what the rule needs of the old object, false for a kind that
// runs no pods by itself.
func readWorkload(ctx context.Context, lookup replicasprotection.Lookup, request *admission.Request, resource schema.GroupVersionResource) (workload, bool, error) {
	switch resource.GroupResource() {
	case daemonSets:
		var set appsv1.DaemonSet
		if err := request.DecodeOldObject(&set); err != nil {
			return workload{}, false, err
		}
		return workload{
			Running:  int64(set.Status.CurrentNumberScheduled) + int64(set.Status.NumberMisscheduled),
			Observed: set.Status.ObservedGeneration >= set.Generation,
			Stop: fmt.Sprintf(`Give it a node selector that no node has: kubectl patch %s%s -p '{"spec":{"template":{"spec":{"nodeSelector":{"kubelet-guard.io/none":"true"}}}}}'`,
				request.TargetArgument(), request.NamespaceFlag()),
		}, true, nil
	case jobs:
		var job batchv1.Job
		if err := request.DecodeOldObject(&job); err != nil {
			return workload{}, false, err
		}
		return workload{Running: int64(job.Status.Active), Observed: true, Stop: suspend("Suspend it", request)}, true, nil
	case cronJobs:
		var cronJob batchv1.CronJob
		if err := request.DecodeOldObject(&cronJob); err != nil {
			return workload{}, false, err
		}
		return workload{Running: int64(len(cronJob.Status.Active)), Observed: true, Stop: suspend("Suspend it, and let its jobs end", request)}, true, nil
	}
	paths, found, err := lookup.Paths(ctx, resource)
	if err != nil || !found {
		return workload{}, false, err
	}
	var object unstructured.Unstructured
	if err := request.DecodeOldObject(&object); err != nil {
		return workload{}, false, err
	}
	w := workload{Observed: observed(&object, replicasprotection.IsBuiltIn(resource.GroupResource()))}
	if w.Desired, err = paths.Desired(object.Object); err != nil {
		return workload{}, false, err
	}
	if w.Running, err = paths.Observed(object.Object); err != nil {
		return workload{}, false, err
	}
	return w, true, nil
}

func suspend(sentence string, request *admission.Request) string {
	return fmt.Sprintf(`%s: kubectl patch %s%s -p '{"spec":{"suspend":true}}'`, sentence, request.TargetArgument(), request.NamespaceFlag())
}

// observed reports whether the status is not older than the spec. A custom kind that
// does not report it counts as observed.
func observed(object *unstructured.Unstructured, required bool) bool {
	seen, found, err := unstructured.NestedInt64(object.Object, "status", "observedGeneration")
	if err != nil || !found {
		return !required || object.GetGeneration() == 0
	}
	return seen >= object.GetGeneration()
}
