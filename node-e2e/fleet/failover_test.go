package fleet

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
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

var _ = Describe("Failover from a lost node", Label(labelAway), func() {
	It("replaces the single pods of protected Deployments as without the companion, whatever their budgets", func(ctx SpecContext) {
		installWebhook(ctx)
		scenes := map[string]*scene{"without the companion": newScene(ctx, nil), "with the companion": newScene(ctx, withWebhook)}
		before := map[*scene]map[string]*subject{}
		for _, s := range scenes {
			before[s] = s.runSingletons(ctx)
		}
		lost := stockNode()
		pause(ctx, lost)
		since := time.Now()
		took := map[string]time.Duration{}
		Eventually(ctx, func(g Gomega) {
			for name, s := range scenes {
				if took[name] != 0 {
					continue
				}
				for app, old := range before[s] {
					s.expectReplaced(g, ctx, app, old)
				}
				took[name] = time.Since(since)
			}
			g.Expect(took).To(HaveLen(len(scenes)))
		}).WithTimeout(failover+failoverLater).Should(Succeed(), "every pod of the lost node has a successor")
		without, with := took["without the companion"], took["with the companion"]
		found("failover of single pods from a lost node: %.0f s without the companion, %.0f s with it", without.Seconds(), with.Seconds())
		Expect(with).To(BeNumerically("<", without+failoverLater))
	}, SpecTimeout(2*specTimeout+webhookStart))
})

// runSingletons runs a protected Deployment of one pod for each of the usual budgets on
// the worker that will be lost, from where its pod may go elsewhere.
func (s *scene) runSingletons(ctx context.Context) map[string]*subject {
	GinkgoHelper()
	for name, spec := range usualBudgets {
		_, err := client.AppsV1().Deployments(s.namespace).Create(ctx,
			newDeployment(name, 1, protected, preferring(stockNode()), leavingAfter(stay)), metav1.CreateOptions{})
		Expect(err).NotTo(HaveOccurred(), "create Deployment %s", name)
		spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
		_, err = client.PolicyV1().PodDisruptionBudgets(s.namespace).Create(ctx, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
		Expect(err).NotTo(HaveOccurred(), "create budget %s", name)
	}
	pods := map[string]*subject{}
	for name := range usualBudgets {
		pods[name] = s.ofApp(ctx, name, 1)[0]
		Expect(pods[name].node).To(Equal(stockNode()), "node of pod %s", pods[name])
	}
	return pods
}

// expectReplaced checks that another pod of the app is Ready elsewhere.
func (s *scene) expectReplaced(g Gomega, ctx context.Context, app string, old *subject) {
	pods, err := client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	g.Expect(err).NotTo(HaveOccurred())
	replaced := false
	for i := range pods.Items {
		pod := &pods.Items[i]
		replaced = replaced || pod.UID != old.uid && pod.DeletionTimestamp == nil && podReady(pod)
	}
	g.Expect(replaced).To(BeTrue(), "a ready successor of pod %s", old)
}
