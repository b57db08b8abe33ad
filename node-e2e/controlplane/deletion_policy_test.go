package controlplane

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/framework"
)

// controllerWait is how long a controller is watched that must not do something, and
// how long one may take that must.
const controllerWait = 20 * time.Second

// resourceIn is a resource of a namespace, or of the cluster where that is empty.
func resourceIn(d dynamic.Interface, gvr schema.GroupVersionResource, namespace string) dynamic.ResourceInterface {
	if namespace == "" {
		return d.Resource(gvr)
	}
	return d.Resource(gvr).Namespace(namespace)
}

func toUnstructured(object any) *unstructured.Unstructured {
	GinkgoHelper()
	return &unstructured.Unstructured{Object: framework.Must(runtime.DefaultUnstructuredConverter.ToUnstructured(object))}
}

// workloads make a workload, by resource, not yet created. The labels are those of the
// object, not of its pods.
func workloads() map[string]func(name string, replicas int, labels map[string]string) any {
	return map[string]func(string, int, map[string]string) any{
		"deployments.apps": func(name string, replicas int, labels map[string]string) any {
			return newDeployment(name, replicas, labels)
		},
		"statefulsets.apps": func(name string, replicas int, labels map[string]string) any {
			set := framework.NewStatefulSet(name, replicas, podTemplate(framework.AppLabels(name)))
			set.Labels = labels
			return set
		},
		"replicasets.apps": func(name string, replicas int, labels map[string]string) any {
			return &appsv1.ReplicaSet{
				TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"},
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
				Spec: appsv1.ReplicaSetSpec{
					Replicas: ptr.To(int32(replicas)),
					Selector: framework.AppSelector(name),
					Template: podTemplate(framework.AppLabels(name)),
				},
			}
		},
		"replicationcontrollers": func(name string, replicas int, labels map[string]string) any {
			return &corev1.ReplicationController{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ReplicationController"},
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
				Spec: corev1.ReplicationControllerSpec{
					Replicas: ptr.To(int32(replicas)), Selector: framework.AppLabels(name),
					Template: ptr.To(podTemplate(framework.AppLabels(name))),
				},
			}
		},
	}
}

// workloadResource is the resource of a name such as deployments.apps.
func workloadResource(name string) schema.GroupVersionResource {
	return schema.ParseGroupResource(name).WithVersion("v1")
}

// awaitReady waits for the ready replicas in the status of a workload of any kind.
func awaitReady(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, replicas int64) {
	GinkgoHelper()
	Eventually(ctx, func() (int64, error) {
		object, err := dynamicClient.Resource(gvr).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return 0, err
		}
		ready, _, err := unstructured.NestedInt64(object.Object, "status", "readyReplicas")
		return ready, err
	}).WithTimeout(podStart).Should(Equal(replicas), "ready replicas of %s %s", gvr.Resource, name)
}

var _ = Describe("deletion-protection: always", Label(labelPolicies), func() {
	always := map[string]string{labelDeletionProtection: "always"}
	metadata := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name, Labels: always} }
	namespaced := map[string]func() any{
		"configmaps": func() any {
			return &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metadata("kept")}
		},
		"services": func() any {
			return &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metadata("kept"),
				Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}}
		},
		"persistentvolumeclaims": func() any {
			return &corev1.PersistentVolumeClaim{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}, ObjectMeta: metadata("kept"),
				Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
					Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
				}}
		},
		"deployments.apps": func() any { return workloads()["deployments.apps"]("kept", 0, always) },
	}

	DescribeTable("refuses to delete it, and the advice of the refusal lets it go",
		func(ctx SpecContext, name string) {
			namespace, gvr := newNamespace(ctx, nil), workloadResource(name)
			framework.Must(resourceIn(dynamicClient, gvr, namespace).Create(ctx, toUnstructured(namespaced[name]()), metav1.CreateOptions{}))
			as := resourceIn(ordinary.dynamic(), gvr, namespace)

			refusal := as.Delete(ctx, "kept", metav1.DeleteOptions{})
			Expect(refusal).To(BeRefused(name+" kept was not deleted", "deletion-protection=always"))
			Expect(as.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})).To(BeRefused())
			ordinary.followAdvice(ctx, refusal)
			Expect(as.Delete(ctx, "kept", metav1.DeleteOptions{})).To(Succeed())
		},
		Entry(nil, SpecTimeout(specTimeout), "configmaps"), Entry(nil, SpecTimeout(specTimeout), "services"), Entry(nil, SpecTimeout(specTimeout), "persistentvolumeclaims"), Entry(nil, SpecTimeout(specTimeout), "deployments.apps"),
	)

	It("refuses to delete a namespace and a definition", func(ctx SpecContext) {
		namespace := newNamespace(ctx, always)
		as := ordinary.client()
		refusal := as.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})
		Expect(refusal).To(BeRefused("namespaces " + namespace + " was not deleted"))
		ordinary.followAdvice(ctx, refusal)
		Expect(as.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})).To(Succeed())

		definitions := schema.GroupVersionResource{Group: apiextensionsv1.GroupName, Version: "v1", Resource: "customresourcedefinitions"}
		refusal = ordinary.dynamic().Resource(definitions).Delete(ctx, "poddeletions.kubelet-guard.io", metav1.DeleteOptions{})
		Expect(refusal).To(BeRefused("poddeletions.kubelet-guard.io was not deleted"), "the project's own definitions are protected")
	}, SpecTimeout(specTimeout))

	It("spares a labelled object from kubectl delete --all, and lets the others go", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		for name, labels := range map[string]map[string]string{"kept": always, "other": nil} {
			framework.Must(client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{}))
		}
		ordinary.kubectl(ctx, "delete", "configmaps", "--all", "-n", namespace).ExpectRefused("configmaps kept was not deleted")
		_, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, "other", metav1.GetOptions{})
		Expect(apierrors.IsNotFound(err)).To(BeTrue(), "the unlabelled object: %v", err)
	}, SpecTimeout(specTimeout))

	It("holds against the garbage collector and the namespace controller", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		configMaps := client.CoreV1().ConfigMaps(namespace)
		owner := framework.Must(configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{}))
		owned := []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}}
		for name, labels := range map[string]map[string]string{"kept": always, "unlabelled": nil} {
			framework.Must(configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, OwnerReferences: owned}}, metav1.CreateOptions{}))
		}
		By("deleting the owner")
		Expect(configMaps.Delete(ctx, "owner", metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)})).To(Succeed())
		Eventually(ctx, func() error { return framework.ErrorOf(configMaps.Get(ctx, "unlabelled", metav1.GetOptions{})) }).WithTimeout(controllerWait).Should(Satisfy(apierrors.IsNotFound), "the garbage collector to collect the unlabelled object")
		_, err := configMaps.Get(ctx, "kept", metav1.GetOptions{})
		Expect(err).NotTo(HaveOccurred(), "the labelled object")

		By("deleting the namespace")
		Expect(client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).To(Succeed())
		Eventually(ctx, func(g Gomega) {
			g.Expect(framework.Try(client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})).In(g).Status.Conditions).To(ContainElement(And(
				HaveField("Type", corev1.NamespaceDeletionContentFailure),
				HaveField("Status", corev1.ConditionTrue),
				HaveField("Message", ContainSubstring("configmaps kept was not deleted")),
			)))
		}).WithTimeout(controllerWait).Should(Succeed(), "the refusal in the status of the namespace")
		_, err = configMaps.Get(ctx, "kept", metav1.GetOptions{})
		Expect(err).NotTo(HaveOccurred(), "the labelled object")
	}, SpecTimeout(specTimeout))
})

