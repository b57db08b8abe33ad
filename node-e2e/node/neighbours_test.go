package node

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// critical makes a pod one for which the kubelet makes room.
func critical(pod *corev1.Pod) { pod.Spec.PriorityClassName = "system-node-critical" }

// awaitYounger waits until a pod that is created now is younger than the given one to
// the kubelet, which admits by age: the API reports that in whole seconds.
func (s *scene) awaitYounger(ctx context.Context, than *subject) {
	GinkgoHelper()
	object := framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, than.name, metav1.GetOptions{}))
	Eventually(func() time.Duration { return time.Since(object.CreationTimestamp.Time) }).
		WithContext(ctx).WithTimeout(5 * time.Second).Should(BeNumerically(">", 2*time.Second))
}

var _ = Describe("The neighbours of a pod that admission rejects", func() {
	It("live on as with the stock kubelet, a running critical pod too", func(ctx SpecContext) {
		s := newScene(ctx)
		share := func(percent int64) podOption { return requesting(nodeMilliCPU(ctx) * percent / 100) }
		// A quarter of the node will remain. The largest does not fit then, the next two
		// do, and the critical pod fits when the second makes room.
		large := s.run(ctx, s.newPod("large", protected, share(45)))[0]
		s.awaitYounger(ctx, large)
		pods := s.run(ctx, s.newPod("small", protected, share(15)), s.newPod("neighbour", share(5)))
		small, neighbour := pods[0], pods[1]
		s.awaitYounger(ctx, small)
		criticalPod := s.run(ctx, s.newPod("critical", critical, share(15)))[0]
		left := nodeMilliCPU(ctx) * 25 / 100
		for _, pod := range s.otherPods(ctx) {
			for _, container := range pod.Spec.Containers {
				left += container.Resources.Requests.Cpu().MilliValue()
			}
		}
		restartLeaving(ctx, corev1.ResourceCPU, left, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.SystemReserved = map[string]string{"cpu": fmt.Sprintf("%dm", nodeMilliCPU(ctx)-left)}
		}})
		since := time.Now()
		if variant == Stock {
			large.awaitDeath(ctx, since, killTimeout)
			small.awaitDeath(ctx, since, killTimeout)
		} else {
			// The critical pod may preempt it as well.
			Eventually(func(g Gomega) {
				large.expectAlive(g)
				g.Expect(framework.HeldFor(expectKnown(g, ctx, large))).To(ContainElement(guard.AdmissionRejected), "causes of pod %s", large)
			}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "pod %s is held", large)
		}
		// Rejected pods are killed, and statuses written, within the first seconds.
		Consistently(func(g Gomega) {
			for _, pod := range []*subject{neighbour, criticalPod} {
				pod.expectAlive(g)
				object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g)
				g.Expect(object.Status.Phase).To(Equal(corev1.PodRunning), "phase of pod %s: %s", pod, object.Status.Message)
			}
			if variant == Guarded {
				large.expectAlive(g)
				small.expectAlive(g)
			}
		}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed())
		for _, pod := range []*subject{neighbour, criticalPod} {
			s.awaitServing(ctx, pod.name, pod.uid)
		}
		if variant == Guarded {
			s.deleteExplicitly(ctx, large)
			s.deleteExplicitly(ctx, small)
		}
	})
})

// requestingMemory makes the pod's rank among the victims of an eviction: one that uses
// more than it has requested goes first.
func requestingMemory(quantity string) podOption {
	return func(pod *corev1.Pod) {
		for i := range pod.Spec.Containers {
			pod.Spec.Containers[i].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(quantity)}
		}
	}
}

var _ = Describe("The neighbours of a protected pod that causes memory pressure", func() {
	It("are evicted with the stock kubelet, and stay with the guarded one unless they use more than they requested", func(ctx SpecContext) {
		s := newScene(ctx)
		// Until the kubelet knows what a pod uses it counts as one that uses too much; the
		// priority decides then.
		class := framework.Must(client.SchedulingV1().PriorityClasses().Create(ctx, &schedulingv1.PriorityClass{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "modest-"}, Value: 1000,
		}, metav1.CreateOptions{}))
		DeferCleanup(func(ctx context.Context) error {
			return client.SchedulingV1().PriorityClasses().Delete(ctx, class.Name, metav1.DeleteOptions{})
		})
		pods := s.run(ctx,
			s.newPod("culprit", protected, requestingMemory("1Mi")),
			s.newPod("greedy", requestingMemory("1Mi")),
			s.newPod("modest", requestingMemory("32Mi"), func(pod *corev1.Pod) { pod.Spec.PriorityClassName = class.Name }))
		culprit, greedy, modest := pods[0], pods[1], pods[2]
		// Pressure that no eviction ends, as when the culprit stays. What is left of the
		// node still has room for all requests, or admission would reject the pods.
		threshold := nodeCapacity(ctx).Memory().Value() - 80<<20
		restartKubelet(ctx, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.EvictionHard = map[string]string{"memory.available": fmt.Sprint(threshold)}
		}})
		since := time.Now()
		greedy.awaitDeath(ctx, since, evictionTimeout)
		if variant == Stock {
			culprit.awaitDeath(ctx, since, evictionTimeout)
			modest.awaitDeath(ctx, since, evictionTimeout*3/2)
			return
		}
		Eventually(expectState).WithContext(ctx).WithArguments(ctx, culprit, guard.Held, guard.Evicted).WithTimeout(evictionTimeout).Should(Succeed())
		// The manager waits up to 30 s for the clean-up of its last victim.
		stayAlive(ctx, 30*time.Second+evictionHold, culprit, modest)
		s.deleteExplicitly(ctx, culprit)
		By("evicting as usual when the culprit is gone")
		modest.awaitDeath(ctx, time.Now(), evictionTimeout)
	})
})
