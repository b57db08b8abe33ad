package node

import (
	"context"
	"os"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
)

// restartTimeout covers the back-off of 10 s before a container's second restart.
const restartTimeout = time.Minute

// What a pod's author declared is not a kill: with and without the guard, a pod
// that is labelled for protection lives and ends by its own specification.
var _ = Describe("A protected pod's own specification", Label(labelTransparency), func() {
	DescribeTable("ends it when its container completes",
		func(ctx SpecContext, exitCode string, phase corev1.PodPhase) {
			s := newScene(ctx)
			pod := s.create(ctx, s.newPod("protected", protected, restartPolicy(corev1.RestartPolicyNever),
				withArgs("--run-for=1s", "--exit-code="+exitCode)))
			s.awaitPhase(ctx, pod, phase)
			Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})).To(Succeed())
			s.awaitGone(ctx, &subject{name: pod.Name, namespace: s.namespace, uid: pod.UID}, deletionSlack)
		},
		Entry("successfully", "0", corev1.PodSucceeded),
		Entry("with an error", "3", corev1.PodFailed),
	)

	It("ends it when its container completes while the kubelet is down", func(ctx SpecContext) {
		s, pod := runProtected(ctx, restartPolicy(corev1.RestartPolicyNever))
		stopKubelet(ctx)
		s.exit(ctx, pod.name, 0)
		pod.awaitDeath(ctx, time.Now(), killTimeout)
		startKubelet(ctx, unchanged)
		s.awaitPhase(ctx, framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})), corev1.PodSucceeded)
	})

	It("restarts a container that fails (restartPolicy OnFailure)", func(ctx SpecContext) {
		s := newScene(ctx)
		pod := s.create(ctx, s.newPod("protected", protected, restartPolicy(corev1.RestartPolicyOnFailure),
			withArgs("--run-for=1s", "--exit-code=1")))
		s.awaitRestarts(ctx, pod, 1)
	})

	It("restarts a container whose liveness probe fails", func(ctx SpecContext) {
		s, pod := runProtected(ctx, withLiveness)
		s.request(ctx, pod.name, "/fail", map[string]string{"on": "true"})
		pod.awaitDeath(ctx, time.Now(), killTimeout)
		s.awaitServing(ctx, pod.name, pod.uid)
	})

	It("replaces a container whose image is changed", func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		s.patch(ctx, pod, `{"spec":{"containers":[{"name":"`+workloadContainer+`","image":"`+embedded.PauseImage+`"}]}}`)
		pod.awaitDeath(ctx, time.Now(), killTimeout)
		Eventually(func(g Gomega) {
			object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g)
			g.Expect(object.Status.ContainerStatuses).To(HaveLen(1))
			status := object.Status.ContainerStatuses[0]
			g.Expect(status.State.Running).NotTo(BeNil(), "state of the container: %+v", status.State)
			g.Expect(status.Image).To(ContainSubstring("pause"), "image that the container runs")
		}).WithContext(ctx).WithTimeout(restartTimeout).Should(Succeed(), "the container runs the new image")
	})

	It("runs init containers to their end and sidecars next to the others", func(ctx SpecContext) {
		s := newScene(ctx)
		s.run(ctx, s.newPod("protected", protected, withInitAndSidecar))
		sidecar := s.observe(ctx, "protected", sidecarContainer)
		s.deleteExplicitly(ctx, sidecar)
	})
})

var _ = Describe("A static pod with the protection label", Label(labelTransparency), func() {
	It("is replaced and removed with its file", func(ctx SpecContext) {
		s := newScene(ctx)
		template := func(args ...string) *corev1.Pod {
			return s.newPod("static", protected, withArgs(args...), func(pod *corev1.Pod) { pod.Spec.NodeName = "" })
		}
		mirror := "static-" + provider.Node().Name()
		s.runStaticPod(template())
		first := s.awaitStatic(ctx, mirror)
		By("changing the file")
		s.runStaticPod(template("--content=changed"))
		first.awaitDeath(ctx, time.Now(), killTimeout)
		second := s.awaitStatic(ctx, mirror)
		By("deleting the mirror pod")
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, mirror, immediately)).To(Succeed())
		stayAlive(ctx, holdPeriod/2, second)
		By("removing the file")
		Expect(os.Remove(staticPodFile(s.namespace + "-static"))).To(Succeed())
		second.awaitDeath(ctx, time.Now(), killTimeout)
	})
})

// awaitStatic waits for the one running container of a static pod. Its UID in the
// runtime is not that of its mirror pod. The runtime may list a container for a moment
// whose process has ended.
func (s *scene) awaitStatic(ctx context.Context, mirror string) *subject {
	GinkgoHelper()
	found := &subject{name: mirror, namespace: s.namespace}
	Eventually(func(g Gomega) {
		running := framework.Try(provider.Node().Runtime().Containers(ctx)).In(g)
		var own []testnode.Process
		for _, c := range running {
			if alive, err := c.Process.Alive(); c.PodNamespace == s.namespace && c.PodName == mirror && (alive || err != nil) {
				own = append(own, c.Process)
			}
		}
		g.Expect(own).To(HaveLen(1), "running containers of static pod %s", mirror)
		found.process = own[0]
	}).WithContext(ctx).WithTimeout(podStart).Should(Succeed(), "static pod %s runs", mirror)
	found.death = watchDeath(found.process)
	return found
}

func (s *scene) awaitPhase(ctx context.Context, pod *corev1.Pod, phase corev1.PodPhase) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.Name, metav1.GetOptions{})).In(g)
		g.Expect(object.Status.Phase).To(Equal(phase), "phase of pod %s", pod.Name)
	}).WithContext(ctx).WithTimeout(podStart).Should(Succeed(), "pod %s ends as %s", pod.Name, phase)
}

func (s *scene) awaitRestarts(ctx context.Context, pod *corev1.Pod, restarts int32) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.Name, metav1.GetOptions{})).In(g)
		g.Expect(object.Status.ContainerStatuses).To(HaveLen(1))
		g.Expect(object.Status.ContainerStatuses[0].RestartCount).To(BeNumerically(">=", restarts), "restarts of pod %s", pod.Name)
	}).WithContext(ctx).WithTimeout(restartTimeout).Should(Succeed(), "the kubelet restarts the container of pod %s", pod.Name)
}
