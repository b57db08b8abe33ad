package controlplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/node-e2e/framework"
)

// labelBench marks the measurement, which runs only on request.
const labelBench = "bench"

const (
	benchSamples = 150
	// benchWriters create budgets side by side.
	benchWriters = 16
	benchTime    = 9 * time.Minute
)

// A benchOperation ends one pod.
type benchOperation struct {
	name    string
	protect bool
	run     func(ctx context.Context, namespace, pod string) error
}

var benchOperations = []benchOperation{
	{"PodDelete/guard=off", false, func(ctx context.Context, namespace, pod string) error {
		return client.CoreV1().Pods(namespace).Delete(ctx, pod, metav1.DeleteOptions{})
	}},
	{"PodDelete/guard=on", true, func(ctx context.Context, namespace, pod string) error {
		return client.CoreV1().Pods(namespace).Delete(ctx, pod, metav1.DeleteOptions{})
	}},
	{"PodEviction", true, func(ctx context.Context, namespace, pod string) error {
		return client.PolicyV1().Evictions(namespace).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod}})
	}},
}

// The measurement stops the controller manager: it would count ten thousand budgets
// while requests are timed. The API server, etcd and the webhook's pods are the real
// ones, and each operation reserves a disruption and deletes a pod.
var _ = Describe("price of a pod's deletion", Label(labelBench), Serial, func() {
	It("does not grow with the number of budgets", func(ctx SpecContext) {
		if !*benchFlag {
			Skip("run it with make bench-webhook")
		}
		counts := []int{10, 10_000}
		node := createSilentNode(ctx, nil)
		namespaces := make([]string, len(counts))
		for i := range counts {
			namespaces[i] = newNamespace(ctx, granted)
		}
		Expect(cluster.ControllerManager().Stop(ctx)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Expect(cluster.ControllerManager().Start(ctx)).To(Succeed())
		}, NodeTimeout(time.Minute))

		results := map[string][]time.Duration{}
		var lines strings.Builder
		fmt.Fprintf(&lines, "goos: %s\ngoarch: %s\npkg: kubelet-guard.io/node-e2e/controlplane\n", runtime.GOOS, runtime.GOARCH)
		for i, count := range counts {
			var pods []*corev1.Pod
			for _, operation := range benchOperations {
				for sample := range benchSamples {
					pod := webPod(benchPod(operation, sample))
					if !operation.protect {
						delete(pod.Labels, labelExplicitDeletion)
					}
					pods = append(pods, pod)
				}
			}
			createSilentPods(ctx, namespaces[i], node, pods...)
			createBenchBudgets(ctx, namespaces[i], count)
			withdrawGrant(ctx, namespaces[i])
		}
		measure := func(operation benchOperation, i, sample int) {
			started := time.Now()
			err := operation.run(ctx, namespaces[i], benchPod(operation, sample))
			took := time.Since(started)
			Expect(err).NotTo(HaveOccurred(), "%s with %d budgets", operation.name, counts[i])
			name := fmt.Sprintf("%s/budgets=%d", operation.name, counts[i])
			results[name] = append(results[name], took)
			fmt.Fprintf(&lines, "Benchmark%s-%d 1 %d ns/op\n", name, runtime.GOMAXPROCS(0), took.Nanoseconds())
		}
		// Few and many budgets in turn, so that whatever else the machine does hits both;
		// evictions by themselves, since the garbage that their lists leave in the API
		// server slows down what comes next.
		for _, operations := range [][]benchOperation{benchOperations[:2], benchOperations[2:]} {
			for sample := range benchSamples {
				for _, operation := range operations {
					for i := range counts {
						measure(operation, i, sample)
					}
				}
			}
		}
		file := filepath.Join(artifactsDir(), "bench-webhook.txt")
		Expect(os.WriteFile(file, []byte(lines.String()), 0o644)).To(Succeed())

		few, many := counts[0], counts[1]
		table := fmt.Sprintf("%-22s %12s %12s %9s   (median and 99th percentile of %d, ms; ratio of medians)\n", "", fmt.Sprintf("%d budgets", few), fmt.Sprintf("%d budgets", many), "ratio", benchSamples)
		ratios := map[string]float64{}
		for _, operation := range benchOperations {
			a, b := results[fmt.Sprintf("%s/budgets=%d", operation.name, few)], results[fmt.Sprintf("%s/budgets=%d", operation.name, many)]
			ratios[operation.name] = quantile(b, 0.5) / quantile(a, 0.5)
			table += fmt.Sprintf("%-22s %5.1f %6.1f %5.1f %6.1f %9.2f\n", operation.name,
				quantile(a, 0.5), quantile(a, 0.99), quantile(b, 0.5), quantile(b, 0.99), ratios[operation.name])
		}
		for _, count := range counts {
			table += fmt.Sprintf("eviction against delete under the guard, %d budgets: %.1f times\n", count,
				quantile(results[fmt.Sprintf("PodEviction/budgets=%d", count)], 0.5)/quantile(results[fmt.Sprintf("PodDelete/guard=on/budgets=%d", count)], 0.5))
		}
		framework.Progress("%slines for benchstat: %s", table, file)
		// Far above noise, far below what a list of all budgets would cost.
		Expect(ratios["PodDelete/guard=on"]).To(BeNumerically("<", 1.5), "ratio of the medians with many and with few budgets\n%s", table)
	}, SpecTimeout(benchTime))
})

