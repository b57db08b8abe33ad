package node

import (
	"context"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// withStartup adds a startup probe that the workload answers unless it is set to fail.
func withStartup(container *corev1.Container, port int32) {
	container.StartupProbe = &corev1.Probe{ProbeHandler: httpGet("/readyz", port), PeriodSeconds: 1, FailureThreshold: 2}
}

var _ = Describe("A vanished pod with a startup probe", Label(labelGuarded), func() {
	It("fares no worse at a kubelet restart than one with its object, and goes on being managed", func(ctx SpecContext) {
		s := newScene(ctx)
		probed := func(pod *corev1.Pod) { withStartup(&pod.Spec.Containers[0], workloadPort) }
		pods := s.run(ctx, s.newPod("present", protected, probed), s.newPod("vanished", protected, probed),
			s.newPod("sidecar", protected, withInitAndSidecar, func(pod *corev1.Pod) {
				withStartup(&pod.Spec.InitContainers[1], workloadPort+1)
			}))
		present, vanished, sidecared := pods[0], pods[1], pods[2]
		By("failing what the startup probes ask, now that they have succeeded")
		for _, pod := range pods[:2] {
			framework.Must(ask(ctx, pod, workloadPort, "/fail?on=true"))
		}
		stopKubelet(ctx)
		for _, pod := range pods[1:] {
			releaseLeft(pod)
			s.loseKey(ctx, pod)
		}
		startKubelet(ctx, unchanged)
		started := time.Now()
		s.awaitVanished(ctx, sidecared)

		By("killing the container beside the sidecar")
		Expect(syscall.Kill(sidecared.process.PID, syscall.SIGKILL)).To(Succeed())
		sidecared.awaitDeath(ctx, time.Now(), killTimeout)
		restarted := awaitRestarted(ctx, sidecared)

		By("comparing the fates of those whose probes fail")
		Eventually(func() time.Duration { return time.Since(started) }).WithContext(ctx).WithTimeout(2 * survivalPeriod).
			Should(BeNumerically(">", survivalPeriod))
		if !ended(present) {
			vanished.expectAlive(Default)
		}
		s.deleteRestored(ctx, restarted)
		s.deleteRestored(ctx, vanished)
	})
})

// deleteRestored writes a lost pod back and deletes it.
func (s *scene) deleteRestored(ctx context.Context, pod *subject) {
	GinkgoHelper()
	Expect(provider.Node().Storage().Put(ctx, podKey(pod), s.lost[pod.uid])).To(Succeed(), "write key %s", podKey(pod))
	Eventually(expectState).WithContext(ctx).WithArguments(ctx, pod, guard.Protected).WithTimeout(apiLag).
		Should(Succeed(), "the kubelet manages pod %s as before", pod)
	Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{})).To(Succeed())
	s.awaitGone(ctx, pod, gracePeriod+deletionSlack)
}
