package node

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/pkg/kubelet/guard"
)

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
		asked := releaseByFile(released)
		released.awaitHonoured(ctx, asked, releaseFileTimeout+gracePeriod+killSlack)
		kept.expectAlive(Default)

		By("starting the kubelet with its kubeconfig again")
		restartKubelet(ctx, unchanged)
		s.awaitKnownAgain(ctx, kept)
		expectState(Default, ctx, kept, guard.Protected)
		s.deleteExplicitly(ctx, kept)
	})
})
