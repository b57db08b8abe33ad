package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gcustom"
	gomegatypes "github.com/onsi/gomega/types"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/images"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// podStart covers sandbox, network and container on a loaded machine.
const podStart = time.Minute

// specNamespacePrefix starts the names of the namespaces of specs.
const specNamespacePrefix = "spec-"

// newNamespace makes the spec's namespace, with labels in addition to the suite's own. At
// the end it goes, with all that is in it, whatever protects them.
func newNamespace(ctx context.Context, labels map[string]string) string {
	GinkgoHelper()
	namespace := framework.Must(client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: specNamespacePrefix, Labels: labels},
	}, metav1.CreateOptions{}))
	DeferCleanup(func(ctx SpecContext) { removeNamespace(ctx, namespace.Name) }, NodeTimeout(podStart))
	Eventually(ctx, func() error {
		return framework.ErrorOf(client.CoreV1().ServiceAccounts(namespace.Name).Get(ctx, "default", metav1.GetOptions{}))
	}).WithTimeout(podStart).Should(Succeed(), "the default service account of the namespace")
	return namespace.Name
}

// disarmed are the kinds that specs protect.
var disarmed = []schema.GroupVersionResource{
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "apps", Version: "v1", Resource: "replicasets"},
	{Group: "apps", Version: "v1", Resource: "statefulsets"},
	{Group: "apps", Version: "v1", Resource: "daemonsets"},
	{Version: "v1", Resource: "replicationcontrollers"},
	{Version: "v1", Resource: "services"},
	{Version: "v1", Resource: "persistentvolumeclaims"},
	{Version: "v1", Resource: "configmaps"},
	{Version: "v1", Resource: "pods"},
}

// removeNamespace disarms what is protected in a namespace, by override, and
// deletes it. It does not wait for the end of the namespace: awaitNamespacesGone does.
func removeNamespace(ctx context.Context, name string) {
	GinkgoHelper()
	disarm := fmt.Sprintf(`{"metadata":{"labels":{%q:null,%q:null,%q:null},"annotations":{%q:%q}}}`,
		labelExplicitDeletion, labelDeletionProtection, labelReplicasProtection,
		annotationOverride, overrideFor(time.Hour, "end of the spec"))
	for _, gvr := range disarmed {
		resource := dynamicClient.Resource(gvr).Namespace(name)
		eachOf(framework.Must(resource.List(ctx, metav1.ListOptions{})).Items, func(object unstructured.Unstructured) {
			labels := object.GetLabels()
			if labels[labelDeletionProtection] == "" && labels[labelExplicitDeletion] == "" {
				return
			}
			_, err := resource.Patch(ctx, object.GetName(), types.MergePatchType, []byte(disarm), metav1.PatchOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				GinkgoWriter.Printf("clean-up: %s %s: %v\n", gvr.Resource, object.GetName(), err)
			}
		})
	}
	_, err := client.CoreV1().Namespaces().Patch(ctx, name, types.MergePatchType, []byte(disarm), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return // the spec has deleted it
	}
	Expect(err).NotTo(HaveOccurred())
	err = client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{})
	if !apierrors.IsNotFound(err) {
		Expect(err).NotTo(HaveOccurred())
	}
}

// namespaceEnd covers the end of the last spec's pods.
const namespaceEnd = 90 * time.Second

// awaitNamespacesGone waits until no namespace of a spec is left: one that hangs is a fault.
func awaitNamespacesGone(ctx context.Context) {
	Eventually(ctx, func(g Gomega) {
		namespaces := framework.Try(client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})).In(g)
		var left []string
		for _, namespace := range namespaces.Items {
			if !strings.HasPrefix(namespace.Name, specNamespacePrefix) {
				continue
			}
			for _, condition := range namespace.Status.Conditions {
				if condition.Status == corev1.ConditionTrue {
					left = append(left, fmt.Sprintf("%s: %s", condition.Type, condition.Message))
				}
			}
			left = append(left, namespace.Name)
		}
		g.Expect(left).To(BeEmpty(), "namespaces of specs")
	}).WithTimeout(namespaceEnd).Should(Succeed(), "the end of all namespaces")
}

// The keys of the project, under short names.
const (
	labelExplicitDeletion   = guardv1alpha1.ExplicitDeletionLabel
	labelProtectPods        = guardv1alpha1.ProtectPodsLabel
	labelDeletionProtection = guardv1alpha1.DeletionProtectionLabel
	labelReplicasProtection = guardv1alpha1.ReplicasProtectionLabel
	annotationConfirm       = guardv1alpha1.ConfirmReplicasAnnotation
	annotationOverride      = guardv1alpha1.OverrideAnnotation
)

