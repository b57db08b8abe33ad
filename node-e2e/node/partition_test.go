package node

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// A StatefulSet's pod whose node is cut off: it is force-deleted, and the controller
// starts its successor elsewhere.
var _ = Describe("A pod that is force-deleted while its node is cut off", Label(labelGuarded), func() {
	It("ends when the node is back in time to hear of it", func(ctx SpecContext) {
		s := newScene(ctx)
		link := linkKubelet(ctx)
		pod := s.runLinked(ctx)
		Expect(link.Cut()).To(Succeed())
		s.deleteUnheard(ctx, pod)
		restored := time.Now()
		Expect(link.Restore()).To(Succeed())
		awaitEvidence(ctx, pod, guard.DeletionTimestampSeen)
		took := pod.awaitHonoured(ctx, restored, killTimeout)
		framework.Progress("short partition: pod ended %.1f s after the reconnect", took.Seconds())
		s.awaitGone(ctx, pod, deletionSlack)
	})

	It("is held beside its successor when nobody remembers the deletion, until that is recorded", Label(labelControlPlane), func(ctx SpecContext) {
		applyManifests(ctx)
		s := newScene(ctx)
		link := linkKubelet(ctx)
		pod := s.runLinked(ctx)
		Expect(link.Cut()).To(Succeed())
		s.deleteUnheard(ctx, pod)
		successor := s.create(ctx, s.newPod(pod.name, protected, func(pod *corev1.Pod) { pod.Spec.NodeName = "elsewhere" }))
		// No kubelet ends it.
		DeferCleanup(client.CoreV1().Pods(s.namespace).Delete, successor.Name, immediately)
		outlastMemory(ctx, link)
		Expect(link.Restore()).To(Succeed())
		s.awaitVanished(ctx, pod)
		expectNodeEvent(ctx, guard.EventKillRefused, string(pod.uid), string(guard.PodVanished))
		Eventually(expectNodeCondition).WithContext(ctx).WithArguments(ctx, provider.Node().Name(), corev1.ConditionTrue).WithTimeout(apiLag).
			Should(Succeed(), "the node says that it holds pods")
		stayAlive(ctx, holdPeriod, pod)

		By("recording the deletion")
		expectReleased(ctx, pod, "record after a partition", guard.PodDeletionRecord, recordDeletion(ctx, pod), recordTimeout)
		s.awaitGone(ctx, pod, deletionSlack)
		left, err := client.CoreV1().Pods(s.namespace).Get(ctx, successor.Name, metav1.GetOptions{})
		Expect(err).NotTo(HaveOccurred(), "read the successor")
		Expect(left.UID).To(Equal(successor.UID), "UID of the successor")
		Expect(left.DeletionTimestamp).To(BeNil(), "deletion of the successor")
	})

	It("ends when nobody remembers the deletion, but it was recorded", Label(labelControlPlane), func(ctx SpecContext) {
		applyManifests(ctx)
		s := newScene(ctx)
		link := linkKubelet(ctx)
		pod := s.runLinked(ctx)
		Expect(link.Cut()).To(Succeed())
		s.deleteUnheard(ctx, pod)
		recordDeletion(ctx, pod)
		outlastMemory(ctx, link)
		restored := time.Now()
		Expect(link.Restore()).To(Succeed())
		expectReleased(ctx, pod, "record from during a partition", guard.PodDeletionRecord, restored, recordTimeout)
		s.awaitGone(ctx, pod, deletionSlack)
	})
})

// linkKubelet restarts the kubelet so that it reaches the API server through a link.
func linkKubelet(ctx context.Context) testnode.Link {
	GinkgoHelper()
	link, err := provider.Node().NewLink()
	Expect(err).NotTo(HaveOccurred(), "make a link to the API server")
	DeferCleanup(link.Close)
	restartKubelet(ctx, testnode.KubeletChange{Link: link})
	// Before the kubelet connects directly again.
	DeferCleanup(link.Restore)
	return link
}

// runLinked runs a protected pod that no clean-up would find once it is deleted.
func (s *scene) runLinked(ctx context.Context) *subject {
	GinkgoHelper()
	pod := s.run(ctx, s.newPod("web-0", protected))[0]
	releaseLeft(pod)
	return pod
}

// deleteUnheard force-deletes a pod of a node that is cut off, and checks that the
// node does not hear of it.
func (s *scene) deleteUnheard(ctx context.Context, pod *subject) {
	GinkgoHelper()
	Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, immediately)).To(Succeed())
	stayAlive(ctx, holdPeriod/2, pod)
}

// outlastMemory makes a cut so long that nobody remembers what the node has not
// heard: the connections give up, and the API server starts without the events that
// it has kept for watches.
func outlastMemory(ctx context.Context, link testnode.Link) {
	GinkgoHelper()
	Expect(link.Reset()).To(Succeed())
	stopAPIServer(ctx)(ctx)
}
