package deletionprotection

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/replicasprotection"
)

// fixedSources find the same for every object.
type fixedSources struct {
	pods, claims, users, endpoints, instances admission.Found
	err                                       error
	paths                                     *replicasprotection.Paths
	reads                                     []string
}

func (f *fixedSources) answer(found admission.Found, question ...string) (admission.Found, error) {
	f.reads = append(f.reads, strings.Join(question, " "))
	return found, f.err
}

func (f *fixedSources) Pods(_ context.Context, namespace string) (admission.Found, error) {
	return f.answer(f.pods, "pods", namespace)
}
func (f *fixedSources) BoundClaims(_ context.Context, namespace string) (admission.Found, error) {
	return f.answer(f.claims, "claims", namespace)
}
func (f *fixedSources) ClaimUsers(_ context.Context, namespace, claim string) (admission.Found, error) {
	return f.answer(f.users, "users", namespace, claim)
}
func (f *fixedSources) ReadyEndpoints(_ context.Context, namespace, service string) (admission.Found, error) {
	return f.answer(f.endpoints, "endpoints", namespace, service)
}
func (f *fixedSources) Instances(_ context.Context, resource schema.GroupVersionResource, selector string) (admission.Found, error) {
	question := []string{"instances", resource.String()}
	if selector != "" {
		question = append(question, selector)
	}
	return f.answer(f.instances, question...)
}
func (f *fixedSources) Paths(_ context.Context, resource schema.GroupVersionResource) (replicasprotection.Paths, bool, error) {
	if replicasprotection.IsBuiltIn(resource.GroupResource()) {
		return replicasprotection.BuiltIn, true, nil
	}
	if f.paths == nil {
		return replicasprotection.Paths{}, false, f.err
	}
	return *f.paths, true, f.err
}

func (f *fixedSources) rules() []admission.Rule {
	return []admission.Rule{
		Cascading{f, f},
		Resources{f},
	}
}

// request returns the review of the deletion of the object in YAML.
func request(t *testing.T, resource, object string) *admission.Request {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(object))
	require.NoError(t, err)
	var meta metav1.PartialObjectMetadata
	require.NoError(t, yaml.Unmarshal([]byte(object), &meta))
	gvk := meta.GroupVersionKind()
	namespace := meta.Namespace
	if gvk.Kind == "Namespace" {
		namespace = meta.Name
	}
	return admission.NewRequest(admissionv1.AdmissionRequest{
		Kind:      metav1.GroupVersionKind(gvk),
		Resource:  metav1.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: resource},
		Namespace: namespace,
		Name:      meta.Name,
		Operation: admissionv1.Delete,
		OldObject: runtime.RawExtension{Raw: raw},
	})
}

const (
	namespaceObject = `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {kubelet-guard.io/deletion-protection: VALUE}}}`
	claimObject     = `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {namespace: shop, name: data, labels: {kubelet-guard.io/deletion-protection: cascading}}}`
	serviceObject   = `{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web, labels: {kubelet-guard.io/deletion-protection: cascading}}}`
	mapObject       = `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: web, labels: {kubelet-guard.io/deletion-protection: cascading}}}`
	crdObject       = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: machines.example.com, labels: {kubelet-guard.io/deletion-protection: cascading}}
spec:
  group: example.com
  names: {plural: machines, kind: Machine}
  versions:
    - {name: v1, served: false, storage: true}
    - {name: v2, served: SERVED, storage: false}
`
	deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: shop, name: web, generation: 3, labels: {kubelet-guard.io/deletion-protection: cascading EXTRA}}
spec: {SPEC}
status: {STATUS}
`
)

func workloadObject(spec, status string) string {
	return strings.NewReplacer("SPEC", spec, "STATUS", status, " EXTRA", "").Replace(deployment)
}

// mayNotList is the answer to a webhook that has no right to list.
var mayNotList = apierrors.NewForbidden(schema.GroupResource{Group: "example.com", Resource: "machines"}, "", errors.New("no"))

const letListMachines = "Let it list them, and try again: kubectl create clusterrole kubelet-guard-webhook-machines.example.com --verb=list --resource=machines.example.com && kubectl label clusterrole kubelet-guard-webhook-machines.example.com kubelet-guard.io/aggregate-to-webhook=true"

