package node

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// startOtherRuntime starts a runtime that knows none of the node's pods, and returns it
// with the change that points a kubelet to it. It ends after the kubelet's return to
// the node's own runtime, so that is to come before anything that stops the kubelet.
func startOtherRuntime(ctx context.Context) (testnode.OtherRuntime, testnode.KubeletChange) {
	GinkgoHelper()
	other, err := provider.Node().Runtime().StartOther(ctx)
	Expect(err).NotTo(HaveOccurred(), "start another container runtime")
	DeferCleanup(other.Stop)
	return other, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
		c.ContainerRuntimeEndpoint = other.Endpoint()
	}}
}

var _ = Describe("Kubelet restart", Label(labelOwnMachine), func() {
	describeIncident(incident{
		title: "pointed to an empty runtime, object gone",
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			_, change := startOtherRuntime(ctx)
			stopKubelet(ctx)
			s.loseKey(ctx, pods...)
			startKubelet(ctx, change)
		},
		restarts: true,
		vanished: true,
		// Its object is gone, and to the runtime it has never run.
		causes: []guard.Cause{guard.PodVanished, guard.ContainerStateUnknown},
		repair: func(ctx context.Context, s *scene, pod *subject) {
			restartKubelet(ctx, unchanged)
			s.awaitHeld(ctx, pod, unknownPod...)
			s.restoreKey(ctx, pod)
		},
	})
})

var _ = Describe("A runtime that does not know the node's pods", Label(labelGuarded, labelOwnMachine), func() {
	It("costs no protected pod its processes or files, and starts none a second time", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx,
			s.newPod("present", protected, withEmptyDir("/data"), withArgs("--file=/data/file", "--content=present")),
			s.newPod("gone", protected, withEmptyDir("/data"), withArgs("--file=/data/file", "--content=gone")))
		gone := pods[1]
		releaseLeft(gone)
		other, change := startOtherRuntime(ctx)
		stopKubelet(ctx)
		s.loseKey(ctx, gone)
		startKubelet(ctx, change)
		for _, pod := range pods {
			Eventually(func(g Gomega) {
				pod.expectAlive(g)
				found := framework.Try(guardPod(ctx, pod.uid)).In(g)
				g.Expect(found).NotTo(BeNil(), "pod %s in %s", pod, guard.PodsPath)
				g.Expect(found.State).To(Equal(guard.Held), "state of pod %s", pod)
			}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "pod %s is held", pod)
		}
		Consistently(func(g Gomega) {
			g.Expect(other.Containers(ctx)).To(BeEmpty(), "containers in the other runtime")
			for _, pod := range pods {
				pod.expectAlive(g)
				expectFile(g, ctx, pod, workloadPort, pod.name)
				g.Expect(savedFile(pod)).To(BeAnExistingFile(), "the saved file of pod %s", pod)
			}
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())

		By("going back to the node's own runtime")
		restartKubelet(ctx, unchanged)
		s.awaitVanished(ctx, gone)
		s.restoreKey(ctx, gone)
		for _, pod := range pods {
			s.awaitServing(ctx, pod.name, pod.uid)
			expectState(Default, ctx, pod, guard.Protected)
			expectFile(Default, ctx, pod, workloadPort, pod.name)
			s.deleteExplicitly(ctx, pod)
		}
	})
})