// overrideFor is the value of an override annotation.
func overrideFor(life time.Duration, reason string) string {
	return time.Now().Add(life).UTC().Format(time.RFC3339) + " " + reason
}

// podTemplate is a pod that runs the workload and ends at once on SIGTERM.
func podTemplate(labels map[string]string) corev1.PodTemplateSpec {
	return framework.NewPodTemplate(labels, corev1.Container{Name: framework.WorkloadContainer, Image: images.Workload, ImagePullPolicy: corev1.PullNever})
}

// newDeployment is a Deployment of the workload, not yet created. The labels are
// those of the object, not of its pods.
func newDeployment(name string, replicas int, labels map[string]string) *appsv1.Deployment {
	deployment := framework.NewDeployment(name, replicas, podTemplate(framework.AppLabels(name)))
	deployment.Labels = labels
	return deployment
}

// newPod is a pod of the workload, not yet created, with the label app and others.
func newPod(name string, labels map[string]string) *corev1.Pod {
	all := framework.AppLabels(name)
	maps.Copy(all, labels)
	return framework.NewPod(name, podTemplate(all))
}

// createPod creates a pod as the administrator and waits until it is Ready.
func createPod(ctx context.Context, namespace string, pod *corev1.Pod) *corev1.Pod {
	GinkgoHelper()
	return awaitPodReady(ctx, namespace, framework.Must(client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})).Name)
}

// awaitPodReady waits until a pod is Ready and returns it.
func awaitPodReady(ctx context.Context, namespace, name string) *corev1.Pod {
	GinkgoHelper()
	var pod *corev1.Pod
	Eventually(ctx, func() (string, error) {
		var err error
		if pod, err = client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return "", err
		}
		if testnode.PodReady(pod) {
			return "Ready", nil
		}
		return string(pod.Status.Phase), nil
	}).WithTimeout(podStart).Should(Equal("Ready"), "pod %s/%s", namespace, name)
	return pod
}

// createDeployment creates a Deployment as the administrator and waits until all
// its replicas are available.
func createDeployment(ctx context.Context, namespace string, deployment *appsv1.Deployment) *appsv1.Deployment {
	GinkgoHelper()
	created := framework.Must(client.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}))
	Eventually(ctx, func() (int32, error) {
		var err error
		if created, err = client.AppsV1().Deployments(namespace).Get(ctx, deployment.Name, metav1.GetOptions{}); err != nil {
			return 0, err
		}
		return created.Status.AvailableReplicas, nil
	}).WithTimeout(podStart).Should(Equal(*deployment.Spec.Replicas), "available replicas of Deployment %s/%s", namespace, deployment.Name)
	return created
}

// awaitGone waits until a pod or a namespace is gone, or another one has its name.
func awaitGone(ctx context.Context, object metav1.Object) {
	GinkgoHelper()
	Eventually(ctx, func() (types.UID, error) {
		var live metav1.Object
		var err error
		if namespace := object.GetNamespace(); namespace != "" {
			live, err = client.CoreV1().Pods(namespace).Get(ctx, object.GetName(), metav1.GetOptions{})
		} else {
			live, err = client.CoreV1().Namespaces().Get(ctx, object.GetName(), metav1.GetOptions{})
		}
		return live.GetUID(), ctrlclient.IgnoreNotFound(err)
	}).WithTimeout(podStart).ShouldNot(Equal(object.GetUID()), "%s is still there", object.GetName())
}

// BeNotFound matches the API server's error about an object that is not there.
func BeNotFound() gomegatypes.GomegaMatcher { return MatchError(apierrors.IsNotFound, "is not found") }

// BeRefused succeeds for the error of a request that a policy or the webhook has
// refused, with every one of the texts in its message.
func BeRefused(texts ...string) gomegatypes.GomegaMatcher {
	return gcustom.MakeMatcher(func(err error) (bool, error) {
		var status apierrors.APIStatus
		if !errors.As(err, &status) || !apierrors.IsForbidden(err) {
			return false, nil
		}
		// A refusal by authorization is none of ours.
		message := status.Status().Message
		matched, matchErr := And(ContainSubstring("kubelet-guard"), haveSubstrings(texts)).Match(message)
		return matched, matchErr
	}).WithTemplate("Expected\n{{.FormattedActual}}\n{{.To}} be a refusal by the guard whose message has\n{{format .Data 1}}", texts)
}

func haveSubstrings(texts []string) gomegatypes.GomegaMatcher {
	matchers := []gomegatypes.GomegaMatcher{Not(BeEmpty())}
	for _, text := range texts {
		matchers = append(matchers, ContainSubstring(text))
	}
	return And(matchers...)
}

// heartbeat is far below the time after which a silent node is given up.
const heartbeat = 5 * time.Second