func TestDeletion(t *testing.T) {
	const label = "it is labelled kubelet-guard.io/deletion-protection="
	cascading := func(object string) string { return strings.ReplaceAll(object, "VALUE", "cascading") }
	deploymentRefused := func(why, next string) admission.Decision {
		return admission.Refuse(admission.ReasonReplicasNotZero, "deployment.apps/web in namespace shop was not deleted: "+label+"cascading and "+why, next)
	}
	const wait = "Wait until none is left (kubectl get deployment.apps/web -n shop --watch), then delete it"

	tests := []struct {
		name     string
		resource string
		object   string
		sources  fixedSources
		want     admission.Decision
		reads    []string
	}{
		{name: "an object without the label may go", resource: "namespaces", object: strings.ReplaceAll(namespaceObject, "VALUE", `""`), want: admission.Allow()},
		{
			name: "always refuses, whatever is in it", resource: "namespaces", object: strings.ReplaceAll(namespaceObject, "VALUE", "always"),
			want: admission.Refuse(admission.ReasonDeletionProtected, "namespace/shop was not deleted: "+label+"always",
				"If it is really to go, take the label off first: kubectl label namespace/shop kubelet-guard.io/deletion-protection-"),
		},
		{
			name: "always does not stand against what is being deleted", resource: "configmaps",
			object: `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: web, deletionTimestamp: "2026-05-04T10:00:00Z", labels: {kubelet-guard.io/deletion-protection: always}}}`,
			want:   admission.Allow(),
		},
		{name: "an empty namespace may go", resource: "namespaces", object: cascading(namespaceObject), want: admission.Allow(), reads: []string{"pods shop", "claims shop"}},
		{
			name: "a namespace with pods and bound claims may not", resource: "namespaces", object: cascading(namespaceObject),
			sources: fixedSources{pods: admission.Found{Count: 500, More: true, Example: "web-0"}, claims: admission.Found{Count: 1, Example: "data"}},
			want: admission.Refuse(admission.ReasonDependentsExist,
				"namespace/shop was not deleted: "+label+"cascading and is not empty (pods: at least 500 (such as web-0), bound persistent volume claims: 1 (data))",
				"List them (kubectl get pods,persistentvolumeclaims -n shop), delete what is to go, and delete the namespace when it has none left"),
			reads: []string{"pods shop", "claims shop"},
		},
		{
			name: "a namespace whose pods cannot be listed is not decided", resource: "namespaces", object: cascading(namespaceObject),
			sources: fixedSources{err: errors.New("timeout")}, want: admission.Fail("find the pods of the namespace: %w", errors.New("timeout")), reads: []string{"pods shop"},
		},
		{name: "a claim that nobody mounts may go", resource: "persistentvolumeclaims", object: claimObject, want: admission.Allow(), reads: []string{"users shop data"}},
		{
			name: "a mounted claim may not", resource: "persistentvolumeclaims", object: claimObject, sources: fixedSources{users: admission.Found{Count: 2, Example: "db-0"}},
			want: admission.Refuse(admission.ReasonDependentsExist,
				"persistentvolumeclaim/data in namespace shop was not deleted: "+label+"cascading and is mounted by pods: 2 (such as db-0)",
				"Stop the pods first (kubectl describe persistentvolumeclaim/data -n shop lists them as Used By)"),
			reads: []string{"users shop data"},
		},
		{name: "a service without endpoints may go", resource: "services", object: serviceObject, want: admission.Allow(), reads: []string{"endpoints shop web"}},
		{
			name: "a service with endpoints may not", resource: "services", object: serviceObject, sources: fixedSources{endpoints: admission.Found{Count: 1, Example: "web-0"}},
			want: admission.Refuse(admission.ReasonDependentsExist,
				"service/web in namespace shop was not deleted: "+label+"cascading and still sends traffic to ready endpoints: 1 (web-0)",
				"Stop what it serves first (kubectl get endpointslices -n shop -l kubernetes.io/service-name=web)"),
			reads: []string{"endpoints shop web"},
		},
		{
			name: "a definition without objects may go", resource: "customresourcedefinitions", object: strings.ReplaceAll(crdObject, "SERVED", "true"),
			want: admission.Allow(), reads: []string{"instances example.com/v2, Resource=machines"},
		},
		{
			name: "a definition with objects may not", resource: "customresourcedefinitions", object: strings.ReplaceAll(crdObject, "SERVED", "true"),
			sources: fixedSources{instances: admission.Found{Count: 1000, Example: "default/m-1"}},
			want: admission.Refuse(admission.ReasonDependentsExist,
				"customresourcedefinition.apiextensions.k8s.io/machines.example.com was not deleted: "+label+"cascading and its deletion would delete its custom resources: 1000 (such as default/m-1)",
				"List them (kubectl get machines.example.com -A), delete them if they are to go, and delete the definition when none is left"),
			reads: []string{"instances example.com/v2, Resource=machines"},
		},
		{
			name: "a definition whose objects the webhook may not list may not", resource: "customresourcedefinitions", object: strings.ReplaceAll(crdObject, "SERVED", "true"),
			sources: fixedSources{err: mayNotList},
			want: admission.Refuse(admission.ReasonDependentsUnknown,
				"customresourcedefinition.apiextensions.k8s.io/machines.example.com was not deleted: "+label+"cascading, and the webhook may not list its custom resources", letListMachines),
			reads: []string{"instances example.com/v2, Resource=machines"},
		},
		{
			name: "a definition that serves no version is not decided", resource: "customresourcedefinitions", object: strings.ReplaceAll(crdObject, "SERVED", "false"),
			want: admission.Fail("%w", errors.New("the definition serves no version, so that its custom resources cannot be listed; serve one, or take the label off")),
		},
		{
			name: "a kind without known dependents may not", resource: "configmaps", object: mapObject,
			want: admission.Refuse(admission.ReasonDeletionProtected,
				"configmap/web in namespace shop was not deleted: "+label+"cascading, and what depends on an object of this kind cannot be found out",
				"If nothing does, take the label off first: kubectl label configmap/web -n shop kubelet-guard.io/deletion-protection-"),
		},
		{name: "a workload without replicas may go", resource: "deployments", object: workloadObject("replicas: 0", "observedGeneration: 3"), want: admission.Allow()},
		{
			name: "a workload with replicas in its spec may not", resource: "deployments", object: workloadObject("replicas: 3", "observedGeneration: 3"),
			want: deploymentRefused("spec.replicas is 3", "Scale it to zero first: kubectl scale deployment.apps/web -n shop --replicas=0"),
		},
		{
			name: "a workload without the field has one", resource: "deployments", object: workloadObject("", "observedGeneration: 3"),
			want: deploymentRefused("spec.replicas is 1", "Scale it to zero first: kubectl scale deployment.apps/web -n shop --replicas=0"),
		},
		{
			name: "the next step confirms replicas that are protected too", resource: "deployments",
			object: strings.NewReplacer("SPEC", "replicas: 3", "STATUS", "", " EXTRA", ", kubelet-guard.io/replicas-protection: confirm").Replace(deployment),
			want: deploymentRefused("spec.replicas is 3",
				"Scale it to zero first: kubectl annotate deployment.apps/web -n shop --overwrite kubelet-guard.io/confirm-replicas=0 && kubectl scale deployment.apps/web -n shop --replicas=0"),
		},
		{name: "a workload with replicas in its status may not", resource: "deployments", object: workloadObject("replicas: 0", "observedGeneration: 3, replicas: 2"), want: deploymentRefused("still runs (pods: 2)", wait)},
		{name: "a workload whose status is old may not", resource: "deployments", object: workloadObject("replicas: 0", "observedGeneration: 2"), want: deploymentRefused("its controller has not seen its last change yet", wait)},
		{name: "a workload without any status may not", resource: "deployments", object: workloadObject("replicas: 0", ""), want: deploymentRefused("its controller has not seen its last change yet", wait)},
		{
			name: "a daemon set with pods may not", resource: "daemonsets",
			object: `{apiVersion: apps/v1, kind: DaemonSet, metadata: {namespace: shop, name: agent, generation: 1, labels: {kubelet-guard.io/deletion-protection: cascading}}, status: {observedGeneration: 1, currentNumberScheduled: 4, numberMisscheduled: 1}}`,
			want: admission.Refuse(admission.ReasonReplicasNotZero, "daemonset.apps/agent in namespace shop was not deleted: "+label+"cascading and still runs (pods: 5)",
				`Give it a node selector that no node has: kubectl patch daemonset.apps/agent -n shop -p '{"spec":{"template":{"spec":{"nodeSelector":{"kubelet-guard.io/none":"true"}}}}}'. Wait until none is left (kubectl get daemonset.apps/agent -n shop --watch), then delete it`),
		},
		{
			name: "a job with an active pod may not", resource: "jobs",
			object: `{apiVersion: batch/v1, kind: Job, metadata: {namespace: shop, name: bill, labels: {kubelet-guard.io/deletion-protection: cascading}}, status: {active: 1}}`,
			want: admission.Refuse(admission.ReasonReplicasNotZero, "job.batch/bill in namespace shop was not deleted: "+label+"cascading and still runs (pods: 1)",
				`Suspend it: kubectl patch job.batch/bill -n shop -p '{"spec":{"suspend":true}}'. Wait until none is left (kubectl get job.batch/bill -n shop --watch), then delete it`),
		},
		{
			name: "a cron job without active jobs may go", resource: "cronjobs",
			object: `{apiVersion: batch/v1, kind: CronJob, metadata: {namespace: shop, name: bill, labels: {kubelet-guard.io/deletion-protection: cascading}}}`,
			want:   admission.Allow(),
		},
		{
			name: "a custom kind is read where its definition says", resource: "shops",
			object:  `{apiVersion: example.com/v1, kind: Shop, metadata: {namespace: shop, name: main, generation: 7, labels: {kubelet-guard.io/deletion-protection: cascading}}, spec: {size: {tills: 0}}, status: {tills: 1}}`,
			sources: fixedSources{paths: &replicasprotection.Paths{Spec: []string{"spec", "size", "tills"}, Status: []string{"status", "tills"}}},
			want: admission.Refuse(admission.ReasonReplicasNotZero, "shop.example.com/main in namespace shop was not deleted: "+label+"cascading and still runs (pods: 1)",
				"Wait until none is left (kubectl get shop.example.com/main -n shop --watch), then delete it"),
		},
		{
			name: "the slices of a labelled service may go", resource: "endpointslices",
			object: `{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: web-1, labels: {kubelet-guard.io/deletion-protection: cascading}}}`,
			want:   admission.Allow(),
		},
		{
			name: "the endpoints of a labelled service may go", resource: "endpoints",
			object: `{apiVersion: v1, kind: Endpoints, metadata: {namespace: shop, name: web, labels: {kubelet-guard.io/deletion-protection: always}}}`,
			want:   admission.Allow(),
		},
		{
			name: "the revisions of a labelled template may go", resource: "controllerrevisions",
			object: `{apiVersion: apps/v1, kind: ControllerRevision, metadata: {namespace: shop, name: web-1, labels: {kubelet-guard.io/deletion-protection: cascading}}}`,
			want:   admission.Allow(),
		},
		{
			name: "nothing depends on a pod", resource: "pods",
			object: `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web-0, labels: {kubelet-guard.io/deletion-protection: cascading}}}`,
			want:   admission.Allow(),
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := admission.Allow()
			for _, rule := range test.sources.rules() {
				if got = rule.Review(t.Context(), request(t, test.resource, test.object)); got.Verdict != admission.Allowed {
					break
				}
			}
			if test.want.Err != nil {
				require.EqualError(t, got.Err, test.want.Err.Error())
				got.Err, test.want.Err = nil, nil
			}
			require.Equal(t, test.want, got)
			require.Equal(t, test.reads, test.sources.reads)
		})
	}
}

