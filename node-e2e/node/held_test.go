package node

import (
	"context"
	"fmt"
	"slices"
	"syscall"
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

// settling is the age from which on the kubelet keeps a container's readiness over
// its restart: upstream's prober takes a younger one for new and shows it as not
// ready until it has probed it.
const settling = 11 * time.Second

// awaitSettled waits until a pod, just seen to serve, is that old.
func awaitSettled(ctx context.Context) {
	GinkgoHelper()
	seen := time.Now()
	Eventually(func() time.Duration { return time.Since(seen) }).WithContext(ctx).WithTimeout(2 * settling).Should(BeNumerically(">", settling))
}

// hold makes the kubelet want to stop a pod, by a fault that needs no restart, and
// waits until the guard holds it.
func (s *scene) hold(ctx context.Context, pod *subject) {
	GinkgoHelper()
	s.patch(ctx, pod, `{"spec":{"activeDeadlineSeconds":1}}`)
	s.awaitHeld(ctx, pod, guard.ActiveDeadlineExceeded)
}

func (s *scene) awaitHeld(ctx context.Context, pod *subject, causes ...guard.Cause) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		pod.expectAlive(g)
		expectState(g, ctx, pod, guard.Held, causes...)
	}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "pod %s is held for %v", pod, causes)
}

// awaitVanished waits until pods are held whose objects are gone.
func (s *scene) awaitVanished(ctx context.Context, pods ...*subject) {
	GinkgoHelper()
	for _, pod := range pods {
		s.awaitHeld(ctx, pod, guard.PodVanished)
	}
}

// awaitOrphaned waits until a pod is held that the kubelet knows from the runtime
// only. Its volumes are held with it when the kubelet has come to clean them up.
func (s *scene) awaitOrphaned(ctx context.Context, pod *subject) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		pod.expectAlive(g)
		found := expectKnown(g, ctx, pod)
		g.Expect(found.State).To(Equal(guard.Held), "state of pod %s in %s", pod, guard.PodsPath)
		g.Expect(found.ObjectPresent).To(BeFalse(), "the kubelet sees the object of pod %s", pod)
		held := slices.DeleteFunc(framework.HeldFor(found), func(cause guard.Cause) bool { return cause == guard.VolumeUnmount })
		g.Expect(held).To(ConsistOf(guard.OrphanedRuntimePod), "causes of pod %s in %s other than %s", pod, guard.PodsPath, guard.VolumeUnmount)
	}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "pod %s is held as one that only the runtime knows", pod)
}

