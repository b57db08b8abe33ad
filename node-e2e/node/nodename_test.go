package node

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// podGC covers what the pod garbage collector of the control plane waits when a node is
// gone (40 s), and its interval (20 s).
const podGC = 90 * time.Second

var _ = Describe("A kubelet with another node name", Label(labelGuarded), func() {
	It("and the credentials of the old one stops nothing, shows what it does not manage, and manages it under its old name", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("protected", protected), s.newPod("unprotected"))
		restartKubelet(ctx, testnode.KubeletChange{HostnameOverride: wrongName()})
		stayAlive(ctx, survivalPeriod, pods...)
		found := framework.Must(guardPod(ctx, pods[0].uid))
		Expect(found).NotTo(BeNil(), "pod %s in %s", pods[0], guard.PodsPath)
		Expect(found.State).To(Equal(guard.Protected), "state of pod %s in %s", pods[0], guard.PodsPath)
		Expect(found.ObjectPresent).To(BeFalse(), "the kubelet sees the object of pod %s", pods[0])
		metrics := mustReadMetrics(ctx)
		Expect(metrics.Sum(protectedPods)).To(BeNumerically("==", 1), protectedPods)
		Expect(metrics.Sum(unconfirmedPods)).To(BeNumerically("==", 1), unconfirmedPods)
		By("giving the kubelet its name back")
		restartKubelet(ctx, unchanged)
		s.awaitKnownAgain(ctx, pods[0])
		Expect(mustReadMetrics(ctx).Sum(unconfirmedPods)).To(BeZero(), unconfirmedPods)
		s.deleteExplicitly(ctx, pods...)
	})

	It("ends the pods of the old name that the control plane has deleted, once that is recorded", Label(labelControlPlane), func(ctx SpecContext) {
		applyManifests(ctx)
		s, pod := runProtected(ctx)
		releaseLeft(pod)
		DeferCleanup(func(ctx context.Context) error {
			return ctrlclient.IgnoreNotFound(client.CoreV1().Nodes().Delete(ctx, wrongName(), metav1.DeleteOptions{}))
		})
		restartKubelet(ctx, testnode.KubeletChange{NodeName: wrongName()})
		// The restored pod is bound to the old name.
		s.awaitHeld(ctx, pod, guard.AdmissionRejected, guard.PodVanished)
		By("removing the old node, as an operator does after a change of names")
		Expect(client.CoreV1().Nodes().Delete(ctx, provider.Node().Name(), metav1.DeleteOptions{})).To(Succeed())
		Eventually(func(g Gomega) {
			left := framework.Try(client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})).In(g)
			g.Expect(left.Items).To(BeEmpty(), "pods of the namespace %s", s.namespace)
		}).WithContext(ctx).WithTimeout(podGC).Should(Succeed(), "the control plane deletes the pods of a node that is gone")
		stayAlive(ctx, holdPeriod, pod)
		By("recording the deletion")
		expectReleased(ctx, pod, "record under a new node name", guard.PodDeletionRecord, recordDeletion(ctx, pod), recordTimeout)
		s.awaitGone(ctx, pod, deletionSlack)
	})
})
