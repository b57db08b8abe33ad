package node

import (
	"context"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// claim is the name of a scene's claim and of the volume in its pods.
	claim = "claim"
	// claimContainer serves a file on the claim, on claimPort.
	claimContainer = "claimed"
	claimPort      = workloadPort + 2
)

var _ = Describe("A vanished pod", Label(labelGuarded), func() {
	It("lives on through restarts of kubelet and runtime, and is adopted when its object is back", func(ctx SpecContext) {
		s := newScene(ctx)
		s.provideClaim(ctx)
		template := func(name string) *corev1.Pod {
			return s.newPod(name, protected, withLiveness, withEmptyDir("/data"), withArgs("--file=/data/file", "--content="+name), withClaim)
		}
		pods := s.run(ctx, template("kept"), template("probed"))
		kept, probed := pods[0], pods[1]
		claimed := s.observe(ctx, kept.name, claimContainer)
		expectFiles := func(g Gomega, pod *subject) {
			expectFile(g, ctx, pod, workloadPort, pod.name)
			expectFile(g, ctx, pod, claimPort, pod.name)
		}
		for _, pod := range pods {
			expectFiles(Default, pod)
			s.loseKey(ctx, pod)
		}
		s.awaitVanished(ctx, pods...)
		expectKept := func(pods ...*subject) {
			GinkgoHelper()
			s.awaitVanished(ctx, pods...)
			// Volumes are reconstructed, and cleaned up, within the first seconds.
			Consistently(func(g Gomega) {
				claimed.expectAlive(g)
				for _, pod := range pods {
					pod.expectAlive(g)
					expectFiles(g, pod)
				}
			}).WithContext(ctx).WithTimeout(holdPeriod / 2).Should(Succeed())
		}
		By("restarting the kubelet")
		restartKubelet(ctx, unchanged)
		expectKept(pods...)
		By("restarting the runtime")
		Expect(provider.Node().Runtime().Restart(ctx)).To(Succeed(), "restart the container runtime")
		By("restarting the kubelet again")
		restartKubelet(ctx, unchanged)
		expectKept(pods...)

		By("failing the liveness probe of one of them")
		framework.Must(fetch(ctx, probed, workloadPort, "/fail?on=true"))
		probed.awaitDeath(ctx, time.Now(), killTimeout)
		restarted := awaitRestarted(ctx, probed)
		Eventually(func(g Gomega) { expectFiles(g, restarted) }).WithContext(ctx).WithTimeout(apiLag).
			Should(Succeed(), "the restarted container has the files of its predecessor")

		By("restarting the kubelet a third time")
		restartKubelet(ctx, unchanged)
		expectKept(kept, restarted)

		By("restoring the objects")
		s.restoreKey(ctx, kept, restarted)
		for _, pod := range []*subject{kept, restarted} {
			expectState(Default, ctx, pod, guard.Protected)
			expectFiles(Default, pod)
		}
		claimed.expectAlive(Default)
		s.deleteExplicitly(ctx, kept, restarted)
	})

	It("without a saved file is kept and shown, adopted with its object, and released by file", func(ctx SpecContext) {
		s := newScene(ctx)
		template := func(name string) *corev1.Pod {
			return s.newPod(name, protected, withEmptyDir("/data"), withArgs("--file=/data/file", "--content="+name))
		}
		pods := s.run(ctx, template("adopted"), template("released"))
		By("losing the objects and the state directory while the kubelet is down")
		stopKubelet(ctx)
		s.loseKey(ctx, pods...)
		Expect(os.RemoveAll(filepath.Join(provider.Node().KubeletDir(), "guard"))).To(Succeed())
		startKubelet(ctx, unchanged)
		for _, pod := range pods {
			s.awaitOrphaned(ctx, pod)
			expectNodeEvent(ctx, guard.EventKillRefused, string(pod.uid), string(guard.OrphanedRuntimePod))
		}
		Expect(mustReadMetrics(ctx).ByCause(heldPods)).To(HaveKeyWithValue(guard.OrphanedRuntimePod, 2), heldPods)
		Consistently(func(g Gomega) {
			for _, pod := range pods {
				pod.expectAlive(g)
				expectFile(g, ctx, pod, workloadPort, pod.name)
			}
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())

		By("restoring one object, and releasing the other pod by file")
		s.restoreKey(ctx, pods[0])
		expectFile(Default, ctx, pods[0], workloadPort, pods[0].name)
		requested := releaseByFile(pods[1])
		pods[1].awaitHonoured(ctx, requested, releaseFileTimeout+gracePeriod+killSlack)
		s.awaitGone(ctx, pods[1], deletionSlack)
		s.deleteExplicitly(ctx, pods[0])
	})

	It("whose termination was interrupted by SIGKILL ends, and nothing of it is left", func(ctx SpecContext) {
		s, pod := runProtected(ctx, withArgs("--term-delay=10m"))
		By("killing the kubelet in the middle of the termination")
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](600)})).To(Succeed())
		Eventually(os.ReadFile).WithContext(ctx).WithArguments(savedFile(pod)).WithTimeout(killTimeout).
			Should(ContainSubstring(string(guard.DeletionTimestampSeen)), "the file of pod %s has the evidence", pod)
		killKubelet(ctx)
		pod.expectAlive(Default)
		By("removing the object while the kubelet is down")
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, immediately)).To(Succeed())
		started := time.Now()
		startKubelet(ctx, unchanged)
		took := pod.awaitHonoured(ctx, started, killTimeout)
		framework.Progress("interrupted termination: finished %.1f s after the kubelet's start", took.Seconds())
		s.awaitGone(ctx, pod, deletionSlack)
		Eventually(func(g Gomega) {
			g.Expect(guardPod(ctx, pod.uid)).To(BeNil(), "pod %s in %s", pod, guard.PodsPath)
			g.Expect(savedFile(pod)).NotTo(BeAnExistingFile())
		}).WithContext(ctx).WithTimeout(forgetTimeout).Should(Succeed(), "the guard forgets pod %s", pod)
	})
})