func benchPod(operation benchOperation, sample int) string {
	return fmt.Sprintf("%s-%d", strings.NewReplacer("/", "-", "=", "-").Replace(strings.ToLower(operation.name)), sample)
}

// withdrawGrant takes the evictions of the namespace out of the webhook's sight, so that
// they are measured as they are built in. Its pods keep their labels.
func withdrawGrant(ctx context.Context, namespace string) {
	GinkgoHelper()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:null},"annotations":{%q:%q}}}`, labelProtectPods, annotationOverride, overrideFor(time.Hour, "measurement"))
	framework.Must(client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{}))
}

// createBenchBudgets creates budgets of which one selects the pods, says that it
// allows all of them to go, and waits until every replica of the webhook knows it.
func createBenchBudgets(ctx context.Context, namespace string, count int) {
	GinkgoHelper()
	budgets := client.PolicyV1().PodDisruptionBudgets(namespace)
	failures := make([]error, count-1)
	workqueue.ParallelizeUntil(ctx, benchWriters, len(failures), func(i int) {
		other := fmt.Sprintf("other-%d", i)
		_, failures[i] = budgets.Create(ctx, framework.NewBudget(other, other, 1), metav1.CreateOptions{})
	})
	Expect(errors.Join(failures...)).NotTo(HaveOccurred())
	budget := framework.Must(budgets.Create(ctx, framework.NewBudget("web", "web", 1), metav1.CreateOptions{}))

	By("waiting until all replicas refuse for the last of the budgets")
	const answers = 10
	dry := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	pod := benchPod(benchOperations[1], 0)
	Eventually(ctx, func(g Gomega) {
		for range answers {
			g.Expect(client.CoreV1().Pods(namespace).Delete(ctx, pod, dry)).To(BeRefused("poddisruptionbudget web"))
		}
	}).WithTimeout(time.Minute).Should(Succeed())
	budget.Status = policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: budget.Generation, DisruptionsAllowed: 100_000, CurrentHealthy: 100_001, DesiredHealthy: 1, ExpectedPods: 100_001,
	}
	framework.Must(budgets.UpdateStatus(ctx, budget, metav1.UpdateOptions{}))
}

// quantile returns a quantile of the durations in milliseconds.
func quantile(durations []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(durations))
	return float64(sorted[int(q*float64(len(sorted)-1))].Microseconds()) / 1000
}

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
