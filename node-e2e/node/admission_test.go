package node

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

var _ = Describe("A kubelet restart without room for temporary files and under memory pressure", Label(labelGuarded), func() {
	// A pod without requests is rejected by admission or evicted, whatever comes first.
	It("costs no protected pod its life, and ends its hold when the next one has room", func(ctx SpecContext) {
		const left = 32 << 20
		s := newScene(ctx)
		pods := s.run(ctx,
			s.newPod("files", protected, requesting(10), withFilesRequest(2*left)),
			s.newPod("best-effort", protected, withArgs("--memory=32")),
			s.newPod("unprotected-files", requesting(10), withFilesRequest(2*left)),
			s.newPod("unprotected-best-effort", withArgs("--memory=32")))
		capacity := nodeCapacity(ctx)
		reserved := capacity.StorageEphemeral().Value() - left
		restartLeaving(ctx, corev1.ResourceEphemeralStorage, left, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.SystemReserved = map[string]string{string(corev1.ResourceEphemeralStorage): fmt.Sprint(reserved)}
			c.EvictionHard = map[string]string{"memory.available": fmt.Sprint(capacity.Memory().Value() - 80<<20)}
		}})
		for _, pod := range pods[2:] {
			Eventually(pod.death.ended).WithContext(ctx).WithTimeout(evictionTimeout).Should(BeClosed(), "pod %s is stopped", pod)
		}
		expectHeld := func(g Gomega) {
			for i, cause := range []guard.Cause{guard.AdmissionRejected, guard.Evicted} {
				pods[i].expectAlive(g)
				found := framework.Try(guardPod(ctx, pods[i].uid)).In(g)
				g.Expect(framework.HeldFor(found)).To(Or(ContainElement(cause), ContainElement(guard.AdmissionRejected)), "causes of pod %s in %s", pods[i], guard.PodsPath)
			}
		}
		Eventually(expectHeld).WithContext(ctx).WithTimeout(evictionTimeout).Should(Succeed(), "the protected pods are held")
		Consistently(expectHeld).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed(), "the protected pods stay held")
		By("restarting the kubelet as it was")
		normalKubelet(ctx)
		for _, pod := range pods[:2] {
			Eventually(func(g Gomega) {
				pod.expectAlive(g)
				expectState(g, ctx, pod, guard.Protected)
			}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "the hold of pod %s ends", pod)
			s.deleteExplicitly(ctx, pod)
		}
	})
})

// withFilesRequest requests room for a container's temporary files.
func withFilesRequest(bytes int64) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.Containers[0].Resources.Requests[corev1.ResourceEphemeralStorage] = *resource.NewQuantity(bytes, resource.BinarySI)
	}
}
