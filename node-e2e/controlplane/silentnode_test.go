package controlplane

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/framework"
)

// heartbeat is far below the time after which a silent node is given up.
const heartbeat = 5 * time.Second

// createSilentNode makes a Node object that stays Ready and has no kubelet: what is
// deleted there begins to terminate and never ends, so that a spec can count deletes
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
		Expect(nodes.Delete(ctx, node.Name, metav1.DeleteOptions{})).To(Or(Succeed(), MatchError(apierrors.IsNotFound, "is not found")))
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
		for _, pod := range created {
			endSilentPod(ctx, pod)
		}
	}, NodeTimeout(podStart))
	return created
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
