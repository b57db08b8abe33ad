package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
)

const (
	// failover covers a silent node that is given up, taint eviction and a new pod.
	failover = nodeLost + stay + taintEviction + podStart
	// failoverLater is by how much the companion may delay it.
	failoverLater = time.Minute
)

// usualBudgets are those that people give a single pod. Without a failure none but
// max-unavailable lets it go.
var usualBudgets = map[string]policyv1.PodDisruptionBudgetSpec{
	"min-available":   {MinAvailable: ptr.To(intstr.FromInt32(1))},
	"max-unavailable": {MaxUnavailable: ptr.To(intstr.FromInt32(1))},
	"half":            {MinAvailable: ptr.To(intstr.FromString("50%"))},
	"if-healthy":      {MinAvailable: ptr.To(intstr.FromInt32(1)), UnhealthyPodEvictionPolicy: ptr.To(policyv1.IfHealthyBudget)},
	"always-allow":    {MinAvailable: ptr.To(intstr.FromInt32(1)), UnhealthyPodEvictionPolicy: ptr.To(policyv1.AlwaysAllow)},
}

// Ways in which pods of lost nodes are deleted without a person.
const (
	byTaintEviction = "taint eviction, Deployments"
	byOutOfService  = "out-of-service taint, StatefulSets"
	byPodGC         = "node deleted, StatefulSets"
)

var _ = Describe("Failover from two lost nodes", Label(labelAway), func() {
	It("replaces protected pods as without the companion, whatever their budgets", func(ctx SpecContext) {
		installWebhook(ctx)
		scenes := map[string]*scene{"without": newScene(ctx, nil), "with": newScene(ctx, withWebhook)}
		for _, s := range scenes {
			s.runFailover(ctx)
		}
		lost := []*kind.Node{stockNode(), guardedNode()}
		pause(ctx, lost...)
		since := time.Now()
		took := map[string]map[string]time.Duration{"without": {}, "with": {}}
		await := func(way string) {
			GinkgoHelper()
			Eventually(ctx, func(g Gomega) {
				for name, s := range scenes {
					if took[name][way] != 0 {
						continue
					}
					s.expectFailedOver(g, ctx, way, lost)
					took[name][way] = time.Since(since)
				}
				g.Expect([]time.Duration{took["without"][way], took["with"][way]}).NotTo(ContainElement(BeZero()))
			}).WithTimeout(failover+failoverLater).Should(Succeed(), "every pod of the lost nodes has a successor: %s", way)
			without, with := took["without"][way], took["with"][way]
			found("failover from two lost nodes, %s: %.0f s without the companion, %.0f s with it", way, without.Seconds(), with.Seconds())
			Expect(with).To(BeNumerically("<", without+failoverLater), way)
		}
		await(byTaintEviction)

		By("giving the machines up: one by the out-of-service taint, one by deleting its node")
		const outOfService = "node.kubernetes.io/out-of-service"
		DeferCleanup(func(ctx SpecContext) {
			tryKubectl(ctx, "taint", "node", stockNode().Name(), outOfService+"-")
		}, NodeTimeout(cleanTimeout))
		deleteNodeObjects(ctx, guardedNode())
		DeferCleanup(func(ctx SpecContext) {
			// Before the node can be registered again. One that runs already is no reason to fail.
			_ = inParallel(lost, func(n *kind.Node) error { return n.Unpause(ctx) })
		}, NodeTimeout(cleanTimeout))
		kubectl(ctx, "taint", "node", stockNode().Name(), outOfService+"=nodeshutdown:NoExecute")
		since = time.Now()
		await(byOutOfService)
		await(byPodGC)
	}, SpecTimeout(3*specTimeout+webhookStart))
})

// failoverApps are the workloads of a way with their budgets, and the node that their pods
// leave.
func failoverApps(way string) (apps map[string]policyv1.PodDisruptionBudgetSpec, from *kind.Node) {
	prefix, from := "evicted-", stockNode()
	switch way {
	case byOutOfService:
		prefix = "out-of-service-"
	case byPodGC:
		prefix, from = "orphaned-", guardedNode()
	}
	apps = map[string]policyv1.PodDisruptionBudgetSpec{}
	for name, spec := range usualBudgets {
		// All budgets are judged alike, so one is enough for the other ways.
		if way == byTaintEviction || name == "min-available" {
			apps[prefix+name] = spec
		}
	}
	return apps, from
}

// runFailover runs, for each way and each of the usual budgets, a protected workload of one
// pod on a worker that will be lost, from where its pod may go elsewhere.
func (s *scene) runFailover(ctx context.Context) {
	GinkgoHelper()
	for _, way := range []string{byTaintEviction, byOutOfService, byPodGC} {
		apps, from := failoverApps(way)
		leaves := leavingAfter(stay)
		if way == byPodGC {
			leaves = leavingAfter(-1) // so that nothing but the pod garbage collector deletes it
		}
		for app, spec := range apps {
			var err error
			if way == byTaintEviction {
				_, err = client.AppsV1().Deployments(s.namespace).Create(ctx, newDeployment(app, 1, protected, preferring(from), leaves), metav1.CreateOptions{})
			} else {
				_, err = client.AppsV1().StatefulSets(s.namespace).Create(ctx, newStatefulSet(app, 1, protected, preferring(from), leaves), metav1.CreateOptions{})
			}
			Expect(err).NotTo(HaveOccurred())
			spec.Selector = framework.AppSelector(app)
			framework.Must(client.PolicyV1().PodDisruptionBudgets(s.namespace).Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: app}, Spec: spec}, metav1.CreateOptions{}))
		}
	}
	for _, way := range []string{byTaintEviction, byOutOfService, byPodGC} {
		apps, from := failoverApps(way)
		for app := range apps {
			pod := s.ofApp(ctx, app, 1)[0]
			Expect(pod.node).To(Equal(from), "node of pod %s", pod)
		}
	}
}

// expectFailedOver checks that the workloads of a way have their pods Ready elsewhere.
func (s *scene) expectFailedOver(g Gomega, ctx context.Context, way string, lost []*kind.Node) {
	apps, _ := failoverApps(way)
	for app := range apps {
		pods := framework.Try(client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})).In(g)
		g.Expect(slices.ContainsFunc(pods.Items, func(pod corev1.Pod) bool {
			return !slices.Contains(namesOf(lost), pod.Spec.NodeName) && pod.DeletionTimestamp == nil && testnode.PodReady(&pod)
		})).To(BeTrue(), fmt.Sprintf("a ready successor of the pod of %s in %s", app, s.namespace))
	}
}
