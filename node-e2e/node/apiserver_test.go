package node

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

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

	It("is held next to its successor when nobody remembers the deletion, until that is recorded", Label(labelControlPlane), func(ctx SpecContext) {
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
		left := framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, successor.Name, metav1.GetOptions{}))
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
	link := framework.Must(provider.Node().NewLink())
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

// catchUp covers an API server that finds its storage again, and the kubelet's watches
// that find the API server: both try again after up to 30 s.
const catchUp = 90 * time.Second

var _ = Describe("A kubelet restart against an API server that lags behind its storage", Label(labelGuarded, labelControlPlane), func() {
	// By default the kubelet's first request is one that needs the storage. With
	// WatchListClient switched off it takes what the API server remembers.
	It("costs no protected pod its life that the list lacks, and ends the one that was deleted meanwhile", func(ctx SpecContext) {
		s := newScene(ctx)
		known := s.run(ctx, s.newPod("deleted", protected))[0]
		lagging := startOtherAPIServer(ctx)
		Expect(lagging.Cut()).To(Succeed())
		pods := s.run(ctx, s.newPod("late", protected), s.newPod("late-unprotected"))
		late, unprotected := pods[0], pods[1]
		releaseLeft(known, late)
		stopKubelet(ctx)
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, known.name, metav1.DeleteOptions{})).To(Succeed())

		By("starting the kubelet, which gets no response: nobody is stopped for want of one")
		startKubelet(ctx, testnode.KubeletChange{APIServer: lagging})
		stayAlive(ctx, holdPeriod, known, late, unprotected)
		By("starting it so that it takes an old response")
		since := time.Now()
		restartKubelet(ctx, testnode.KubeletChange{APIServer: lagging, Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.FeatureGates = map[string]bool{"WatchListClient": false}
		}})
		unprotected.awaitDeath(ctx, since, killTimeout)
		s.awaitVanished(ctx, late)
		known.expectAlive(Default)

		By("letting the API server catch up")
		restored := time.Now()
		Expect(lagging.Restore()).To(Succeed())
		took := known.awaitHonoured(ctx, restored, catchUp+gracePeriod)
		framework.Progress("the deleted pod ended %.1f s after its API server could hear of that", took.Seconds())
		Eventually(expectState).WithContext(ctx).WithArguments(ctx, late, guard.Protected).WithTimeout(catchUp).
			Should(Succeed(), "the kubelet manages pod %s as before", late)
		s.awaitServing(ctx, late.name, late.uid)
		s.awaitGone(ctx, known, catchUp)
		s.deleteExplicitly(ctx, late)
	})
})

// startOtherAPIServer starts a second API server, until the spec ends.
func startOtherAPIServer(ctx context.Context) testnode.OtherAPIServer {
	GinkgoHelper()
	other, err := provider.Node().StartOtherAPIServer(ctx)
	Expect(err).NotTo(HaveOccurred(), "start a second API server")
	DeferCleanup(other.Stop)
	return other
}

var _ = Describe("A kubelet without a kubeconfig", Label(labelGuarded), func() {
	It("keeps pods that were labelled after their start, lets them go by file, and gives them back", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("kept"), s.newPod("released"))
		kept, released := pods[0], pods[1]
		for _, pod := range pods {
			s.patch(ctx, pod, fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, protectionLabel, protectionValue))
			Eventually(func(g Gomega) {
				expectState(g, ctx, pod, guard.Protected)
				g.Expect(savedFile(pod)).To(BeAnExistingFile(), "the saved file of pod %s", pod)
			}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "pod %s is protected", pod)
		}
		restartKubelet(ctx, testnode.KubeletChange{Standalone: true})
		for _, pod := range pods {
			s.awaitOrphaned(ctx, pod)
		}
		stayAlive(ctx, holdPeriod, kept, released)
		By("releasing one by file")
		requested := releaseByFile(released)
		released.awaitHonoured(ctx, requested, releaseFileTimeout+gracePeriod+killSlack)
		kept.expectAlive(Default)

		By("starting the kubelet with its kubeconfig again")
		restartKubelet(ctx, unchanged)
		s.awaitKnownAgain(ctx, kept)
		expectState(Default, ctx, kept, guard.Protected)
		s.deleteExplicitly(ctx, kept)
	})
})

// podGC covers what the pod garbage collector of the control plane waits when a node is
// gone (40 s), and its interval (20 s).
const podGC = 90 * time.Second

var _ = Describe("A kubelet with another node name", Label(labelGuarded), func() {
	It("and the credentials of the old one stops nothing, shows what it does not manage, and manages it under its old name", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("protected", protected), s.newPod("unprotected"))
		restartKubelet(ctx, testnode.KubeletChange{HostnameOverride: wrongName()})
		stayAlive(ctx, survivalPeriod, pods...)
		found := expectKnown(Default, ctx, pods[0])
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
