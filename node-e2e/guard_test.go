package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/kubelet/guard"
)

// Names of the guard's metrics.
const (
	refusedKills  = "kubelet_guard_refused_kills_total"
	auditedKills  = "kubelet_guard_audited_kills_total"
	allowedKills  = "kubelet_guard_allowed_kills_total"
	heldPods      = "kubelet_guard_held_pods"
	protectedPods = "kubelet_guard_protected_pods"
	oldestHold    = "kubelet_guard_oldest_hold_seconds"
	guardErrors   = "kubelet_guard_errors_total"
	guardInfo     = "kubelet_guard_info"
)

// metricFamilies is one reading of the kubelet's metrics.
type metricFamilies map[string]*dto.MetricFamily

func readMetrics(ctx context.Context) (metricFamilies, error) {
	text, err := provider.Node().Kubelet().Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(bytes.NewReader(text))
}

// byCause returns the values of a metric whose only label is the cause, without
// those that are zero.
func (m metricFamilies) byCause(name string) map[guard.Cause]int {
	values := map[guard.Cause]int{}
	for _, metric := range m[name].GetMetric() {
		if v := int(metric.GetCounter().GetValue() + metric.GetGauge().GetValue()); v != 0 {
			values[guard.Cause(metric.GetLabel()[0].GetValue())] = v
		}
	}
	return values
}

// sum adds up all series of a counter or gauge.
func (m metricFamilies) sum(name string) float64 {
	total := 0.0
	for _, metric := range m[name].GetMetric() {
		total += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
	}
	return total
}

// increase returns what was added to the counters since an earlier reading of the
// same kubelet process.
func increase(before, after map[guard.Cause]int) map[guard.Cause]int {
	added := maps.Clone(after)
	for cause, count := range before {
		if added[cause] -= count; added[cause] == 0 {
			delete(added, cause)
		}
	}
	return added
}

// mustReadMetrics reads the metrics; right after a start of the kubelet, its port
// may not answer yet.
func mustReadMetrics(ctx context.Context) metricFamilies {
	GinkgoHelper()
	var metrics metricFamilies
	Eventually(func() (err error) {
		metrics, err = readMetrics(ctx)
		return err
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "read the kubelet's metrics")
	return metrics
}

// lost holds what the counters of ended kubelet processes said about the guard
// itself: a restart sets them to zero.
var lost struct {
	runtimeStops int
	errors       float64
}

// keepCounters reads those counters of a kubelet that is about to be stopped. One
// that does not answer has nothing to lose.
func keepCounters(ctx context.Context) {
	if variant != Guarded {
		return
	}
	metrics, err := readMetrics(ctx)
	if err != nil {
		return
	}
	lost.runtimeStops += metrics.byCause(refusedKills)[guard.RuntimeStop]
	lost.errors += metrics.sum(guardErrors)
}

// The last line of defence must have nothing to do: whatever reaches it has
// passed a hook that should have refused before. It is checked after each spec,
// so that the failure names the spec.
var _ = AfterEach(func(ctx SpecContext) {
	if variant != Guarded {
		return
	}
	keepCounters(ctx)
	stops, failed := lost.runtimeStops, lost.errors
	lost.runtimeStops, lost.errors = 0, 0
	Expect(stops).To(BeZero(), "kill attempts that only the last line of defence refused (%s{cause=%q})", refusedKills, guard.RuntimeStop)
	Expect(failed).To(BeZero(), "failed operations of the guard (%s)", guardErrors)
})

// readGuardPods reads GET /guard/pods.
func readGuardPods(ctx context.Context) (guard.PodList, error) {
	var list guard.PodList
	text, err := provider.Node().Kubelet().Get(ctx, guard.PodsPath)
	if err != nil {
		return list, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&list); err != nil {
		return list, fmt.Errorf("GET %s: %w in %s", guard.PodsPath, err, text)
	}
	return list, nil
}

// guardPod returns what the kubelet says about one protected pod, or nil.
func guardPod(ctx context.Context, uid types.UID) (*guard.PodState, error) {
	list, err := readGuardPods(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		if list.Items[i].UID == uid {
			return &list.Items[i], nil
		}
	}
	return nil, nil
}

// expectState checks the state of a pod in GET /guard/pods and the causes of its
// holds.
func expectState(g Gomega, ctx context.Context, pod *subject, state guard.State, causes ...guard.Cause) {
	found, err := guardPod(ctx, pod.uid)
	g.Expect(err).NotTo(HaveOccurred())
	g.Expect(found).NotTo(BeNil(), "pod %s in %s", pod, guard.PodsPath)
	g.Expect(found.State).To(Equal(state), "state of pod %s in %s", pod, guard.PodsPath)
	held := []guard.Cause{}
	for _, hold := range found.Holds {
		held = append(held, hold.Cause)
	}
	g.Expect(held).To(ConsistOf(causes), "causes of pod %s in %s", pod, guard.PodsPath)
}

// killRefusedEvents counts the events about refused kills of a pod: those on the
// pod itself, and those on the node that name it.
func (s *scene) killRefusedEvents(ctx context.Context, pod *subject) (onPod, onNode int, err error) {
	onThePod, err := client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "reason=" + guard.EventKillRefused + ",involvedObject.uid=" + string(pod.uid),
	})
	if err != nil {
		return 0, 0, err
	}
	onTheNode, err := client.CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		FieldSelector: "reason=" + guard.EventKillRefused + ",involvedObject.kind=Node",
	})
	if err != nil {
		return 0, 0, err
	}
	for _, event := range onThePod.Items {
		onPod += occurrences(event)
	}
	for _, event := range onTheNode.Items {
		if strings.Contains(event.Message, string(pod.uid)) {
			onNode += occurrences(event)
		}
	}
	return onPod, onNode, nil
}

// occurrences is how often an event happened: repetitions are counted in the
// object of the first.
func occurrences(event corev1.Event) int {
	if event.Series != nil {
		return int(event.Series.Count)
	}
	return int(max(1, event.Count))
}

// expectHeldCondition checks that the API shows the pod as held for the cause.
func (s *scene) expectHeldCondition(g Gomega, ctx context.Context, pod *subject, cause guard.Cause) {
	object, err := client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})
	g.Expect(err).NotTo(HaveOccurred())
	condition := podCondition(object, guard.PodKillRefused)
	g.Expect(condition).NotTo(BeNil(), "pod %s has a condition %s", pod, guard.PodKillRefused)
	g.Expect(condition.Status).To(Equal(corev1.ConditionTrue), "condition %s of pod %s", guard.PodKillRefused, pod)
	g.Expect(condition.Message).To(ContainSubstring(string(cause)), "message of condition %s of pod %s", guard.PodKillRefused, pod)
}

// expectNodeCondition checks the node's condition HoldingPods.
func expectNodeCondition(g Gomega, ctx context.Context, want corev1.ConditionStatus) {
	node, err := client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{})
	g.Expect(err).NotTo(HaveOccurred())
	for _, condition := range node.Status.Conditions {
		if condition.Type == guard.NodeHoldingPods {
			g.Expect(condition.Status).To(Equal(want), "condition %s of the node: %s", guard.NodeHoldingPods, condition.Message)
			return
		}
	}
	g.Expect(node.Status.Conditions).To(BeEmpty(), "the node has a condition %s", guard.NodeHoldingPods)
}
