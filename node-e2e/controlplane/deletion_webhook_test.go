package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/framework"
)

// definitions is the resource of custom definitions.
var definitions = schema.GroupVersionResource{Group: apiextensionsv1.GroupName, Version: "v1", Resource: "customresourcedefinitions"}

// definitionWait covers the time until the API server serves a new kind, and until
// all objects of a deleted one are gone.
const definitionWait = 30 * time.Second

// definitionGroup is that of the kinds whose objects the webhook may list.
const definitionGroup = "e2e.example.com"

// newDefinition is newDefinitionOf in definitionGroup.
func newDefinition(ctx context.Context, plural string, labels map[string]string) schema.GroupVersionResource {
	GinkgoHelper()
	return newDefinitionOf(ctx, definitionGroup, plural, labels)
}

// newDefinitionOf creates a cluster-scoped custom kind with a scale subresource, whose
// replicas are not where the built-in kinds have theirs, and returns its resource. At
// the end it goes, with its objects.
func newDefinitionOf(ctx context.Context, group, plural string, labels map[string]string) schema.GroupVersionResource {
	GinkgoHelper()
	gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural}
	kind := strings.ToUpper(plural[:1]) + strings.TrimSuffix(plural[1:], "s")
	number := apiextensionsv1.JSONSchemaProps{Type: "integer", Format: "int64"}
	object := func(name string) apiextensionsv1.JSONSchemaProps {
		return apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{name: number}}
	}
	definition := &apiextensionsv1.CustomResourceDefinition{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
		ObjectMeta: metav1.ObjectMeta{Name: plural + "." + gvr.Group, Labels: labels},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: gvr.Group, Scope: apiextensionsv1.ClusterScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Singular: strings.ToLower(kind), Kind: kind, ListKind: kind + "List"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: gvr.Version, Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{
					Type:       "object",
					Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": object("machines"), "status": object("ready")},
				}},
				Subresources: &apiextensionsv1.CustomResourceSubresources{
					Status: &apiextensionsv1.CustomResourceSubresourceStatus{},
					Scale:  &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".spec.machines", StatusReplicasPath: ".status.ready"},
				},
			}},
		},
	}
	framework.Must(dynamicClient.Resource(definitions).Create(ctx, toUnstructured(definition), metav1.CreateOptions{}))
	DeferCleanup(func(ctx SpecContext) {
		disarm := fmt.Appendf(nil, `{"metadata":{"labels":{%q:null},"annotations":{%q:%q}}}`, labelDeletionProtection, annotationOverride, overrideFor(time.Hour, "end of the spec"))
		resource := dynamicClient.Resource(definitions)
		if _, err := resource.Patch(ctx, definition.Name, types.MergePatchType, disarm, metav1.PatchOptions{}); !apierrors.IsNotFound(err) {
			Expect(err).NotTo(HaveOccurred())
			// The spec may have deleted it, and its end come only now.
			Expect(resource.Delete(ctx, definition.Name, metav1.DeleteOptions{})).To(Or(Succeed(), Satisfy(apierrors.IsNotFound)))
		}
	}, NodeTimeout(definitionWait))
	Eventually(ctx, func() error { return framework.ErrorOf(dynamicClient.Resource(gvr).List(ctx, metav1.ListOptions{})) }).WithTimeout(definitionWait).Should(Succeed(), "the API server to serve %s", gvr)
	return gvr
}

// customObject is an object of a definition made by newDefinition, not yet created.
func customObject(gvr schema.GroupVersionResource, name string, machines int64, labels map[string]string) *unstructured.Unstructured {
	kind := strings.ToUpper(gvr.Resource[:1]) + strings.TrimSuffix(gvr.Resource[1:], "s")
	object := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"machines": machines}}}
	object.SetGroupVersionKind(gvr.GroupVersion().WithKind(kind))
	object.SetName(name)
	object.SetLabels(labels)
	return object
}

var cascading = map[string]string{labelDeletionProtection: "cascading"}

