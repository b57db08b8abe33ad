package fleet

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// What the companion decides has a suite of its own, on one node. Here is what shows
// that it is in the path of a fleet: its pods on other nodes, behind a Service.
var _ = Describe("The companion in the cluster", func() {
	It("lets protected pods go as far as their budget allows, and records forced deletes", func(ctx SpecContext) {
		installWebhook(ctx)
		s := newScene(ctx, withWebhook)
		pods := s.createDeployments(ctx, "web", 3, protected)
		// A replacement that is ready before the next attempt would end the wait.
		setCordon(ctx, true, workers()...)
		for _, node := range workers() {
			name := "web-" + node.Pool()
			s.createBudget(ctx, name, 2, 1)
			first, second := pods[node][0], pods[node][1]

			By("deleting pods of " + name)
			requested := time.Now()
			tryKubectl(ctx, "delete", "pod", "-n", s.namespace, first.name, "--force", "--grace-period=0").ExpectDone()
			tryKubectl(ctx, "delete", "pod", "-n", s.namespace, second.name, "--wait=false").
				ExpectRefused("is protected, and its deletion is held to poddisruptionbudget " + name)
			err := client.CoreV1().Pods(s.namespace).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: second.name}})
			Expect(err).To(MatchError(apierrors.IsTooManyRequests, "is too many requests"), "eviction of pod %s", second)
			awaitEnded(ctx, requested, gracePeriod+deletionSlack, first)
			expectRunning(Default, ctx, pods[node][1:]...)
			record, err := dynamicClient.Resource(guardv1alpha1.GroupVersion.WithResource("poddeletions")).Get(ctx, string(first.uid), metav1.GetOptions{})
			Expect(err).NotTo(HaveOccurred(), "the record of the forced delete of pod %s", first)
			Expect(record.GetName()).To(BeEquivalentTo(first.uid))
		}
	}, SpecTimeout(specTimeout+webhookStart))

	It("refuses protection where nobody granted it", func(ctx SpecContext) {
		installWebhook(ctx)
		s := newScene(ctx, map[string]string{"kubelet-guard.io/canary": "true"})
		pod := newPod("selfish", protected, onNode(guardedNode()))
		Expect(framework.ErrorOf(client.CoreV1().Pods(s.namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}))).To(MatchError(ContainSubstring(guardv1alpha1.ProtectPodsLabel)), "a protected pod in a namespace without a grant")
	}, SpecTimeout(specTimeout+webhookStart))
})
