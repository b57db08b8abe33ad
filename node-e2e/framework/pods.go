package framework

import (
	"context"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/images"
)

// The workload of all pods.
const (
	WorkloadContainer = "workload"
	WorkloadPort      = 8080
)

// NewContainer returns a container that serves HTTP and is ready as soon as it responds.
func NewContainer(name string, port int32) corev1.Container {
	return corev1.Container{
		Name:            name,
		Image:           images.Workload,
		ImagePullPolicy: corev1.PullNever,
		Ports:           []corev1.ContainerPort{{ContainerPort: port}},
		ReadinessProbe: &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(port)}},
			PeriodSeconds: 1,
		},
	}
}

// DeletePods deletes the pods of a namespace and expects that none is left. It is for
// Eventually.
func DeletePods(g gomega.Gomega, ctx context.Context, client kubernetes.Interface, namespace string) {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	g.Expect(err).NotTo(gomega.HaveOccurred())
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			err := client.CoreV1().Pods(namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](1)})
			g.Expect(ctrlclient.IgnoreNotFound(err)).To(gomega.Succeed())
		}
	}
	g.Expect(pods.Items).To(gomega.BeEmpty(), "pods of the namespace %s", namespace)
}

// ExpectPodGone checks that the API does not have a pod any more, but at most another one of
// its name.
func ExpectPodGone(g gomega.Gomega, ctx context.Context, client kubernetes.Interface, namespace, name string, uid types.UID) {
	pod, err := client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		g.Expect(pod.UID).NotTo(gomega.Equal(uid), "pod %s is still in the API, phase %s, deleted at %v", name, pod.Status.Phase, pod.DeletionTimestamp)
		return
	}
	g.Expect(err).To(gomega.MatchError(apierrors.IsNotFound, "is not found"), "read pod %s", name)
}

// DeleteNamespace deletes a namespace in which nothing runs any more, so it does not wait
// for the namespace controller.
func DeleteNamespace(ctx context.Context, client kubernetes.Interface, namespace string) {
	ginkgo.GinkgoHelper()
	gomega.Expect(ctrlclient.IgnoreNotFound(client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}))).To(gomega.Succeed())
}

// AppLabels are the labels by which a workload or a budget selects the pods of an app.
func AppLabels(app string) map[string]string { return map[string]string{"app": app} }

// AppSelector selects the pods of an app.
func AppSelector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: AppLabels(app)}
}

// NewPodTemplate returns a template of pods with these labels and one container, which have
// no token and the grace period of all specs.
func NewPodTemplate(labels map[string]string, container corev1.Container) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(GracePeriod.Seconds())),
			AutomountServiceAccountToken:  ptr.To(false),
			Containers:                    []corev1.Container{container},
		},
	}
}

// NewPod returns a pod of a template, not yet created.
func NewPod(name string, template corev1.PodTemplateSpec) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = name
	return pod
}

// NewDeployment returns a Deployment, not yet created, over the pods of the app with its
// name.
func NewDeployment(name string, replicas int, template corev1.PodTemplateSpec) *appsv1.Deployment {
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DeploymentSpec{Replicas: ptr.To(int32(replicas)), Selector: AppSelector(name), Template: template},
	}
}

// NewStatefulSet is NewDeployment for a StatefulSet.
func NewStatefulSet(name string, replicas int, template corev1.PodTemplateSpec) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.StatefulSetSpec{Replicas: ptr.To(int32(replicas)), ServiceName: name, Selector: AppSelector(name), Template: template},
	}
}

// NewDaemonSet is NewDeployment for a DaemonSet.
func NewDaemonSet(name string, template corev1.PodTemplateSpec) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "DaemonSet"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       appsv1.DaemonSetSpec{Selector: AppSelector(name), Template: template},
	}
}

// NewBudget returns a disruption budget, not yet created, over the pods of an app.
func NewBudget(name, app string, minAvailable int) *policyv1.PodDisruptionBudget {
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt(minAvailable)), Selector: AppSelector(app)},
	}
}

// CreateBudget creates a budget and waits until it allows so many disruptions.
func CreateBudget(ctx context.Context, client kubernetes.Interface, namespace string, budget *policyv1.PodDisruptionBudget, allowed int) {
	ginkgo.GinkgoHelper()
	Must(client.PolicyV1().PodDisruptionBudgets(namespace).Create(ctx, budget, metav1.CreateOptions{}))
	AwaitAllowed(ctx, client, namespace, budget.Name, allowed)
}

// AwaitAllowed waits until the disruption controller has counted the pods of a budget, and
// it allows so many disruptions.
func AwaitAllowed(ctx context.Context, client kubernetes.Interface, namespace, name string, allowed int) {
	ginkgo.GinkgoHelper()
	gomega.Eventually(ctx, func(g gomega.Gomega) {
		budget := Try(client.PolicyV1().PodDisruptionBudgets(namespace).Get(ctx, name, metav1.GetOptions{})).In(g)
		g.Expect(budget.Status.ObservedGeneration).To(gomega.Equal(budget.Generation))
		g.Expect(budget.Status.DisruptedPods).To(gomega.BeEmpty(), "unconfirmed disruptions")
		g.Expect(budget.Status.DisruptionsAllowed).To(gomega.BeEquivalentTo(allowed), "allowed disruptions")
	}).WithTimeout(APILag).Should(gomega.Succeed(), "the count of budget %s", name)
}