var _ = Describe("deletion-protection: cascading on a workload", Label(labelPolicies), func() {
	cascading := map[string]string{labelDeletionProtection: "cascading"}

	DescribeTable("lets it go only at zero replicas",
		func(ctx SpecContext, name string) {
			namespace, gvr := newNamespace(ctx, nil), workloadResource(name)
			framework.Must(resourceIn(dynamicClient, gvr, namespace).Create(ctx, toUnstructured(workloads()[name]("web", 1, cascading)), metav1.CreateOptions{}))
			awaitReady(ctx, gvr, namespace, "web", 1)
			as := resourceIn(ordinary.dynamic(), gvr, namespace)

			refusal := as.Delete(ctx, "web", metav1.DeleteOptions{})
			Expect(refusal).To(BeRefused(name+" web was not deleted", "spec.replicas is 1"))
			ordinary.followAdvice(ctx, refusal)
			Eventually(ctx, func() error {
				return as.Delete(ctx, "web", metav1.DeleteOptions{})
			}).WithTimeout(podStart).Should(Succeed(), "the deletion once no replica is left")
		},
		Entry(nil, SpecTimeout(specTimeout), "deployments.apps"), Entry(nil, SpecTimeout(specTimeout), "statefulsets.apps"), Entry(nil, SpecTimeout(specTimeout), "replicasets.apps"), Entry(nil, SpecTimeout(specTimeout), "replicationcontrollers"),
	)

	It("waits until the controller has seen the zero", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		createDeployment(ctx, namespace, newDeployment("web", 1, cascading))
		Expect(cluster.ControllerManager().Stop(ctx)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			if cluster.ControllerManager().PID() == 0 {
				Expect(cluster.ControllerManager().Start(ctx)).To(Succeed())
			}
		}, NodeTimeout(podStart))
		ordinary.kubectl(ctx, "scale", "deployment", "web", "-n", namespace, "--replicas=0").ExpectDone()
		as := ordinary.client().AppsV1().Deployments(namespace)
		refusal := as.Delete(ctx, "web", metav1.DeleteOptions{})
		Expect(refusal).To(BeRefused("its controller has not seen the last change yet"))
		Expect(cluster.ControllerManager().Start(ctx)).To(Succeed())
		Eventually(ctx, func() error { return as.Delete(ctx, "web", metav1.DeleteOptions{}) }).
			WithTimeout(podStart).Should(Succeed(), "the deletion once the status says zero")
	}, SpecTimeout(specTimeout))

	It("lets a DaemonSet go only when none of its pods is left", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		daemonSets := client.AppsV1().DaemonSets(namespace)
		agent := framework.NewDaemonSet("agent", podTemplate(framework.AppLabels("agent")))
		agent.Labels = cascading
		framework.Must(daemonSets.Create(ctx, agent, metav1.CreateOptions{}))
		Eventually(ctx, func(g Gomega) int32 {
			return framework.Try(daemonSets.Get(ctx, "agent", metav1.GetOptions{})).In(g).Status.NumberReady
		}).WithTimeout(podStart).Should(BeEquivalentTo(1), "ready pods of the DaemonSet")
		as := ordinary.client().AppsV1().DaemonSets(namespace)
		refusal := as.Delete(ctx, "agent", metav1.DeleteOptions{})
		Expect(refusal).To(BeRefused("daemonsets.apps agent was not deleted", "1 of its pods run"))
		ordinary.followAdvice(ctx, refusal)
		Eventually(ctx, func() error { return as.Delete(ctx, "agent", metav1.DeleteOptions{}) }).
			WithTimeout(podStart).Should(Succeed(), "the deletion once no pod is left")
	}, SpecTimeout(specTimeout))
})
