package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// Names of the guard's metrics.
const (
	refusedKills = "kubelet_guard_refused_kills_total"
	guardErrors  = "kubelet_guard_errors_total"
	// deletionLookups is the operation of guardErrors that fails whenever the API
	// server is away, as it is for a node that is cut off.
	deletionLookups = "PodDeletion"
)

// askKubelet reads a path of a kubelet's port, through the API server.
func askKubelet(ctx context.Context, node *kind.Node, path string) ([]byte, error) {
	return client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + node.Name() + "/proxy" + path).DoRaw(ctx)
}

// guardPods reads /guard/pods of a guarded node.
func guardPods(ctx context.Context, node *kind.Node) (guard.PodList, error) {
	var list guard.PodList
	text, err := askKubelet(ctx, node, guard.PodsPath)
	if err != nil {
		return list, fmt.Errorf("%s of %s: %w", guard.PodsPath, node.Name(), err)
	}
	return list, json.Unmarshal(text, &list)
}

// guardPod is what a guarded node says about one protected pod, or nil.
func guardPod(ctx context.Context, pod *subject) (*guard.PodState, error) {
	list, err := guardPods(ctx, pod.node)
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		if list.Items[i].UID == pod.uid {
			return &list.Items[i], nil
		}
	}
	return nil, nil
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
		held := []guard.Cause{}
		for _, hold := range found.Holds {
			held = append(held, hold.Cause)
		}
		g.Expect(held).To(ConsistOf(causes), "causes of the holds of pod %s", pod)
	}).WithTimeout(killTimeout+apiLag).Should(Succeed(), "state of pod %s at its kubelet", pod)
	return found
}

// awaitHeldCondition waits until the API shows a pod as held.
func awaitHeldCondition(ctx context.Context, pod *subject, cause guard.Cause) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		object := framework.Try(client.CoreV1().Pods(pod.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g)
		condition := framework.PodCondition(object, guard.PodKillRefused)
		g.Expect(condition).NotTo(BeNil(), "condition %s", guard.PodKillRefused)
		g.Expect(condition.Status).To(Equal(corev1.ConditionTrue))
		g.Expect(condition.Message).To(ContainSubstring(string(cause)))
	}).WithTimeout(apiLag).Should(Succeed(), "condition %s of pod %s", guard.PodKillRefused, pod)
}

// expectNothingHeld checks that no guarded node holds a pod of the scene.
func (s *scene) expectNothingHeld(ctx context.Context) {
	GinkgoHelper()
	for _, node := range ownNodes() {
		if !node.Guarded() {
			continue
		}
		list := framework.Must(guardPods(ctx, node))
		for _, pod := range list.Items {
			if pod.Namespace == s.namespace {
				Expect(pod.Holds).To(BeEmpty(), "holds of pod %s on %s", pod.Name, node.Name())
			}
		}
	}
}

// readMetrics reads the metrics of a kubelet.
func readMetrics(ctx context.Context, node *kind.Node) (map[string]*dto.MetricFamily, error) {
	text, err := askKubelet(ctx, node, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(bytes.NewReader(text))
}

// byLabel returns the values of a family with one label that are not zero.
func byLabel(family *dto.MetricFamily) map[string]int {
	values := map[string]int{}
	for _, metric := range family.GetMetric() {
		if v := int(metric.GetCounter().GetValue() + metric.GetGauge().GetValue()); v != 0 {
			values[metric.GetLabel()[0].GetValue()] = v
		}
	}
	return values
}

// refused is how often a guarded kubelet has refused a kill since its start, by cause.
func refused(ctx context.Context, node *kind.Node) map[guard.Cause]int {
	GinkgoHelper()
	causes := map[guard.Cause]int{}
	Eventually(ctx, func() error {
		families, err := readMetrics(ctx, node)
		if err != nil {
			return err
		}
		for cause, count := range byLabel(families[refusedKills]) {
			causes[guard.Cause(cause)] = count
		}
		return nil
	}).WithTimeout(apiLag).Should(Succeed(), "metrics of %s", node.Name())
	return causes
}

// failures are counts of failed operations of one kubelet process, which begin at its start.
type failures struct {
	start       float64
	byOperation map[string]int
}

// reportedFailures are those that a spec has failed for. A later spec fails for its own only.
var reportedFailures failures

// newFailures returns the failed operations that no spec has failed for, and notes that
// one has now.
func newFailures(families map[string]*dto.MetricFamily) map[string]int {
	now := failures{byOperation: byLabel(families[guardErrors])}
	delete(now.byOperation, deletionLookups)
	for _, metric := range families["process_start_time_seconds"].GetMetric() {
		now.start = metric.GetGauge().GetValue()
	}
	fresh := map[string]int{}
	for operation, count := range now.byOperation {
		if now.start != reportedFailures.start || count > reportedFailures.byOperation[operation] {
			fresh[operation] = count
		}
	}
	reportedFailures = now
	return fresh
}

// The guard's own counters tell of what a spec does not look for: kill attempts that
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
	families, err := readMetrics(ctx, guardedNode())
	if err == nil {
		failed := newFailures(families)
		stops := byLabel(families[refusedKills])[string(guard.RuntimeStop)]
		if CurrentSpecReport().Failed() || len(failed) > 0 || stops > 0 {
			collect(ctx)
		}
		Expect(failed).To(BeEmpty(), "failed operations of the guard on %s (%s)", guardedNode().Name(), guardErrors)
		Expect(stops).To(BeZero(), "kill attempts that only the last line of defence refused on %s", guardedNode().Name())
		return
	}
	// A spec that failed may have left the node cut off.
	if CurrentSpecReport().Failed() {
		collect(ctx)
	}
}, NodeTimeout(collectTimeout))
