package controlplane

import (
	"context"
	"crypto/x509"
	"encoding/pem"
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
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/monitoring/fleetmetrics"
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
		framework.Must(client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, overridePatch(overrideFor(time.Hour, "counted")), metav1.PatchOptions{}))
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

// gaugeWait covers the way of an object into the caches of the replicas.
const gaugeWait = 15 * time.Second

// scrapePath reads metrics by way of the API server.
func scrapePath(ctx context.Context, path string) framework.Metrics {
	GinkgoHelper()
	return framework.Must(framework.ParseMetrics(framework.Must(client.CoreV1().RESTClient().Get().AbsPath(path).DoRaw(ctx))))
}

// byKubelet reads a gauge of the coverage from one replica.
func byKubelet(ctx context.Context, pod *corev1.Pod, name string) map[fleetmetrics.Kubelet]float64 {
	GinkgoHelper()
	numbers := map[fleetmetrics.Kubelet]float64{}
	for _, metric := range scrape(ctx, pod)[name].GetMetric() {
		numbers[fleetmetrics.Kubelet(framework.LabelsOf(metric)["kubelet"])] = metric.GetGauge().GetValue()
	}
	return numbers
}

var _ = Describe("what the alerts are made from", func() {
	It("counts nodes without the guard that run protected pods, in every replica", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		replicas := webhookPods(ctx)
		before := byKubelet(ctx, &replicas[0], fleetmetrics.ProtectedNodesMetric)

		By("a node whose kubelet is a stock one")
		node := framework.Must(client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{GenerateName: "stock-"}}, metav1.CreateOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			Expect(client.CoreV1().Nodes().Delete(ctx, node.Name, metav1.DeleteOptions{})).To(Succeed())
		}, NodeTimeout(specTimeout))
		framework.Must(client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType,
			fmt.Appendf(nil, `{"status":{"nodeInfo":{"kubeletVersion":%q}}}`, framework.KubeVersion), metav1.PatchOptions{}, "status"))

		By("with a protected pod")
		pod := newPod("protected", map[string]string{labelExplicitDeletion: "required"})
		pod.Spec.NodeName = node.Name
		pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		framework.Must(client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			// No kubelet is there to end it.
			Expect(client.CoreV1().Pods(namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})).To(Succeed())
		}, NodeTimeout(specTimeout))

		for i := range replicas {
			Eventually(ctx, func() map[fleetmetrics.Kubelet]float64 {
				return byKubelet(ctx, &replicas[i], fleetmetrics.ProtectedNodesMetric)
			}).WithTimeout(gaugeWait).Should(Equal(map[fleetmetrics.Kubelet]float64{
				fleetmetrics.Guarded: before[fleetmetrics.Guarded], fleetmetrics.Unguarded: before[fleetmetrics.Unguarded] + 1, fleetmetrics.Missing: before[fleetmetrics.Missing],
			}), replicas[i].Name)
		}

		By("next to the node of this cluster, whose kubelet is guarded")
		createPod(ctx, namespace, newPod("guarded", map[string]string{labelExplicitDeletion: "required"}))
		Eventually(ctx, func() float64 {
			return byKubelet(ctx, &replicas[0], fleetmetrics.ProtectedNodesMetric)[fleetmetrics.Guarded]
		}).WithTimeout(gaugeWait).Should(BeEquivalentTo(1))
		Expect(byKubelet(ctx, &replicas[0], fleetmetrics.NodesMetric)).To(HaveKeyWithValue(fleetmetrics.Guarded, 1.0))
	}, SpecTimeout(specTimeout))

	It("knows when the certificate expires", func(ctx SpecContext) {
		block, _ := pem.Decode(framework.Must(client.CoreV1().Secrets(guardNamespace).Get(ctx, "guard-webhook-tls", metav1.GetOptions{})).Data[corev1.TLSCertKey])
		Expect(block).NotTo(BeNil())
		certificate := framework.Must(x509.ParseCertificate(block.Bytes))
		replicas := webhookPods(ctx)
		for i := range replicas {
			family := scrape(ctx, &replicas[i])[admission.CertificateMetric]
			Expect(family.GetMetric()).To(HaveLen(1))
			Expect(int64(family.GetMetric()[0].GetGauge().GetValue())).To(Equal(certificate.NotAfter.Unix()))
		}
	}, SpecTimeout(specTimeout))

	It("is in the API server, for what policies refuse", Label(labelPolicies), func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelDeletionProtection: "always"})
		Expect(ordinary.client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).To(BeRefused())
		found := scrapePath(ctx, "/metrics").Series("apiserver_validating_admission_policy_check_total", map[string]string{"policy": "always.deletion.kubelet-guard.io", "enforcement_action": "deny"})
		Expect(found).To(HaveLen(1))
		Expect(found[0].GetCounter().GetValue()).To(BeNumerically(">=", 1))
	}, SpecTimeout(specTimeout))

	It("is in the API server, for calls of the webhook that fail", Label(labelOutage), Serial, func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelDeletionProtection: "cascading"})
		stopWebhook(ctx)
		Expect(ordinary.client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).NotTo(Succeed())
		found := scrapePath(ctx, "/metrics").Series("apiserver_admission_webhook_rejection_count", map[string]string{"name": "cascading-deletion.kubelet-guard.io", "error_type": "calling_webhook_error"})
		Expect(found).NotTo(BeEmpty())
	}, SpecTimeout(2*rolloutWait))

	It("is in the guarded kubelet", Label(labelPolicies), func(ctx SpecContext) {
		for _, node := range framework.Must(client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})).Items {
			if node.Status.DaemonEndpoints.KubeletEndpoint.Port == 0 {
				continue // an object without a kubelet
			}
			families := scrapePath(ctx, "/api/v1/nodes/"+node.Name+"/proxy/metrics")
			Expect(families).To(HaveKey("kubelet_guard_info"))
			Expect(families.Series(framework.RefusedKills, map[string]string{"cause": "RuntimeStop"})).To(HaveLen(1))
		}
	}, SpecTimeout(specTimeout))
})
