package deletionprotection

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensionsfake "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/fake"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
	"kubelet-guard.io/pkg/admission/rules/replicasprotection"
)

// fixedSources find the same for every object.
type fixedSources struct {
	pods, claims, users, endpoints, instances admission.Found
	err                                       error
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

// shops are a kind with replicas.
var shops = &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "shops.example.com"}, Spec: apiextensionsv1.CustomResourceDefinitionSpec{
	Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Subresources: &apiextensionsv1.CustomResourceSubresources{
		Scale: &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".spec.size.tills", StatusReplicasPath: ".status.tills"},
	}}},
}}

// rules returns what judges the deletion of a labelled object.
func (f *fixedSources) rules() []admission.Rule {
	scale := replicasprotection.Lookup{Definitions: apiextensionsfake.NewClientset(shops).ApiextensionsV1().CustomResourceDefinitions()}
	return []admission.Rule{{Review: Cascading{f, scale}.Review}, {Review: Resources{scale}.Review}}
}

// request returns the review of the deletion of the object in YAML.
func request(t *testing.T, resource, object string) *admission.Request {
	t.Helper()
	var meta metav1.PartialObjectMetadata
	require.NoError(t, yaml.Unmarshal([]byte(object), &meta))
	review := admissiontest.Review(t, admissionv1.Delete, meta.GroupVersionKind(), resource, object, nil)
	if resource == "namespaces" {
		review.Namespace = review.Name
	}
	return admission.NewRequest(review)
}

// labelled returns an object of the namespace shop with a value of the label, and what follows its
// metadata.
func labelled(apiVersion, kind, name, value, rest string) string {
	return fmt.Sprintf("{apiVersion: %s, kind: %s, metadata: {namespace: shop, name: %s, generation: 3, labels: {kubelet-guard.io/deletion-protection: %s}}%s}", apiVersion, kind, name, value, rest)
}

// namespaced returns the namespace shop, with a value of the label.
func namespaced(value string) string {
	return strings.Replace(labelled("v1", "Namespace", "shop", value, ""), "namespace: shop, ", "", 1)
}

// definition returns that of machines, of which the last version is the only one that may be served.
func definition(served string) string {
	return strings.Replace(labelled("apiextensions.k8s.io/v1", "CustomResourceDefinition", "machines.example.com", "cascading",
		", spec: {group: example.com, names: {plural: machines, kind: Machine}, versions: [{name: v1, served: false, storage: true}, {name: v2, served: "+served+", storage: false}]}"), "namespace: shop, ", "", 1)
}

func deployment(spec, status string) string {
	return labelled("apps/v1", "Deployment", "web", "cascading", ", spec: {"+spec+"}, status: {"+status+"}")
}

// mayNotList is the answer to a webhook that has no right to list.
var mayNotList = apierrors.NewForbidden(schema.GroupResource{Group: "example.com", Resource: "machines"}, "", errors.New("no"))

const letListMachines = "Let it list them, and try again: kubectl create clusterrole kubelet-guard-webhook-machines.example.com --verb=list --resource=machines.example.com && kubectl label clusterrole kubelet-guard-webhook-machines.example.com kubelet-guard.io/aggregate-to-webhook=true"

