package controlplane

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/admission"
)

// cacheAgeLimit is more than the time between two bookmarks of the API server, which
// is about a minute.
const cacheAgeLimit = 2 * time.Minute

// scrape reads the metrics of a replica of the webhook.
func scrape(ctx context.Context, pod *corev1.Pod) framework.Metrics {
	GinkgoHelper()
	url := fmt.Sprintf("http://%s/metrics", net.JoinHostPort(pod.Status.PodIP, webhookMetricsPort))
	return framework.Must(framework.ParseMetrics(framework.Must(testnode.Get(ctx, http.DefaultClient, url))))
}

var _ = Describe("the metrics of the webhook", func() {
	It("count a refusal and an override", func(ctx SpecContext) {
		namespace := newNamespace(ctx, cascading)
		createPod(ctx, namespace, newPod("web", nil))
		before := map[admission.RuleName]map[admission.Verdict]int{
			admission.CascadingDeletion: decisions(ctx, admission.CascadingDeletion),
			admission.Override:          decisions(ctx, admission.Override),
		}
		namespaces := overrider.client().CoreV1().Namespaces()
		Expect(namespaces.Delete(ctx, namespace, metav1.DeleteOptions{})).To(BeRefused())
		framework.Must(client.CoreV1().Namespaces().Patch(ctx, namespace, apitypes.MergePatchType, overridePatch(overrideFor(time.Hour, "counted")), metav1.PatchOptions{}))
		Expect(namespaces.Delete(ctx, namespace, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})).To(Succeed())

		Expect(counted(ctx, admission.CascadingDeletion, before[admission.CascadingDeletion])).
			To(Equal(map[admission.Verdict]int{admission.Refused: 1, admission.Overridden: 1}))
		Expect(counted(ctx, admission.Override, before[admission.Override])).
			To(Equal(map[admission.Verdict]int{admission.Allowed: 1}))
	}, SpecTimeout(specTimeout))

	It("have every series from the start, and caches that hear from the API server", func(ctx SpecContext) {
		pods := webhookPods(ctx)
		for i := range pods {
			families := scrape(ctx, &pods[i])
			Expect(families[admission.DecisionsMetric].GetMetric()).To(HaveLen(len(admission.RuleNames())*len(admission.Verdicts())*4), "of CREATE, UPDATE, DELETE and Unknown")
			Expect(families[admission.DecisionDurationMetric].GetMetric()).To(HaveLen(len(admission.RuleNames())))
			ages := map[string]float64{}
			for _, metric := range families[admission.CacheAgeMetric].GetMetric() {
				ages[framework.LabelsOf(metric)["resource"]] = metric.GetGauge().GetValue()
			}
			AddReportEntry("cache ages of "+pods[i].Name, ages)
			Expect(slices.Sorted(maps.Keys(ages))).To(ContainElements("secrets", "poddisruptionbudgets.policy", "nodes"))
			for resource, age := range ages {
				Expect(age).To(BeNumerically("<", cacheAgeLimit.Seconds()), "age of the cache of %s", resource)
			}
		}
	}, SpecTimeout(specTimeout))
})
