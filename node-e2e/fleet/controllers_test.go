package fleet

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
)

const (
	// rolloutWait covers a roll-out of a few pods on a loaded machine.
	rolloutWait = 90 * time.Second
	// alikeWithin is by how much the two workers may differ in something that the guard
	// must not delay: the pods end one after the other, and are checked in turns.
	alikeWithin = 10 * time.Second
)

// compareEnds awaits the end of pods on both workers and checks that the guarded one is
// no slower than the stock one.
func compareEnds(ctx context.Context, what string, since time.Time, pods map[*kind.Node][]*subject) {
	GinkgoHelper()
	took := map[*kind.Node]time.Duration{}
	Eventually(ctx, func(g Gomega) {
		for _, node := range workers() {
			if took[node] != 0 {
				continue
			}
			gone := framework.Try(ended(ctx, pods[node]...)).In(g)
			if len(gone) == len(pods[node]) {
				took[node] = time.Since(since)
			}
		}
		g.Expect(took).To(HaveLen(len(workers())), "workers whose pods have ended")
	}).WithTimeout(rolloutWait).Should(Succeed(), "%s ends the pods", what)
	stock, guarded := took[stockNode()], took[guardedNode()]
	framework.Progress("%s: pods had ended after %.1f s on the stock worker, %.1f s on the guarded one", what, stock.Seconds(), guarded.Seconds())
	Expect(guarded).To(BeNumerically("<", stock+alikeWithin), "%s, guarded worker", what)
}

var _ = Describe("A controller", func() {
	It("rolls out, scales and autoscales a Deployment of protected pods as without the guard", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		old := s.createDeployments(ctx, "web", 3, protected)
		names := []string{"web-" + stockNode().Pool(), "web-" + guardedNode().Pool()}

		By("restarting the roll-out")
		requested := time.Now()
		kubectl(ctx, "rollout", "restart", "-n", s.namespace, "deployment/"+names[0], "deployment/"+names[1])
		compareEnds(ctx, "roll-out of a Deployment", requested, old)
		current := map[*kind.Node][]*subject{}
		for i, node := range workers() {
			current[node] = s.ofApp(ctx, names[i], 3)
		}

		By("scaling down through the Deployment")
		requested = time.Now()
		kubectl(ctx, "scale", "-n", s.namespace, "deployment/"+names[0], "deployment/"+names[1], "--replicas=0")
		compareEnds(ctx, "scaling to 0", requested, current)

		By("scaling up and down by /scale, as a HorizontalPodAutoscaler does")
		for _, replicas := range []int{4, 2, 5, 1} {
			for _, name := range names {
				framework.Must(client.AppsV1().Deployments(s.namespace).UpdateScale(ctx, name, &autoscalingv1.Scale{
					ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: s.namespace},
					Spec:       autoscalingv1.ScaleSpec{Replicas: int32(replicas)},
				}, metav1.UpdateOptions{}))
			}
			for _, name := range names {
				s.ofApp(ctx, name, replicas)
			}
		}
		s.expectNothingHeld(ctx)
	}, SpecTimeout(2*specTimeout))

	It("replaces the protected pods of a StatefulSet and a DaemonSet as without the guard", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		for _, node := range workers() {
			set := newStatefulSet("db-"+node.Pool(), 2, protected, selectingNode(node))
			framework.Must(client.AppsV1().StatefulSets(s.namespace).Create(ctx, set, metav1.CreateOptions{}))
		}
		daemons := newDaemonSet("agent", protected, onlyOn(workers()...))
		daemons.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
			Type:          appsv1.RollingUpdateDaemonSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromString("100%"))},
		}
		framework.Must(client.AppsV1().DaemonSets(s.namespace).Create(ctx, daemons, metav1.CreateOptions{}))
		agents, members := map[*kind.Node][]*subject{}, map[*kind.Node][]*subject{}
		for _, agent := range s.ofApp(ctx, "agent", len(workers())) {
			agents[agent.node] = append(agents[agent.node], agent)
		}
		for _, node := range workers() {
			Expect(agents[node]).To(HaveLen(1), "pods of the DaemonSet on %s", node.Name())
			members[node] = s.ofApp(ctx, "db-"+node.Pool(), 2)
		}

		By("deleting a pod of each StatefulSet, which comes back under its name")
		requested := time.Now()
		first := map[*kind.Node][]*subject{}
		for _, node := range workers() {
			for _, member := range members[node] {
				if member.name == "db-"+node.Pool()+"-0" {
					first[node] = append(first[node], member)
				}
			}
			kubectl(ctx, "delete", "pod", "-n", s.namespace, first[node][0].name, "--wait=false")
		}
		compareEnds(ctx, "deletion of a pod of a StatefulSet", requested, first)
		for _, node := range workers() {
			before := first[node][0]
			members[node] = s.ofApp(ctx, "db-"+node.Pool(), 2)
			Expect(members[node]).To(ContainElement(Satisfy(func(after *subject) bool {
				return after.name == before.name && after.uid != before.uid
			})), "another pod with the name %s", before.name)
		}

		By("rolling out both")
		requested = time.Now()
		kubectl(ctx, "rollout", "restart", "-n", s.namespace, "daemonset/agent", "statefulset/db-"+stockNode().Pool(), "statefulset/db-"+guardedNode().Pool())
		compareEnds(ctx, "roll-out of a DaemonSet", requested, agents)
		compareEnds(ctx, "roll-out of a StatefulSet", requested, members)
		s.ofApp(ctx, "agent", len(workers()))
		for _, node := range workers() {
			s.ofApp(ctx, "db-"+node.Pool(), 2)
		}
		s.expectNothingHeld(ctx)
	}, SpecTimeout(2*specTimeout))

	It("sees the protected pods of a Job complete", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		for _, node := range workers() {
			pod := template("job-"+node.Pool(), protected, selectingNode(node), func(pod *corev1.PodTemplateSpec) {
				pod.Spec.RestartPolicy = corev1.RestartPolicyNever
				pod.Spec.Containers[0].Args = []string{"--run-for=3s"}
			})
			framework.Must(client.BatchV1().Jobs(s.namespace).Create(ctx, &batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Name: "job-" + node.Pool()},
				Spec:       batchv1.JobSpec{Completions: ptr.To[int32](2), Parallelism: ptr.To[int32](2), Template: pod},
			}, metav1.CreateOptions{}))
		}
		Eventually(ctx, func(g Gomega) {
			for _, node := range workers() {
				job := framework.Try(client.BatchV1().Jobs(s.namespace).Get(ctx, "job-"+node.Pool(), metav1.GetOptions{})).In(g)
				g.Expect(job.Status.Conditions).To(ContainElement(And(
					HaveField("Type", batchv1.JobComplete), HaveField("Status", corev1.ConditionTrue))), fmt.Sprintf("conditions of %s", job.Name))
				g.Expect(job.Status.Failed).To(BeZero(), "failed pods of %s", job.Name)
			}
		}).WithTimeout(rolloutWait).Should(Succeed(), "the jobs complete")
		s.expectNothingHeld(ctx)
	}, SpecTimeout(specTimeout))
})
