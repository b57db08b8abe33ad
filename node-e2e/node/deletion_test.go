package node

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

var immediately = metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}

var _ = Describe("Explicit deletion of a protected pod", func() {
	It("ends it when requested without a grace period", Label(labelTransparency), func(ctx SpecContext) {
		s := newScene(ctx)
		s.deleteWith(ctx, s.run(ctx, s.newPod("protected", protected))[0], immediately)
	})

	It("ends it when requested while the kubelet is down and a fault comes with the restart", Label(labelTransparency), func(ctx SpecContext) {
		s := newScene(ctx)
		request := nodeMilliCPU(ctx) / 2
		pod := s.run(ctx, s.newPod("protected", protected, requesting(request)))[0]
		By("deleting the pod while the kubelet is down")
		stopKubelet(ctx)
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{})).To(Succeed())
		Expect(ended(pod)).To(BeFalse(), "nobody stops the pod yet")
		showAllocatable(ctx, corev1.ResourceCPU, nodeMilliCPU(ctx)-request-request/2)
		By("starting the kubelet with a configuration that rejects the pod")
		requested := time.Now()
		startKubelet(ctx, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.SystemReserved = map[string]string{"cpu": fmt.Sprintf("%dm", request+request/2)}
		}})
		pod.awaitHonoured(ctx, requested, gracePeriod+deletionSlack)
		s.awaitGone(ctx, pod, gracePeriod+deletionSlack)
	})

	It("runs its preStop hook when it is deleted, not before, and gives the hook its time as for any pod", Label(labelTransparency), func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("protected", protected, withSlowPreStop), s.newPod("unprotected", withSlowPreStop),
			s.newPod("unready", protected, withUnreadyPreStop, withArgs("--term-delay="+slowPreStop.String())))
		if variant == Guarded {
			s.hold(ctx, pods[0])
			s.hold(ctx, pods[2])
			Consistently(s.expectServing).WithContext(ctx).WithArguments(ctx, pods[2].name, pods[2].uid).WithTimeout(holdPeriod).
				Should(Succeed(), "the hook of pod %s is not run for a refused attempt", pods[2])
		}
		for _, pod := range pods[:2] {
			took := s.deleteWith(ctx, pod, metav1.DeleteOptions{})
			Expect(took).To(BeNumerically(">=", slowPreStop), "time from the request to the end of the process of pod %s", pod)
		}
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pods[2].name, metav1.DeleteOptions{})).To(Succeed())
		Eventually(func(g Gomega) {
			g.Expect(framework.ErrorOf(fetch(ctx, pods[2], workloadPort, "/healthz"))).To(MatchError(ContainSubstring("503")))
		}).WithContext(ctx).WithTimeout(gracePeriod).Should(Succeed(), "the hook of pod %s is run for the deletion", pods[2])
		s.awaitGone(ctx, pods[2], gracePeriod+deletionSlack)
	})

	It("gives a held pod the time that its process takes to end", Label(labelGuarded), func(ctx SpecContext) {
		const lingers = 2 * time.Second
		s, pod := runProtected(ctx, withArgs("--term-delay="+lingers.String()))
		s.hold(ctx, pod)
		took := s.deleteWith(ctx, pod, metav1.DeleteOptions{})
		Expect(took).To(BeNumerically(">=", lingers), "time from the request to the end of the process")
	})

	It("cuts a held pod's process off when its grace period is over", Label(labelGuarded), func(ctx SpecContext) {
		s, pod := runProtected(ctx, withArgs("--term-delay=10m"))
		s.hold(ctx, pod)
		took := s.deleteWith(ctx, pod, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](2)})
		Expect(took).To(BeNumerically(">=", 2*time.Second), "time from the request to the end of the process")
	})

	It("ends a held pod when requested without a grace period", Label(labelGuarded), func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		s.hold(ctx, pod)
		s.deleteWith(ctx, pod, immediately)
		metrics := mustReadMetrics(ctx)
		Expect(metrics.ByCause(heldPods)).To(BeEmpty(), heldPods)
		Expect(metrics.ByCause(allowedKills)[guard.ExplicitDeletion]).To(BeNumerically(">=", 1), "%s{cause=%q}", allowedKills, guard.ExplicitDeletion)
	})

	It("ends a held pod whose liveness probe fails", Label(labelGuarded), func(ctx SpecContext) {
		s, pod := runProtected(ctx, withLiveness)
		s.hold(ctx, pod)
		s.request(ctx, pod.name, "/fail", map[string]string{"on": "true"})
		s.deleteExplicitly(ctx, pod)
	})
})

// slowPreStop is how long withSlowPreStop's hook takes: less than the grace period.
const slowPreStop = 3 * time.Second

// withSlowPreStop adds a hook that takes time.
func withSlowPreStop(pod *corev1.Pod) {
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
		Sleep: &corev1.SleepAction{Seconds: int64(slowPreStop.Seconds())},
	}}
}

// withUnreadyPreStop adds a hook after which the pod is not ready any more.
func withUnreadyPreStop(pod *corev1.Pod) {
	hook := httpGet("/fail?on=true", workloadPort)
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: hook.HTTPGet}}
}