func TestRulesDoNotJudgeOtherOperations(t *testing.T) {
	update := request(t, "namespaces", strings.ReplaceAll(namespaceObject, "VALUE", "always"))
	update.Operation = admissionv1.Update
	subresource := request(t, "namespaces", strings.ReplaceAll(namespaceObject, "VALUE", "always"))
	subresource.SubResource = "finalize"
	for _, r := range []*admission.Request{update, subresource} {
		for _, rule := range (&fixedSources{}).rules() {
			require.Equal(t, admission.Allow(), rule.Review(t.Context(), r))
		}
	}
}

func TestDefinitionsWithoutALabel(t *testing.T) {
	unlabelled := strings.ReplaceAll(strings.ReplaceAll(crdObject, "SERVED", "true"), "kubelet-guard.io/deletion-protection", "other")
	const question = "instances example.com/v2, Resource=machines kubelet-guard.io/deletion-protection in (always,cascading)"
	for name, test := range map[string]struct {
		resource, object string
		sources          fixedSources
		want             admission.Decision
		reads            []string
	}{
		"with a labelled custom resource": {resource: "customresourcedefinitions", object: unlabelled, sources: fixedSources{instances: admission.Found{Count: 1, Example: "m-1"}},
			want: admission.Refuse(admission.ReasonDependentsExist,
				"customresourcedefinition.apiextensions.k8s.io/machines.example.com was not deleted: that would delete custom resources labelled kubelet-guard.io/deletion-protection: 1 (m-1)",
				"List them (kubectl get machines.example.com -A -l kubelet-guard.io/deletion-protection), and take the label off those that are to go"),
			reads: []string{question}},
		"without one":     {resource: "customresourcedefinitions", object: unlabelled, want: admission.Allow(), reads: []string{question}},
		"cannot be found": {resource: "customresourcedefinitions", object: unlabelled, sources: fixedSources{err: errors.New("forbidden")}, want: admission.Fail("find the labelled custom resources of the definition: %w", errors.New("forbidden")), reads: []string{question}},
		"cannot be listed": {resource: "customresourcedefinitions", object: unlabelled, sources: fixedSources{err: mayNotList},
			want: admission.Fail("the webhook may not list its custom resources, of which some may be labelled %s. %s", "kubelet-guard.io/deletion-protection", letListMachines), reads: []string{question}},
		"another kind": {resource: "configmaps", object: mapObject, want: admission.Allow()},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, Definitions{&test.sources}.Review(t.Context(), request(t, test.resource, test.object)))
			require.Equal(t, test.reads, test.sources.reads)
		})
	}
}
