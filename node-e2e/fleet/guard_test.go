package fleet

import (
	"context"
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// getFromKubelet reads a path of a kubelet's port, through the API server.
func getFromKubelet(ctx context.Context, node *kind.Node, path string) ([]byte, error) {
	return client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + node.Name() + "/proxy" + path).DoRaw(ctx)
}

// guardPods reads /guard/pods of a guarded node.
func guardPods(ctx context.Context, node *kind.Node) (guard.PodList, error) {
	text, err := getFromKubelet(ctx, node, guard.PodsPath)
	if err != nil {
		return guard.PodList{}, fmt.Errorf("%s of %s: %w", guard.PodsPath, node.Name(), err)
	}
	return framework.ParseGuardPods(text)
}

// guardPod is what a guarded node says about one protected pod, or nil.
func guardPod(ctx context.Context, pod *subject) (*guard.PodState, error) {
	list, err := guardPods(ctx, pod.node)
	return framework.FindGuardPod(list, pod.uid), err
}

// awaitGuardState waits until a guarded node shows a pod in a state, held for exactly
// these causes, and returns what it shows.
func awaitGuardState(ctx context.Context, pod *subject, state guard.State, causes ...guard.Cause) *guard.PodState {
	GinkgoHelper()
	var found *guard.PodState
	Eventually(ctx, func(g Gomega) {
		found = framework.Try(guardPod(ctx, pod)).In(g)
		g.Expect(found).NotTo(BeNil(), "pod %s in %s", pod, guard.PodsPath)
		g.Expect(found.State).To(Equal(state), "state of pod %s: %+v", pod, found)
		g.Expect(framework.HeldFor(found)).To(ConsistOf(causes), "causes of the holds of pod %s", pod)
	}).WithTimeout(killTimeout+apiLag).Should(Succeed(), "state of pod %s at its kubelet", pod)
	return found
}

// awaitHeldCondition waits until the API shows a pod as held.
func awaitHeldCondition(ctx context.Context, pod *subject, cause guard.Cause) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		framework.ExpectKillRefused(g, framework.Try(client.CoreV1().Pods(pod.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g), cause)
	}).WithTimeout(apiLag).Should(Succeed(), "condition %s of pod %s", guard.PodKillRefused, pod)
}

// expectNothingHeld checks that no guarded node holds a pod of the scene.
func (s *scene) expectNothingHeld(ctx context.Context) {
	GinkgoHelper()
	for _, node := range ownNodes() {
		if !node.Guarded() {
			continue
		}
		for _, pod := range framework.Must(guardPods(ctx, node)).Items {
			if pod.Namespace == s.namespace {
				Expect(pod.Holds).To(BeEmpty(), "holds of pod %s on %s", pod.Name, node.Name())
			}
		}
	}
}

// readMetrics reads the metrics of a kubelet.
func readMetrics(ctx context.Context, node *kind.Node) (framework.Metrics, error) {
	text, err := getFromKubelet(ctx, node, "/metrics")
	if err != nil {
		return nil, err
	}
	return framework.ParseMetrics(text)
}

// refused is how often a guarded kubelet has refused a kill since its start, by cause.
func refused(ctx context.Context, node *kind.Node) map[guard.Cause]int {
	GinkgoHelper()
	var metrics framework.Metrics
	Eventually(ctx, func() (err error) {
		metrics, err = readMetrics(ctx, node)
		return err
	}).WithTimeout(apiLag).Should(Succeed(), "metrics of %s", node.Name())
	return metrics.ByCause(framework.RefusedKills)
}

// failures are counts of failed operations of one kubelet process, which start at its start.
type failures struct {
	start       float64
	byOperation map[string]int
}

// reportedFailures are those that a spec has failed for. A later spec fails for its own only.
var reportedFailures failures

// newFailures returns the failed operations that no spec has failed for, and notes that
// one has now.
func newFailures(metrics framework.Metrics) map[string]int {
	now := failures{start: metrics.Sum("process_start_time_seconds"), byOperation: metrics.FailedOperations()}
	// The lookups fail on a node that is cut off.
	delete(now.byOperation, framework.DeletionLookups)
	fresh := map[string]int{}
	for operation, count := range now.byOperation {
		if now.start != reportedFailures.start || count > reportedFailures.byOperation[operation] {
			fresh[operation] = count
		}
	}
	reportedFailures = now
	return fresh
}

// The guard's own counters show what a spec does not check: kill attempts that
// only the last line of defence refused, and failed operations on the node. A correct
// build on a healthy node has none.
var _ = JustAfterEach(func(ctx SpecContext) {
	if cluster == nil {
		return
	}
	if len(workers()) == 0 {
		if CurrentSpecReport().Failed() {
			collect(ctx)
		}
		return
	}
	metrics, err := readMetrics(ctx, guardedNode())
	if err == nil {
		failed := newFailures(metrics)
		stops := metrics.ByCause(framework.RefusedKills)[guard.RuntimeStop]
		if CurrentSpecReport().Failed() || len(failed) > 0 || stops > 0 {
			collect(ctx)
		}
		Expect(failed).To(BeEmpty(), "failed operations of the guard on %s (%s)", guardedNode().Name(), framework.GuardErrors)
		Expect(stops).To(BeZero(), "kill attempts that only the last line of defence refused on %s", guardedNode().Name())
		return
	}
	// A spec that failed may have left the node cut off.
	if CurrentSpecReport().Failed() {
		collect(ctx)
	}
}, NodeTimeout(collectTimeout))