var _ = Describe("deletion-protection: cascading, by the webhook", func() {
	deleteNamespace := func(ctx context.Context, name string, options metav1.DeleteOptions) error {
		return ordinary.client().CoreV1().Namespaces().Delete(ctx, name, options)
	}

	It("keeps a namespace while it has pods or bound claims, and lets an empty one go", func(ctx SpecContext) {
		namespace := newNamespace(ctx, cascading)
		pod := createPod(ctx, namespace, newPod("web", nil))
		refusal := deleteNamespace(ctx, namespace, metav1.DeleteOptions{})
		Expect(refusal).To(BeRefused("namespace/"+namespace+" was not deleted", "deletion-protection=cascading", "pods: 1 (web)", "kubectl get pods,persistentvolumeclaims -n "+namespace))
		ordinary.kubectl(ctx, "delete", "namespace", namespace, "--wait=false").ExpectRefused("pods: 1 (web)")

		By("deleting the pod")
		Expect(client.CoreV1().Pods(namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})).To(Succeed())
		awaitGone(ctx, pod)
		claim := &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: "data"},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
				// No class: only the controller manager's binding of the volume below.
				StorageClassName: ptr.To(""), VolumeName: "claim-" + namespace,
			},
		}
		framework.Must(client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: claim.Spec.VolumeName},
			Spec: corev1.PersistentVolumeSpec{
				AccessModes: claim.Spec.AccessModes, Capacity: claim.Spec.Resources.Requests,
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
				PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/tmp/" + namespace}},
			},
		}, metav1.CreateOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			Expect(client.CoreV1().PersistentVolumes().Delete(ctx, claim.Spec.VolumeName, metav1.DeleteOptions{})).To(Succeed())
		}, NodeTimeout(podStart))
		framework.Must(client.CoreV1().PersistentVolumeClaims(namespace).Create(ctx, claim, metav1.CreateOptions{}))
		Eventually(ctx, func(g Gomega) corev1.PersistentVolumeClaimPhase {
			return framework.Try(client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, "data", metav1.GetOptions{})).In(g).Status.Phase
		}).WithTimeout(controllerWait).Should(Equal(corev1.ClaimBound))
		Expect(deleteNamespace(ctx, namespace, metav1.DeleteOptions{})).To(BeRefused("bound persistent volume claims: 1 (data)"))

		By("deleting the claim")
		Expect(client.CoreV1().PersistentVolumeClaims(namespace).Delete(ctx, "data", metav1.DeleteOptions{})).To(Succeed())
		Eventually(ctx, func() error {
			return deleteNamespace(ctx, namespace, metav1.DeleteOptions{})
		}).WithTimeout(controllerWait).Should(Succeed(), "the deletion of the namespace, now empty")
	}, SpecTimeout(specTimeout))

	It("does not stand in the way of the namespace controller once the namespace may go", func(ctx SpecContext) {
		namespace := newNamespace(ctx, cascading)
		framework.Must(client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "left"}}, metav1.CreateOptions{}))
		object := framework.Must(client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}))
		Expect(deleteNamespace(ctx, namespace, metav1.DeleteOptions{})).To(Succeed())
		awaitGone(ctx, object)
	}, SpecTimeout(specTimeout))

	It("keeps a claim that a pod mounts and a service that has endpoints", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Labels: cascading} }
		core := client.CoreV1()
		for _, name := range []string{"used", "unused"} {
			framework.Must(core.PersistentVolumeClaims(namespace).Create(ctx, &corev1.PersistentVolumeClaim{ObjectMeta: meta(name), Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
			}}, metav1.CreateOptions{}))
		}
		waiting := newPod("waiting", nil)
		waiting.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "used"}}}}
		framework.Must(core.Pods(namespace).Create(ctx, waiting, metav1.CreateOptions{}))
		claims := ordinary.client().CoreV1().PersistentVolumeClaims(namespace)
		Expect(claims.Delete(ctx, "used", metav1.DeleteOptions{})).To(BeRefused("persistentvolumeclaim/used in namespace "+namespace, "is mounted by pods: 1 (waiting)"))
		Expect(claims.Delete(ctx, "unused", metav1.DeleteOptions{})).To(Succeed())

		createPod(ctx, namespace, newPod("web", nil))
		for _, name := range []string{"web", "idle"} {
			framework.Must(core.Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: meta(name), Spec: corev1.ServiceSpec{Selector: framework.AppLabels(name), Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{}))
		}
		services := ordinary.client().CoreV1().Services(namespace)
		Eventually(ctx, func() error {
			return services.Delete(ctx, "web", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		}).WithTimeout(controllerWait).Should(BeRefused("service/web in namespace "+namespace, "ready endpoints: 1 (web)"), "the endpoint controller has seen the pod")
		Expect(services.Delete(ctx, "idle", metav1.DeleteOptions{})).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("holds in kube-system as anywhere", func(ctx SpecContext) {
		maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
		kept := framework.Must(maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "spec-", Labels: cascading}}, metav1.CreateOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			kubectl(ctx, "label", "configmap", kept.Name, "-n", kept.Namespace, labelDeletionProtection+"-").ExpectDone()
			Expect(maps.Delete(ctx, kept.Name, metav1.DeleteOptions{})).To(Succeed())
		}, NodeTimeout(podStart))
		Expect(ordinary.client().CoreV1().ConfigMaps(kept.Namespace).Delete(ctx, kept.Name, metav1.DeleteOptions{})).To(
			BeRefused("configmap/"+kept.Name+" in namespace kube-system was not deleted", "deletion-protection=cascading"))
	}, SpecTimeout(specTimeout))

	It("lets the slices of a labelled service go, and its namespace", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		object := framework.Must(client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}))
		service := func(name, protection string) {
			GinkgoHelper()
			framework.Must(client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelDeletionProtection: protection}},
				Spec:       corev1.ServiceSpec{Selector: map[string]string{"service": name}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}}},
			}, metav1.CreateOptions{}))
		}
		slices := func(name string) func() ([]discoveryv1.EndpointSlice, error) {
			return func() ([]discoveryv1.EndpointSlice, error) {
				list, err := client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
				return list.Items, err
			}
		}
		service("idle", "cascading")
		service("kept", "always")
		By("a pod of another port, so that the service has a slice more")
		for i, name := range []string{"one", "other"} {
			pod := newPod(name, map[string]string{"service": "kept"})
			pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: int32(8080 + i)}}
			createPod(ctx, namespace, pod)
		}
		Eventually(ctx, slices("kept")).WithTimeout(controllerWait).Should(And(HaveLen(2), HaveEach(HaveField("Labels", HaveKeyWithValue(labelDeletionProtection, "always")))), "slices with the label of their service")
		Expect(client.CoreV1().Pods(namespace).Delete(ctx, "other", metav1.DeleteOptions{})).To(Succeed())
		Eventually(ctx, slices("kept")).WithTimeout(podStart).Should(ConsistOf(HaveField("Endpoints", ConsistOf(HaveField("TargetRef.Name", "one")))), "the slice of the pod that is gone to go")
		Expect(ordinary.client().CoreV1().Services(namespace).Delete(ctx, "kept", metav1.DeleteOptions{})).To(BeRefused("services kept was not deleted"))

		Eventually(ctx, slices("idle")).WithTimeout(controllerWait).Should(HaveLen(1))
		Expect(ordinary.client().CoreV1().Services(namespace).Delete(ctx, "idle", metav1.DeleteOptions{})).To(Succeed())
		Eventually(ctx, slices("idle")).WithTimeout(controllerWait).Should(BeEmpty(), "the slice to go with its service")
		ordinary.kubectl(ctx, "label", "service", "kept", "-n", namespace, labelDeletionProtection+"-").ExpectDone()
		Expect(deleteNamespace(ctx, namespace, metav1.DeleteOptions{})).To(Succeed())
		awaitGone(ctx, object)
	}, SpecTimeout(specTimeout))

	It("keeps a definition without a label while one of its custom resources has it", func(ctx SpecContext) {
		gvr := newDefinition(ctx, "drones", nil)
		definition := gvr.GroupResource().String()
		as := ordinary.dynamic().Resource(gvr)
		for name, labels := range map[string]map[string]string{"kept": {labelDeletionProtection: "always"}, "other": nil} {
			framework.Must(as.Create(ctx, customObject(gvr, name, 0, labels), metav1.CreateOptions{}))
		}
		refusal := ordinary.dynamic().Resource(definitions).Delete(ctx, definition, metav1.DeleteOptions{})
		Expect(refusal).To(BeRefused(definition+" was not deleted", "custom resources labelled "+labelDeletionProtection+": at least 1 (such as kept)"))
		By("taking the label off")
		ordinary.kubectl(ctx, "label", definition, "kept", labelDeletionProtection+"-").ExpectDone()
		Expect(ordinary.dynamic().Resource(definitions).Delete(ctx, definition, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("keeps a labelled definition whose custom resources it may not list, and the advice gives it the right", func(ctx SpecContext) {
		gvr := newDefinitionOf(ctx, "unlisted.example.com", "boats", cascading)
		definition := gvr.GroupResource().String()
		role := "kubelet-guard-webhook-" + definition
		DeferCleanup(func(ctx SpecContext) { kubectl(ctx, "delete", "clusterrole", role, "--ignore-not-found").ExpectDone() }, NodeTimeout(podStart))
		remove := func() error {
			return ordinary.dynamic().Resource(definitions).Delete(ctx, definition, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		}
		refusal := remove()
		Expect(refusal).To(BeRefused(definition+" was not deleted", "the webhook may not list its custom resources", role))
		ordinary.followAdvice(ctx, refusal)
		Eventually(ctx, remove).WithTimeout(controllerWait).Should(Succeed(), "once the controller manager has given the right to the webhook")

		By("a definition without a label goes, with a warning")
		other := newDefinitionOf(ctx, "unlisted.example.com", "rafts", nil).GroupResource().String()
		deleted := ordinary.kubectl(ctx, "delete", "crd", other, "--dry-run=server").ExpectDone()
		Expect(deleted.Stderr).To(And(ContainSubstring("Warning:"), ContainSubstring("kubelet-guard-webhook-"+other), ContainSubstring("the request was let through")))
	}, SpecTimeout(specTimeout))

	It("reads the replicas of a custom kind where its definition has them", func(ctx SpecContext) {
		gvr := newDefinition(ctx, "fleets", nil)
		as := ordinary.dynamic().Resource(gvr)
		framework.Must(as.Create(ctx, customObject(gvr, "north", 2, cascading), metav1.CreateOptions{}))
		Expect(as.Delete(ctx, "north", metav1.DeleteOptions{})).To(BeRefused("fleet.e2e.example.com/north was not deleted", "spec.replicas is 2", "kubectl scale fleet.e2e.example.com/north --replicas=0"))

		By("following the advice")
		ordinary.kubectl(ctx, "scale", "fleet.e2e.example.com/north", "--replicas=0").ExpectDone()
		framework.Must(as.Patch(ctx, "north", types.MergePatchType, []byte(`{"status":{"ready":1}}`), metav1.PatchOptions{}, "status"))
		Expect(as.Delete(ctx, "north", metav1.DeleteOptions{})).To(BeRefused("still runs (pods: 1)"))
		framework.Must(as.Patch(ctx, "north", types.MergePatchType, []byte(`{"status":{"ready":0}}`), metav1.PatchOptions{}, "status"))
		Expect(as.Delete(ctx, "north", metav1.DeleteOptions{})).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("writes the decision to the audit log", func(ctx SpecContext) {
		namespace := newNamespace(ctx, cascading)
		createPod(ctx, namespace, newPod("web", nil))
		since := time.Now()
		Expect(deleteNamespace(ctx, namespace, metav1.DeleteOptions{})).To(BeRefused())
		entry := auditEntry(ctx, since, "the refusal", func(event auditv1.Event) bool {
			return event.Verb == "delete" && event.ObjectRef != nil && event.ObjectRef.Name == namespace
		})
		Expect(entry.Annotations).To(HaveKeyWithValue("cascading-deletion.kubelet-guard.io/CascadingDeletion",
			HavePrefix("Enforce Refused DependentsExist: namespace/"+namespace+" was not deleted")))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("replicas-protection: confirm, by the webhook", func() {
	It("holds an update of a custom kind to the confirmation, and lets an override pass", func(ctx SpecContext) {
		gvr := newDefinition(ctx, "herds", nil)
		framework.Must(dynamicClient.Resource(gvr).Create(ctx, customObject(gvr, "north", 2, map[string]string{labelReplicasProtection: "confirm"}), metav1.CreateOptions{}))
		set := func(u user, machines int, annotation, value string) error {
			return framework.ErrorOf(u.dynamic().Resource(gvr).Patch(ctx, "north", types.MergePatchType,
				fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}},"spec":{"machines":%d}}`, annotation, value, machines), metav1.PatchOptions{}))
		}
		Expect(set(ordinary, 3, "other", "x")).To(BeRefused("the replicas of herd.e2e.example.com/north were not changed from 2 to 3", "nothing confirms the change", "kubelet-guard.io/confirm-replicas=3"))
		Expect(set(ordinary, 3, annotationConfirm, "many")).To(BeRefused(`"many" is neither a number such as 3 nor a range such as 2-10`))
		Expect(set(ordinary, 3, annotationConfirm, "4")).To(BeRefused("confirms 4"))
		Expect(set(ordinary, 3, annotationConfirm, "2-5")).To(Succeed())
		Expect(set(ordinary, 9, annotationOverride, overrideFor(time.Hour, "x"))).To(BeRefused("may not use the verb override"))
		Expect(set(overrider, 9, annotationOverride, overrideFor(time.Hour, "ticket 19"))).To(Succeed())
	}, SpecTimeout(specTimeout))
})

var _ = Describe("the incident of the deleted definition", func() {
	const objects = 1000

	It("is stopped: a definition with 1,000 objects is deleted by hand", func(ctx SpecContext) {
		gvr := newDefinition(ctx, "machines", cascading)
		template := customObject(gvr, "", 1, nil)
		list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": "List"}}
		for i := range objects {
			object := template.DeepCopy()
			object.SetName(fmt.Sprintf("machine-%04d", i))
			list.Items = append(list.Items, *object)
		}
		kubectlInput(ctx, string(framework.Must(json.Marshal(list))), "create", "-f", "-").ExpectDone()
		count := func() int {
			return len(framework.Must(dynamicClient.Resource(gvr).List(ctx, metav1.ListOptions{})).Items)
		}
		Expect(count()).To(Equal(objects))

		By("deleting the definition as an ordinary user and as the administrator")
		ordinary.kubectl(ctx, "delete", "crd", "machines.e2e.example.com", "--wait=false").ExpectRefused("its deletion would delete its custom resources: 1000 (such as machine-0000)")
		Expect(dynamicClient.Resource(definitions).Delete(ctx, "machines.e2e.example.com", metav1.DeleteOptions{})).To(BeRefused("custom resources: 1000"))
		AddReportEntry("objects left after the refused deletion", count())
		Expect(count()).To(Equal(objects), "objects that are left")

		By("deleting the objects first, as the refusal says")
		ordinary.kubectl(ctx, "delete", "machines.e2e.example.com", "--all", "--wait=false").ExpectDone()
		Eventually(ctx, count).WithTimeout(definitionWait).Should(BeZero())
		Expect(ordinary.dynamic().Resource(definitions).Delete(ctx, "machines.e2e.example.com", metav1.DeleteOptions{})).To(Succeed())
	}, SpecTimeout(specTimeout))
})