func TestDeletion(t *testing.T) {
	const (
		label     = "it is labelled kubelet-guard.io/deletion-protection="
		toZero    = "Scale it to zero first: kubectl scale deployment.apps/web -n shop --replicas=0"
		unseen    = "its controller has not seen its last change yet"
		instances = "instances example.com/v2, Resource=machines"
		machines  = "customresourcedefinition.apiextensions.k8s.io/machines.example.com was not deleted: " + label + "cascading"
		crds      = "customresourcedefinitions"
	)
	waitFor := func(target string) string {
		return "Wait until none is left (kubectl get " + target + " -n shop --watch), then delete it"
	}
	dependents := func(target, why, next string) admission.Decision {
		return admission.Refuse(admission.ReasonDependentsExist, target+" was not deleted: "+label+"cascading and "+why, next)
	}
	replicas := func(target, why, next string) admission.Decision {
		return admission.Refuse(admission.ReasonReplicasNotZero, target+" in namespace shop was not deleted: "+label+"cascading and "+why, next)
	}
	const web = "deployment.apps/web"
	protectedToo := strings.Replace(deployment("replicas: 3", ""), "cascading}", "cascading, kubelet-guard.io/replicas-protection: confirm}", 1)
	terminating := strings.Replace(labelled("v1", "ConfigMap", "web", "always", ""), "generation: 3", `deletionTimestamp: "2026-05-04T10:00:00Z"`, 1)
	for name, test := range map[string]struct {
		resource, object string
		sources          fixedSources
		want             admission.Decision
		reads            []string
	}{
		"an object without the label may go": {"namespaces", namespaced(`""`), fixedSources{}, admission.Allow(), nil},
		"always refuses, whatever is in it": {"namespaces", namespaced("always"), fixedSources{}, admission.Refuse(admission.ReasonDeletionProtected, "namespace/shop was not deleted: "+label+"always",
			"If it is really to go, take the label off first: kubectl label namespace/shop kubelet-guard.io/deletion-protection-"), nil},
		"always is not against what is being deleted": {"configmaps", terminating, fixedSources{}, admission.Allow(), nil},
		"an empty namespace may go":                   {"namespaces", namespaced("cascading"), fixedSources{}, admission.Allow(), []string{"pods shop", "claims shop"}},
		"a namespace with pods and bound claims may not": {"namespaces", namespaced("cascading"),
			fixedSources{pods: admission.Found{Count: 500, More: true, Example: "web-0"}, claims: admission.Found{Count: 1, Example: "data"}},
			dependents("namespace/shop", "is not empty (pods: at least 500 (such as web-0), bound persistent volume claims: 1 (data))",
				"List them (kubectl get pods,persistentvolumeclaims -n shop), delete what is to go, and delete the namespace when it has none left"), []string{"pods shop", "claims shop"}},
		"a namespace whose pods cannot be listed is not decided": {"namespaces", namespaced("cascading"), fixedSources{err: errors.New("timeout")},
			admission.Fail("find the pods of the namespace: %w", errors.New("timeout")), []string{"pods shop"}},
		"a claim that nobody mounts may go": {"persistentvolumeclaims", labelled("v1", "PersistentVolumeClaim", "data", "cascading", ""), fixedSources{}, admission.Allow(), []string{"users shop data"}},
		"a mounted claim may not": {"persistentvolumeclaims", labelled("v1", "PersistentVolumeClaim", "data", "cascading", ""), fixedSources{users: admission.Found{Count: 2, Example: "db-0"}},
			dependents("persistentvolumeclaim/data in namespace shop", "is mounted by pods: 2 (such as db-0)",
				"Stop the pods first (kubectl describe persistentvolumeclaim/data -n shop lists them as Used By)"), []string{"users shop data"}},
		"a service without endpoints may go": {"services", labelled("v1", "Service", "web", "cascading", ""), fixedSources{}, admission.Allow(), []string{"endpoints shop web"}},
		"a service with endpoints may not": {"services", labelled("v1", "Service", "web", "cascading", ""), fixedSources{endpoints: admission.Found{Count: 1, Example: "web-0"}},
			dependents("service/web in namespace shop", "still sends traffic to ready endpoints: 1 (web-0)",
				"Stop what it serves first (kubectl get endpointslices -n shop -l kubernetes.io/service-name=web)"), []string{"endpoints shop web"}},
		"a definition without objects may go": {crds, definition("true"), fixedSources{}, admission.Allow(), []string{instances}},
		"a definition with objects may not": {crds, definition("true"), fixedSources{instances: admission.Found{Count: 1000, Example: "default/m-1"}},
			admission.Refuse(admission.ReasonDependentsExist, machines+" and its deletion would delete its custom resources: 1000 (such as default/m-1)",
				"List them (kubectl get machines.example.com -A), delete them if they are to go, and delete the definition when none is left"), []string{instances}},
		"a definition whose objects the webhook may not list may not": {crds, definition("true"), fixedSources{err: mayNotList},
			admission.Refuse(admission.ReasonDependentsUnknown, machines+", and the webhook may not list its custom resources", letListMachines), []string{instances}},
		"a definition that serves no version is not decided": {crds, definition("false"), fixedSources{},
			admission.Fail("%w", errors.New("the definition serves no version, so that its custom resources cannot be listed; serve one, or take the label off")), nil},
		"a kind without known dependents may not": {"configmaps", labelled("v1", "ConfigMap", "web", "cascading", ""), fixedSources{}, admission.Refuse(admission.ReasonDeletionProtected,
			"configmap/web in namespace shop was not deleted: "+label+"cascading, and what depends on an object of this kind cannot be found out",
			"If nothing does, take the label off first: kubectl label configmap/web -n shop kubelet-guard.io/deletion-protection-"), nil},
		"a workload without replicas may go":              {"deployments", deployment("replicas: 0", "observedGeneration: 3"), fixedSources{}, admission.Allow(), nil},
		"a workload with replicas in its spec may not":    {"deployments", deployment("replicas: 3", "observedGeneration: 3"), fixedSources{}, replicas(web, "spec.replicas is 3", toZero), nil},
		"a workload without the field has one":            {"deployments", deployment("", "observedGeneration: 3"), fixedSources{}, replicas(web, "spec.replicas is 1", toZero), nil},
		"a workload with replicas in its status may not":  {"deployments", deployment("replicas: 0", "observedGeneration: 3, replicas: 2"), fixedSources{}, replicas(web, "still runs (pods: 2)", waitFor(web)), nil},
		"a workload whose status is old may not":          {"deployments", deployment("replicas: 0", "observedGeneration: 2"), fixedSources{}, replicas(web, unseen, waitFor(web)), nil},
		"a workload without any status may not":           {"deployments", deployment("replicas: 0", ""), fixedSources{}, replicas(web, unseen, waitFor(web)), nil},
		"the next step confirms replicas, if needed, too": {"deployments", protectedToo, fixedSources{}, replicas(web, "spec.replicas is 3", strings.Replace(toZero, "kubectl", "kubectl annotate deployment.apps/web -n shop --overwrite kubelet-guard.io/confirm-replicas=0 && kubectl", 1)), nil},
		"a daemon set with pods may not": {"daemonsets", labelled("apps/v1", "DaemonSet", "agent", "cascading", ", status: {observedGeneration: 3, currentNumberScheduled: 4, numberMisscheduled: 1}"), fixedSources{}, replicas("daemonset.apps/agent", "still runs (pods: 5)",
			`Give it a node selector that no node has: kubectl patch daemonset.apps/agent -n shop -p '{"spec":{"template":{"spec":{"nodeSelector":{"kubelet-guard.io/none":"true"}}}}}'. `+waitFor("daemonset.apps/agent")), nil},
		"a job with an active pod may not": {"jobs", labelled("batch/v1", "Job", "bill", "cascading", ", status: {active: 1}"), fixedSources{},
			replicas("job.batch/bill", "still runs (pods: 1)", `Suspend it: kubectl patch job.batch/bill -n shop -p '{"spec":{"suspend":true}}'. `+waitFor("job.batch/bill")), nil},
		"a cron job without active jobs may go": {"cronjobs", labelled("batch/v1", "CronJob", "bill", "cascading", ""), fixedSources{}, admission.Allow(), nil},
		"a custom kind is read where its definition says": {"shops", labelled("example.com/v1", "Shop", "main", "cascading", ", spec: {size: {tills: 0}}, status: {tills: 1}"), fixedSources{},
			replicas("shop.example.com/main", "still runs (pods: 1)", waitFor("shop.example.com/main")), nil},
		"the slices of a labelled service may go":     {"endpointslices", labelled("discovery.k8s.io/v1", "EndpointSlice", "web-1", "cascading", ""), fixedSources{}, admission.Allow(), nil},
		"the endpoints of a labelled service may go":  {"endpoints", labelled("v1", "Endpoints", "web", "always", ""), fixedSources{}, admission.Allow(), nil},
		"the revisions of a labelled template may go": {"controllerrevisions", labelled("apps/v1", "ControllerRevision", "web-1", "cascading", ""), fixedSources{}, admission.Allow(), nil},
		"nothing depends on a pod":                    {"pods", labelled("v1", "Pod", "web-0", "cascading", ""), fixedSources{}, admission.Allow(), nil},
	} {
		t.Run(name, func(t *testing.T) {
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
	update := request(t, "namespaces", namespaced("always"))
	update.Operation = admissionv1.Update
	subresource := request(t, "namespaces", namespaced("always"))
	subresource.SubResource = "finalize"
	for _, r := range []*admission.Request{update, subresource} {
		for _, rule := range (&fixedSources{}).rules() {
			require.Equal(t, admission.Allow(), rule.Review(t.Context(), r))
		}
	}
}

func TestDefinitionsWithoutALabel(t *testing.T) {
	unlabelled := strings.Replace(definition("true"), "kubelet-guard.io/deletion-protection", "other", 1)
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
		"another kind": {resource: "configmaps", object: labelled("v1", "ConfigMap", "web", "cascading", ""), want: admission.Allow()},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, Definitions{&test.sources}.Review(t.Context(), request(t, test.resource, test.object)))
			require.Equal(t, test.reads, test.sources.reads)
		})
	}
}