// createSilentNode makes a Node object that stays Ready and has no kubelet: what is
// deleted there starts to terminate and never ends, so that a spec can count deletes
// with more pods than a node could run. It goes with the spec.
func createSilentNode(ctx context.Context, labels map[string]string) string {
	GinkgoHelper()
	nodes := client.CoreV1().Nodes()
	node := framework.Must(nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{GenerateName: "silent-", Labels: labels}}, metav1.CreateOptions{}))
	leases := client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	beating, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	DeferCleanup(func(ctx SpecContext) {
		stop()
		<-done
		Expect(nodes.Delete(ctx, node.Name, metav1.DeleteOptions{})).To(Or(Succeed(), BeNotFound()))
	}, NodeTimeout(podStart))
	beat := func(ctx context.Context) error {
		node.Status.Allocatable = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1000")}
		node.Status.Capacity = node.Status.Allocatable
		node.Status.Conditions = []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Spec", LastHeartbeatTime: metav1.Now(), LastTransitionTime: node.CreationTimestamp,
		}}
		current, err := nodes.Get(ctx, node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		current.Status = node.Status
		if _, err := nodes.UpdateStatus(ctx, current, metav1.UpdateOptions{}); err != nil {
			return err
		}
		lease := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: node.Name, Namespace: corev1.NamespaceNodeLease},
			Spec: coordinationv1.LeaseSpec{
				HolderIdentity: &node.Name, LeaseDurationSeconds: ptr.To[int32](40), RenewTime: ptr.To(metav1.NowMicro()),
			},
		}
		if _, err = leases.Create(ctx, lease, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			present, err := leases.Get(ctx, node.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			present.Spec = lease.Spec
			return framework.ErrorOf(leases.Update(ctx, present, metav1.UpdateOptions{}))
		}
		return err
	}
	go func() {
		defer close(done)
		wait.UntilWithContext(beating, func(ctx context.Context) {
			if err := beat(ctx); err != nil && ctx.Err() == nil {
				GinkgoWriter.Printf("heartbeat of %s: %v\n", node.Name, err)
			}
		}, heartbeat)
	}()
	Eventually(ctx, func(g Gomega) {
		g.Expect(framework.Try(nodes.Get(ctx, node.Name, metav1.GetOptions{})).In(g).Spec.Taints).To(BeEmpty(), "taints")
	}).WithTimeout(podStart).Should(Succeed(), "node %s to be usable", node.Name)
	return node.Name
}

// createSilentPods creates pods that are bound to a silent node, and says of them
// what a kubelet would: they run and are ready.
func createSilentPods(ctx context.Context, namespace, node string, pods ...*corev1.Pod) []*corev1.Pod {
	GinkgoHelper()
	created := make([]*corev1.Pod, len(pods))
	for i, pod := range pods {
		pod.Spec.NodeName = node
		// More than a spec lasts: nobody ends them.
		pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](600)
		created[i] = reportRunning(ctx, framework.Must(client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})))
	}
	DeferCleanup(func(ctx SpecContext) {
		eachOf(created, func(pod *corev1.Pod) { endSilentPod(ctx, pod) })
	}, NodeTimeout(podStart))
	return created
}

// eachOf cleans up several objects at a time: a spec may have hundreds, which is minutes one
// after the other when other suites run.
func eachOf[T any](objects []T, cleanUp func(T)) {
	var group errgroup.Group
	group.SetLimit(16)
	for _, object := range objects {
		group.Go(func() error {
			defer GinkgoRecover()
			cleanUp(object)
			return nil
		})
	}
	_ = group.Wait() // what fails is reported by cleanUp
}

// reportRunning says of a pod on a silent node that it runs and is ready.
func reportRunning(ctx context.Context, pod *corev1.Pod) *corev1.Pod {
	GinkgoHelper()
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{
		Name: pod.Spec.Containers[0].Name, Ready: true, ContainerID: "none://" + pod.Name, Image: pod.Spec.Containers[0].Image,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
	return framework.Must(client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}))
}

// endSilentPod removes a pod on a silent node, by override: nobody else does, and the
// namespace waits for it.
func endSilentPod(ctx context.Context, pod *corev1.Pod) {
	pods := client.CoreV1().Pods(pod.Namespace)
	override := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, annotationOverride, overrideFor(time.Hour, "end of the spec"))
	_, err := pods.Patch(ctx, pod.Name, types.MergePatchType, override, metav1.PatchOptions{})
	if err == nil {
		err = pods.Delete(ctx, pod.Name, *metav1.NewDeleteOptions(0))
	}
	if err != nil && !apierrors.IsNotFound(err) {
		GinkgoWriter.Printf("clean-up: %v\n", err)
	}
}
