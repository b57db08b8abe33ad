package node

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	waitingPods = "kubelet_guard_waiting_pods"
	// successorStart is how soon a successor serves once the pod that it waits for has
	// ended: the kubelet's notice of that, and a pod's start, on a machine that starts
	// several.
	successorStart = 30 * time.Second
)

// withHostPath mounts a folder of the node, to write to it.
func withHostPath(folder string) podOption {
	return func(pod *corev1.Pod) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "folder", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: ptr.To(corev1.HostPathDirectory)},
		}})
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "folder", MountPath: "/folder"})
	}
}

var _ = Describe("The successor of a held pod whose object is gone", Label(labelGuarded), func() {
	It("waits for what cannot be shared, says so, and starts at once when it shares nothing", func(ctx SpecContext) {
		s := newScene(ctx)
		s.provideClaim(ctx)
		shared := []string{"folder", "claim"}
		options := map[string][]podOption{
			"folder": {withHostPath(nodeDir(ctx))},
			"claim":  {withClaim},
			"port":   {withHostPort},
			"free":   {withEmptyDir("/data")},
		}
		template := func(name string) *corev1.Pod { return s.newPod(name, append(options[name], protected)...) }
		var templates []*corev1.Pod
		for name := range options {
			templates = append(templates, template(name))
		}
		held, successors := map[string]*subject{}, map[string]*subject{}
		pods := s.run(ctx, templates...)
		for _, pod := range pods {
			held[pod.name] = pod
			releaseLeft(pod)
		}
		s.loseKey(ctx, pods...)
		s.awaitVanished(ctx, pods...)

		By("creating the successors")
		var rejected *corev1.Pod
		for name := range options {
			created := s.create(ctx, template(name))
			if name == "port" {
				rejected = created
			}
			successors[name] = &subject{name: name, namespace: s.namespace, uid: created.UID}
		}
		s.awaitServing(ctx, "free", successors["free"].uid)
		held["free"].expectAlive(Default)
		// Admission comes first: the held pod has the port. A controller makes another.
		s.expectRejected(ctx, rejected, "NodePorts")
		Eventually(func(g Gomega) {
			for _, name := range shared {
				s.expectWaiting(g, ctx, successors[name], held[name])
			}
			g.Expect(framework.Try(readMetrics(ctx)).In(g).Sum(waitingPods)).To(BeEquivalentTo(len(shared)), waitingPods)
		}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the successors that share something wait")
		Consistently(func(g Gomega) {
			for _, name := range shared {
				held[name].expectAlive(g)
				s.expectWaiting(g, ctx, successors[name], held[name])
			}
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed(), "the successors go on waiting, and each says so once")

		By("releasing the held pods")
		requested := time.Now()
		for _, pod := range held {
			releaseByFile(pod)
		}
		for _, pod := range held {
			pod.awaitHonoured(ctx, requested, releaseFileTimeout+gracePeriod+killSlack)
		}
		for _, name := range shared {
			Eventually(s.expectReady).WithContext(ctx).WithArguments(ctx, name, successors[name].uid).WithTimeout(successorStart).
				Should(Succeed(), "the successor %s starts", name)
			framework.Progress("successor with the same %s: ready %.1f s after the end of the held pod", name, time.Since(held[name].death.at).Seconds())
		}
		Eventually(func(g Gomega) {
			g.Expect(framework.Try(readMetrics(ctx)).In(g).Sum(waitingPods)).To(BeZero(), waitingPods)
			for _, name := range shared {
				object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, name, metav1.GetOptions{})).In(g)
				if condition := testnode.PodCondition(object, guard.PodWaitingForHeldPod); condition != nil {
					g.Expect(condition.Status).To(Equal(corev1.ConditionFalse), "condition %s of pod %s", guard.PodWaitingForHeldPod, name)
				}
			}
		}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "nobody waits any more")
	})
})

// expectWaiting checks that none of a pod's containers runs and that the pod says
// everywhere for whom it waits.
func (s *scene) expectWaiting(g Gomega, ctx context.Context, pod, held *subject) {
	g.Expect(containersOf(ctx, pod.uid)).To(BeEmpty(), "running containers of pod %s, whose predecessor lives", pod)
	list := framework.Try(readGuardPods(ctx)).In(g)
	heldBy := map[types.UID]types.UID{}
	for _, waiting := range list.Waiting {
		heldBy[waiting.UID] = waiting.HeldUID
		g.Expect(waiting.Shares).NotTo(BeEmpty(), "what pod %s/%s waits for", waiting.Namespace, waiting.Name)
	}
	g.Expect(heldBy).To(HaveKeyWithValue(pod.uid, held.uid), "pods that wait in %s", guard.PodsPath)
	condition := testnode.PodCondition(framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g), guard.PodWaitingForHeldPod)
	g.Expect(condition).NotTo(BeNil(), "pod %s has a condition %s", pod, guard.PodWaitingForHeldPod)
	g.Expect(condition.Status).To(Equal(corev1.ConditionTrue), "condition %s of pod %s", guard.PodWaitingForHeldPod, pod)
	g.Expect(condition.Message).To(ContainSubstring(string(held.uid)), "message of condition %s of pod %s", guard.PodWaitingForHeldPod, pod)
	events := framework.Try(client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "reason=" + guard.EventWaitingForHeldPod + ",involvedObject.uid=" + string(pod.uid),
	})).In(g)
	reported := 0
	for _, event := range events.Items {
		reported += occurrences(event)
	}
	g.Expect(reported).To(Equal(1), "events %s on pod %s", guard.EventWaitingForHeldPod, pod)
}
