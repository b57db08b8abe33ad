package controlplane

import (
	"errors"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
)

// scaleSamples are requests for each number of labelled workloads.
const scaleSamples = 60

// The controller manager is stopped, so that it does not make a ReplicaSet for each
// Deployment meanwhile.
var _ = Describe("price of a /scale", Label(labelBench), Serial, func() {
	It("by the number of labelled workloads in the namespace", func(ctx SpecContext) {
		if !*benchFlag {
			Skip("run it with make bench-webhook")
		}
		counts := []int{0, 200, 1000}
		namespaces := make([]string, len(counts))
		for i := range counts {
			namespaces[i] = newNamespace(ctx, nil)
		}
		Expect(cluster.ControllerManager().Stop(ctx)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Expect(cluster.ControllerManager().Start(ctx)).To(Succeed())
		}, NodeTimeout(time.Minute))
		scale := func(namespace string) error {
			_, err := client.AppsV1().Deployments(namespace).Patch(ctx, "plain", types.MergePatchType, []byte(`{"spec":{"replicas":3}}`),
				metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, "scale")
			return err
		}
		times := map[int][]time.Duration{}
		for i, count := range counts {
			deployments := client.AppsV1().Deployments(namespaces[i])
			_, err := deployments.Create(ctx, newDeployment("plain", 0, nil), metav1.CreateOptions{})
			Expect(err).NotTo(HaveOccurred())
			failures := make([]error, count)
			workqueue.ParallelizeUntil(ctx, benchWriters, count, func(at int) {
				_, failures[at] = deployments.Create(ctx, newDeployment(fmt.Sprintf("labelled-%d", at), 0, map[string]string{labelReplicasProtection: "confirm"}), metav1.CreateOptions{})
			})
			Expect(errors.Join(failures...)).NotTo(HaveOccurred())
		}
		// In turn, so that whatever else the machine does hits all alike.
		for range scaleSamples {
			for i, count := range counts {
				started := time.Now()
				Expect(scale(namespaces[i])).To(Succeed())
				times[count] = append(times[count], time.Since(started))
			}
		}
		for _, count := range counts {
			progress("/scale with %d labelled workloads: %.1f ms at the median, %.1f at the 99th percentile, %.1f times that without any",
				count, quantile(times[count], 0.5), quantile(times[count], 0.99), quantile(times[count], 0.5)/quantile(times[0], 0.5))
		}
	}, SpecTimeout(benchTime))
})