// forgetTimeout covers the half minute that the guard waits before it forgets a pod
// whose object is gone.
const forgetTimeout = 50 * time.Second

// savedFile is where the guard saves a pod, in its usual state directory, as this
// process sees it.
func savedFile(pod *subject) string {
	return filepath.Join(provider.Node().KubeletDir(), "guard", "pods", string(pod.uid)+".pod")
}

// provideClaim makes the scene's claim: one that is bound to a folder of the node.
func (s *scene) provideClaim(ctx context.Context) {
	GinkgoHelper()
	capacity := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	volume := framework.Must(client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: s.namespace},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    capacity,
			AccessModes: modes,
			ClaimRef:    &corev1.ObjectReference{Namespace: s.namespace, Name: claim},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: nodeDir(ctx), Type: ptr.To(corev1.HostPathDirectory)},
			},
		},
	}, metav1.CreateOptions{}))
	DeferCleanup(func(ctx context.Context) error {
		return ctrlclient.IgnoreNotFound(client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, metav1.DeleteOptions{}))
	})
	framework.Must(client.CoreV1().PersistentVolumeClaims(s.namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: claim},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(""),
			AccessModes:      modes,
			VolumeName:       volume.Name,
			Resources:        corev1.VolumeResourceRequirements{Requests: capacity},
		},
	}, metav1.CreateOptions{}))
	Eventually(func(g Gomega) {
		object := framework.Try(client.CoreV1().PersistentVolumeClaims(s.namespace).Get(ctx, claim, metav1.GetOptions{})).In(g)
		g.Expect(object.Status.Phase).To(Equal(corev1.ClaimBound), "phase of the claim")
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the claim is bound")
}

// withClaim mounts the scene's claim into the workload's container and into one
// more, which serves a file on it.
func withClaim(pod *corev1.Pod) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
		Name:         claim,
		VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}},
	})
	second := newContainer(claimContainer, claimPort)
	second.Args = []string{"--file=/claim/" + pod.Name, "--content=" + pod.Name}
	pod.Spec.Containers = append(pod.Spec.Containers, second)
	for i := range pod.Spec.Containers {
		container := &pod.Spec.Containers[i]
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: claim, MountPath: "/claim"})
	}
}

// awaitRestarted waits for the container that takes the place of a pod's dead one.
// It queries the runtime: the pod may have no object.
func awaitRestarted(ctx context.Context, pod *subject) *subject {
	GinkgoHelper()
	restarted := *pod
	Eventually(func(g Gomega) {
		running := framework.Try(containersOf(ctx, pod.uid)).In(g)
		g.Expect(running).To(HaveKey(workloadContainer))
		restarted.process = running[workloadContainer].Process
		g.Expect(restarted.process).NotTo(Equal(pod.process))
	}).WithContext(ctx).WithTimeout(restartTimeout).Should(Succeed(), "the kubelet restarts the container of pod %s", pod)
	restarted.death = watchDeath(restarted.process)
	return &restarted
}

// expectNodeEvent waits for an event on the node whose message has all of the words. It
// looks where kubectl describe node does.
func expectNodeEvent(ctx context.Context, reason string, words ...string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		events := framework.Try(client.CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
			FieldSelector: "reason=" + reason + ",involvedObject.kind=Node,involvedObject.uid=" + provider.Node().Name(),
		})).In(g)
		messages := []string{}
		for _, event := range events.Items {
			messages = append(messages, event.Message)
		}
		matchers := make([]OmegaMatcher, len(words))
		for i, word := range words {
			matchers[i] = ContainSubstring(word)
		}
		g.Expect(messages).To(ContainElement(And(matchers...)), "events %s on the node", reason)
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "an event %s on the node names %v", reason, words)
}
