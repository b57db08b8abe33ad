package controlplane

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/node-e2e/framework"
)

const (
	// scaleSamples are requests for each number of labelled workloads, with each who decides.
	scaleSamples = 200
	// flatScale is how many times that without labelled workloads a /scale may take at the
	// median where the webhook decides.
	flatScale = 1.2
)

// The controller manager is stopped, so that it does not make a ReplicaSet for each
// Deployment meanwhile.
var _ = Describe("price of a /scale", Label(labelBench), Serial, func() {
	It("by the number of labelled workloads in the namespace: it grows with policies, and does not with the webhook", func(ctx SpecContext) {
		if !*benchFlag {
			Skip("run it with make bench-webhook")
		}
		type series struct {
			decides   string
			labelled  int
			namespace string
			took      []time.Duration
		}
		const webhookDecides = "the webhook decides"
		counts := []int{0, 200, 1000}
		var all []*series
		for _, count := range counts {
			all = append(all, &series{decides: "policies decide", labelled: count, namespace: newNamespace(ctx, nil)},
				&series{decides: webhookDecides, labelled: count, namespace: newNamespace(ctx, reviewedByWebhook)})
		}
		Expect(cluster.ControllerManager().Stop(ctx)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Expect(cluster.ControllerManager().Start(ctx)).To(Succeed())
		}, NodeTimeout(time.Minute))
		for _, s := range all {
			deployments := client.AppsV1().Deployments(s.namespace)
			framework.Must(deployments.Create(ctx, newDeployment("plain", 5, nil), metav1.CreateOptions{}))
			failures := make([]error, s.labelled)
			workqueue.ParallelizeUntil(ctx, benchWriters, s.labelled, func(at int) {
				_, failures[at] = deployments.Create(ctx, newDeployment(fmt.Sprintf("labelled-%d", at), 0, map[string]string{labelReplicasProtection: "confirm"}), metav1.CreateOptions{})
			})
			Expect(errors.Join(failures...)).NotTo(HaveOccurred())
		}
		// In turn, so that whatever else the machine does hits all alike, and shuffled, so that
		// none always follows the same one; down and up, since each has an entry of its own.
		for sample := range scaleSamples {
			replicas := 3 + 4*(sample%2)
			for _, at := range rand.Perm(len(all)) {
				s := all[at]
				started := time.Now()
				_, err := client.AppsV1().Deployments(s.namespace).Patch(ctx, "plain", types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas),
					metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, "scale")
				s.took = append(s.took, time.Since(started))
				Expect(err).NotTo(HaveOccurred())
			}
		}
		first, last := map[string]float64{}, map[string]float64{}
		for _, s := range all {
			median := quantile(s.took, 0.5)
			if s.labelled == 0 {
				first[s.decides] = median
			}
			last[s.decides] = median
			framework.Progress("/scale with %d labelled workloads, where %s: %.1f ms at the median, %.1f at the 99th percentile, %.2f times that without any",
				s.labelled, s.decides, median, quantile(s.took, 0.99), median/first[s.decides])
		}
		Expect(last[webhookDecides]/first[webhookDecides]).To(BeNumerically("<=", flatScale), "the price with 1,000 labelled workloads, against none")
	}, SpecTimeout(benchTime))
})