var _ = Describe("A held pod", Label(labelGuarded), func() {
	It("keeps what it wrote to its emptyDir over a kubelet restart", func(ctx SpecContext) {
		const content = "written before the fault"
		s := newScene(ctx)
		pod := s.run(ctx, s.newPod("protected", protected, requesting(nodeMilliCPU(ctx)/2),
			withArgs("--file=/data/file", "--content="+content), withEmptyDir("/data")))[0]
		awaitSettled(ctx)
		reserved := nodeMilliCPU(ctx) * 3 / 4
		restartLeaving(ctx, corev1.ResourceCPU, nodeMilliCPU(ctx)-reserved, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.SystemReserved = map[string]string{"cpu": fmt.Sprintf("%dm", reserved)}
		}})
		s.awaitHeld(ctx, pod, guard.AdmissionRejected)
		// Volumes are reconstructed, and cleaned up, within the first seconds.
		Consistently(func(g Gomega) {
			pod.expectAlive(g)
			s.expectServing(g, ctx, pod.name, pod.uid)
			g.Expect(s.request(ctx, pod.name, "/file", nil)).To(Equal(content), "the file in the emptyDir")
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())
		s.deleteExplicitly(ctx, pod)
	})

	It("is restarted by its failing liveness probe, and by its own exit", func(ctx SpecContext) {
		s, pod := runProtected(ctx, withLiveness)
		s.hold(ctx, pod)
		By("failing the liveness probe")
		s.request(ctx, pod.name, "/fail", map[string]string{"on": "true"})
		pod.awaitDeath(ctx, time.Now(), killTimeout)
		s.awaitServing(ctx, pod.name, pod.uid)
		restarted := s.observe(ctx, pod.name, workloadContainer)
		s.awaitHeld(ctx, restarted, guard.ActiveDeadlineExceeded)
		By("exiting")
		s.exit(ctx, pod.name, 1)
		restarted.awaitDeath(ctx, time.Now(), killTimeout)
		s.awaitServing(ctx, pod.name, pod.uid)
		again := s.observe(ctx, pod.name, workloadContainer)
		s.awaitHeld(ctx, again, guard.ActiveDeadlineExceeded)
		s.deleteExplicitly(ctx, again)
	})

	It("stays held when the kubelet is killed with SIGKILL and started again", func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		s.hold(ctx, pod)
		killKubelet(ctx)
		startKubelet(ctx, unchanged)
		s.awaitHeld(ctx, pod, guard.ActiveDeadlineExceeded)
		s.deleteExplicitly(ctx, pod)
	})

	It("whose object is gone is kept over a kubelet restart, too", func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		s.loseKey(ctx, pod)
		s.awaitVanished(ctx, pod)
		restartKubelet(ctx, unchanged)
		s.awaitHeld(ctx, pod, unknownPod...)
		stayAlive(ctx, holdPeriod, pod)
		s.restoreKey(ctx, pod)
		s.deleteExplicitly(ctx, pod)
	})

	It("whose object is gone is kept next to a new pod of the same name", func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		s.loseKey(ctx, pod)
		s.awaitVanished(ctx, pod)
		By("creating and deleting a pod of the same name")
		successor := s.create(ctx, s.newPod("protected", protected))
		stayAlive(ctx, holdPeriod, pod)
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, successor.Name, metav1.DeleteOptions{})).To(Succeed())
		s.awaitGone(ctx, &subject{name: successor.Name, namespace: s.namespace, uid: successor.UID}, gracePeriod+deletionSlack)
		stayAlive(ctx, holdPeriod, pod)
		s.restoreKey(ctx, pod)
		s.deleteExplicitly(ctx, pod)
	})

	It("whose object was lost while the kubelet was down is restarted when its container ends", func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		stopKubelet(ctx)
		s.loseKey(ctx, pod)
		startKubelet(ctx, unchanged)
		s.awaitVanished(ctx, pod)
		Expect(syscall.Kill(pod.process.PID, syscall.SIGKILL)).To(Succeed())
		pod.awaitDeath(ctx, time.Now(), killTimeout)
		restarted := awaitRestarted(ctx, pod)
		s.restoreKey(ctx, restarted)
		s.deleteExplicitly(ctx, restarted)
	})

	It("keeps all its containers, sidecars included, and loses all when deleted", func(ctx SpecContext) {
		s := newScene(ctx)
		s.run(ctx, s.newPod("protected", protected, withInitAndSidecar))
		main, sidecar := s.observe(ctx, "protected", workloadContainer), s.observe(ctx, "protected", sidecarContainer)
		s.hold(ctx, main)
		Consistently(func(g Gomega) {
			main.expectAlive(g)
			sidecar.expectAlive(g)
			s.expectServing(g, ctx, main.name, main.uid)
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())
		requested := time.Now()
		s.deleteExplicitly(ctx, main)
		sidecar.awaitHonoured(ctx, requested, deletionSlack)
	})

	// Since 1.37 a kubelet looks for started containers in the newest sandbox, if that is the
	// only one that is ready.
	It("runs no init container again when it has several sandboxes, and restarts the others", func(ctx SpecContext) {
		s := newScene(ctx)
		s.run(ctx, s.newPod("protected", protected, withInitAndSidecar))
		main, sidecar := s.observe(ctx, "protected", workloadContainer), s.observe(ctx, "protected", sidecarContainer)
		before := containersNamed(ctx, main, initContainer)
		s.runAnotherSandbox(ctx, main)
		s.awaitHeld(ctx, main, guard.SandboxChanged)
		Consistently(func(g Gomega) {
			main.expectAlive(g)
			sidecar.expectAlive(g)
			g.Expect(containersNamed(ctx, main, initContainer)).To(Equal(before), "init containers of pod %s in the runtime", main)
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())
		By("killing the container next to the sidecar")
		Expect(syscall.Kill(main.process.PID, syscall.SIGKILL)).To(Succeed())
		main.awaitDeath(ctx, time.Now(), killTimeout)
		restarted := awaitRestarted(ctx, main)
		sidecar.expectAlive(Default)
		Expect(containersNamed(ctx, main, initContainer)).To(Equal(before), "init containers of pod %s in the runtime", main)
		requested := time.Now()
		s.deleteExplicitly(ctx, restarted)
		sidecar.awaitHonoured(ctx, requested, deletionSlack)
	})
})

var _ = Describe("Protection", func() {
	It("is no burden to a kubelet that is killed and started again", Label(labelTransparency), func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		awaitSettled(ctx)
		killKubelet(ctx)
		startKubelet(ctx, unchanged)
		Consistently(func(g Gomega) {
			pod.expectAlive(g)
			s.expectServing(g, ctx, pod.name, pod.uid)
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())
		s.deleteExplicitly(ctx, pod)
	})

	It("is back after a downgrade to the stock kubelet and an upgrade", Label(labelGuarded), func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		By("running the stock kubelet")
		restartKubelet(ctx, testnode.KubeletChange{Binary: kubeletBinary(Stock)})
		stayAlive(ctx, holdPeriod/2, pod)
		By("running the guarded kubelet again")
		restartKubelet(ctx, unchanged)
		s.hold(ctx, pod)
		s.deleteExplicitly(ctx, pod)
	})
})

const sidecarContainer = "sidecar"

func withLiveness(pod *corev1.Pod) {
	pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{
		ProbeHandler:     httpGet("/healthz", workloadPort),
		PeriodSeconds:    1,
		FailureThreshold: 2,
	}
}

func withEmptyDir(at string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name:         "data",
			VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		})
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: at})
	}
}

// withInitAndSidecar adds an init container that completes and one that runs as
// long as the pod.
func withInitAndSidecar(pod *corev1.Pod) {
	withEndedInit(pod)
	sidecar := newContainer(sidecarContainer, workloadPort+1)
	sidecar.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, sidecar)
}

// withEndedInit adds an init container that completes.
func withEndedInit(pod *corev1.Pod) {
	init := newContainer(initContainer, 0)
	init.Args, init.Ports, init.ReadinessProbe = []string{"--listen=false", "--run-for=100ms"}, nil, nil
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, init)
}
