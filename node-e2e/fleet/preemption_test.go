package fleet

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// ofPriority sets the priority class.
func ofPriority(class string) podOption {
	return func(pod *corev1.PodTemplateSpec) { pod.Spec.PriorityClassName = class }
}

var _ = Describe("Preemption", func() {
	It("by the scheduler is a deletion through the API, and ends a protected pod", func(ctx SpecContext) {
		class := framework.Must(client.SchedulingV1().PriorityClasses().Create(ctx, &schedulingv1.PriorityClass{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "fleet-"}, Value: 1000,
		}, metav1.CreateOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			Expect(client.SchedulingV1().PriorityClasses().Delete(ctx, class.Name, metav1.DeleteOptions{})).To(Succeed())
		}, NodeTimeout(cleanTimeout))
		s := newScene(ctx, nil)
		victims := s.runVictims(ctx)
		By("creating pods with a higher priority that need the room")
		requested := time.Now()
		for _, node := range workers() {
			framework.Must(client.CoreV1().Pods(s.namespace).Create(ctx,
				newPod("important-"+node.Pool(), selectingNode(node), requesting(victims.request[node]), ofPriority(class.Name)), metav1.CreateOptions{}))
		}
		compareEnds(ctx, "preemption by the scheduler", requested, victims.pods)
		for _, node := range workers() {
			s.ofApp(ctx, "important-"+node.Pool(), 1)
		}
		s.expectNothingHeld(ctx)
	}, SpecTimeout(specTimeout))

	It("by a kubelet, for a critical pod that was bound to its node past the scheduler, ends a protected pod on the stock worker only", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		victims := s.runVictims(ctx)
		stock, guarded := victims.pods[stockNode()][0], victims.pods[guardedNode()][0]
		By("binding critical pods to the nodes")
		requested := time.Now()
		for _, node := range workers() {
			framework.Must(client.CoreV1().Pods(s.namespace).Create(ctx,
				newPod("critical-"+node.Pool(), onNode(node), requesting(victims.request[node]), ofPriority("system-node-critical")), metav1.CreateOptions{}))
		}
		took := awaitEnded(ctx, requested, killTimeout, stock)
		found("a critical pod bound past the scheduler: the stock kubelet killed the protected pod after %.0f s, the guarded one refused", took.Seconds())
		s.ofApp(ctx, "critical-"+stockNode().Pool(), 1)
		awaitGuardState(ctx, guarded, guard.Held, guard.Preempted)
		stayRunning(ctx, holdPeriod, guarded)
		expectAPIShowsRunning(Default, ctx, guarded)
		critical := framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, "critical-"+guardedNode().Pool(), metav1.GetOptions{}))
		Expect(critical.Status.Phase).To(Equal(corev1.PodFailed), "the critical pod is rejected (%s: %s)", critical.Status.Reason, critical.Status.Message)
		deleteExplicitly(ctx, metav1.DeleteOptions{}, guarded)
	}, SpecTimeout(specTimeout))
})

// victims are protected pods that take more than half of what each worker has left.
type victims struct {
	pods    map[*kind.Node][]*subject
	request map[*kind.Node]int64
}

func (s *scene) runVictims(ctx context.Context) victims {
	GinkgoHelper()
	v := victims{map[*kind.Node][]*subject{}, map[*kind.Node]int64{}}
	var pods []*corev1.Pod
	for _, node := range workers() {
		v.request[node] = freeCPU(ctx, node) * 6 / 10
		pods = append(pods, newPod("victim-"+node.Pool(), protected, selectingNode(node), requesting(v.request[node])))
	}
	for i, pod := range s.run(ctx, pods...) {
		v.pods[workers()[i]] = []*subject{pod}
	}
	return v
}
