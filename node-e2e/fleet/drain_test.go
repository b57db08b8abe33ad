package fleet

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// drainTimeout is what kubectl drain is given. It tries a refused eviction again
	// every 5 s until then.
	drainTimeout = 12 * time.Second
	// budgetRefusal is what the API server says about an eviction past a budget.
	budgetRefusal = "would violate the pod's disruption budget"
)

// drain runs kubectl drain for each node at the same time, since a person would do
// one after the other.
func drain(ctx context.Context, nodes []*kind.Node, flags ...string) map[*kind.Node]framework.KubectlResult {
	GinkgoHelper()
	DeferCleanup(func(ctx SpecContext) { setCordon(ctx, false, nodes...) }, NodeTimeout(cleanTimeout))
	results := make([]framework.KubectlResult, len(nodes))
	positions := make([]int, len(nodes))
	for i := range nodes {
		positions[i] = i
	}
	_ = inParallel(positions, func(i int) error {
		args := append([]string{"drain", nodes[i].Name(), "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=" + drainTimeout.String()}, flags...)
		results[i] = tryKubectl(ctx, args...)
		return nil
	})
	byNode := map[*kind.Node]framework.KubectlResult{}
	for i, node := range nodes {
		byNode[node] = results[i]
	}
	return byNode
}

// createDeployments creates a Deployment for each of the two workers, bound to it, and
// waits until its pods are Ready.
func (s *scene) createDeployments(ctx context.Context, name string, replicas int, options ...podOption) map[*kind.Node][]*subject {
	GinkgoHelper()
	for _, node := range workers() {
		deployment := newDeployment(name+"-"+node.Pool(), replicas, append([]podOption{selectingNode(node)}, options...)...)
		framework.Must(client.AppsV1().Deployments(s.namespace).Create(ctx, deployment, metav1.CreateOptions{}))
	}
	pods := map[*kind.Node][]*subject{}
	for _, node := range workers() {
		pods[node] = s.ofApp(ctx, name+"-"+node.Pool(), replicas)
	}
	return pods
}

func both(pods map[*kind.Node][]*subject) []*subject {
	var all []*subject
	for _, node := range workers() {
		all = append(all, pods[node]...)
	}
	return all
}

func expectCordoned(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	for _, node := range nodes {
		object := framework.Must(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{}))
		Expect(object.Spec.Unschedulable).To(BeTrue(), "node %s is cordoned", node.Name())
	}
}

var _ = Describe("kubectl drain", func() {
	It("evicts protected pods like any other, and no pod past its budget", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		free := s.createDeployments(ctx, "free", 2, protected)
		plain := s.createDeployments(ctx, "plain", 1)
		kept := s.createDeployments(ctx, "kept", 1, protected)
		for _, node := range workers() {
			s.createBudget(ctx, "kept-"+node.Pool(), 1, 0)
		}

		By("cordoning, which changes nothing for what runs")
		setCordon(ctx, true, workers()...)
		stayRunning(ctx, holdPeriod, append(append(both(free), both(plain)...), both(kept)...)...)

		By("draining")
		requested := time.Now()
		for node, result := range drain(ctx, workers()) {
			result.ExpectRefused(budgetRefusal, "kept-"+node.Pool())
		}
		awaitEnded(ctx, requested, gracePeriod+deletionSlack, append(both(free), both(plain)...)...)
		expectRunning(Default, ctx, both(kept)...)
		expectCordoned(ctx, workers()...)

		By("draining by deletion, which no budget limits")
		for _, result := range drain(ctx, workers(), "--disable-eviction") {
			result.ExpectDone()
		}
		awaitEnded(ctx, requested, gracePeriod+deletionSlack, both(kept)...)

		By("uncordoning, after which the replacements start")
		setCordon(ctx, false, workers()...)
		for _, node := range workers() {
			s.ofApp(ctx, "free-"+node.Pool(), 2)
			s.ofApp(ctx, "kept-"+node.Pool(), 1)
		}
		s.expectNothingHeld(ctx)
	}, SpecTimeout(specTimeout))

	It("reports why the companion keeps a protected pod, also with --disable-eviction", func(ctx SpecContext) {
		installWebhook(ctx)
		s := newScene(ctx, withWebhook)
		kept := s.createDeployments(ctx, "kept", 1, protected)
		for _, node := range workers() {
			s.createBudget(ctx, "kept-"+node.Pool(), 1, 0)
		}
		By("draining by deletion")
		for node, result := range drain(ctx, workers(), "--disable-eviction") {
			// As docs/operations.md quotes it.
			result.ExpectRefused(fmt.Sprintf("error: unable to drain node %q due to error: ", node.Name()),
				`admission webhook "pod-deletion.kubelet-guard.io" denied the request: pod/kept-`,
				"is protected, and its deletion is held to poddisruptionbudget kept-"+node.Pool()+", which needs 1 healthy pods and has 1",
				fmt.Sprintf("kubectl get poddisruptionbudget kept-%s -n %s", node.Pool(), s.namespace))
		}
		stayRunning(ctx, holdPeriod, both(kept)...)
		expectCordoned(ctx, workers()...)
		for _, pod := range kept[guardedNode()] {
			awaitGuardState(ctx, pod, guard.Protected)
		}

		By("removing the budgets, and draining as usual")
		s.deleteBudgets(ctx)
		requested := time.Now()
		// The webhook's watch has to deliver it, usually within milliseconds.
		Eventually(ctx, func(g Gomega) {
			for _, result := range drain(ctx, workers(), "--disable-eviction") {
				g.Expect(result.Err).NotTo(HaveOccurred(), "%s", result)
			}
		}).WithTimeout(time.Minute).Should(Succeed())
		awaitEnded(ctx, requested, gracePeriod+deletionSlack, both(kept)...)
	}, SpecTimeout(specTimeout+webhookStart))
})
