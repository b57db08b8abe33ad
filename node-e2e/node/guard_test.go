package node

import (
	"context"
	"maps"
	"strings"
	"time"

	nodeutil "k8s.io/component-helpers/node/util"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// Names of the guard's metrics.
const (
	refusedKills  = framework.RefusedKills
	auditedKills  = "kubelet_guard_audited_kills_total"
	allowedKills  = "kubelet_guard_allowed_kills_total"
	heldPods      = "kubelet_guard_held_pods"
	protectedPods = "kubelet_guard_protected_pods"
	// unconfirmedPods counts those that an earlier kubelet saved and this one cannot read.
	unconfirmedPods = "kubelet_guard_unconfirmed_pods"
	oldestHold      = "kubelet_guard_oldest_hold_seconds"
	guardErrors     = framework.GuardErrors
	guardInfo       = "kubelet_guard_info"
)

func readMetrics(ctx context.Context) (framework.Metrics, error) {
	return readMetricsAt(ctx, "/metrics")
}

func readMetricsAt(ctx context.Context, path string) (framework.Metrics, error) {
	text, err := provider.Node().Kubelet().Get(ctx, path)
	if err != nil {
		return nil, err
	}
	return framework.ParseMetrics(text)
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
// may not respond yet.
func mustReadMetrics(ctx context.Context) framework.Metrics {
	GinkgoHelper()
	var metrics framework.Metrics
	Eventually(func() (err error) {
		metrics, err = readMetrics(ctx)
		return err
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "read the kubelet's metrics")
	return metrics
}

// stateDirectory is the operation that fails with the state directory.
const stateDirectory = "StateDirectory"

// failures are what the guard's counters say about the guard itself: operations on
// the node that failed, by name, and, as operation RuntimeStop, kill attempts that
// only the last line of defence refused, because no hook did before. A correct
// build on a healthy node has none.
type failures map[string]int

// counters follows those counters over restarts of the kubelet, which set them to
// zero.
var counters struct {
	// open is what was counted by ended kubelets and not yet reported, reported
	// what was already reported of the running one.
	open, reported failures
}

// tolerated are the operations that the running spec makes fail.
var tolerated []string

// tolerate lets an operation fail until the end of the spec. It must come before
// the first change of the kubelet, so that the clean-up may fail, too.
func tolerate(operation string) {
	GinkgoHelper()
	tolerated = append(tolerated, operation)
	DeferCleanup(func(ctx SpecContext) {
		counters.open = takeFailures(ctx)
		tolerated = nil
	}, NodeTimeout(time.Minute))
}

// keepCounters notes the counters of a kubelet that is about to be stopped.
func keepCounters(ctx context.Context) {
	if now, ok := readFailures(ctx); ok {
		counters.open = counters.open.plus(now.minus(counters.reported))
		counters.reported = nil
	}
}

// readFailures reads the counters. A kubelet that does not respond, because it is
// stopped already, has no failures to report.
func readFailures(ctx context.Context) (failures, bool) {
	if variant != Guarded {
		return nil, false
	}
	metrics, err := readMetrics(ctx)
	if err != nil {
		return nil, false
	}
	found := failures(metrics.FailedOperations())
	// Some incidents are about an API server that is away.
	delete(found, framework.DeletionLookups)
	if stops := metrics.ByCause(refusedKills)[guard.RuntimeStop]; stops > 0 {
		found[string(guard.RuntimeStop)] = stops
	}
	return found, true
}

// takeFailures returns what was counted since the last call and is not tolerated.
func takeFailures(ctx context.Context) failures {
	seen := counters.open
	if now, ok := readFailures(ctx); ok {
		seen = seen.plus(now.minus(counters.reported))
		counters.reported = now
	}
	counters.open = nil
	for _, operation := range tolerated {
		delete(seen, operation)
	}
	return seen
}

// plus and minus leave out what is zero.
func (f failures) plus(other failures) failures {
	sum := failures{}
	maps.Copy(sum, f)
	for operation, count := range other {
		if sum[operation] += count; sum[operation] == 0 {
			delete(sum, operation)
		}
	}
	return sum
}

func (f failures) minus(other failures) failures {
	negative := failures{}
	for operation, count := range other {
		negative[operation] = -count
	}
	return f.plus(negative)
}

// expectNone fails if the guard's own counters are not zero.
func (f failures) expectNone() {
	GinkgoHelper()
	if len(f) > 0 {
		specLog.Stand("the guard's own counters are %v", f)
	}
	Expect(f).To(BeEmpty(), "failed operations of the guard (%s), and kill attempts that only the last line of defence refused (%s{cause=%q})",
		guardErrors, refusedKills, guard.RuntimeStop)
}

// After each spec, so that a failure names it, and before any clean-up, which
// removes what explains it. What the clean-up brings to light counts with the
// next spec or the end of the suite.
var _ = JustAfterEach(func(ctx SpecContext) {
	seen := takeFailures(ctx)
	report := CurrentSpecReport()
	if (report.Failed() || len(seen) > 0) && current != nil {
		current.collect(ctx)
	}
	if report.Failed() {
		specLog.Repeated(report)
	}
	seen.expectNone()
}, NodeTimeout(time.Minute))

// readGuardPods reads GET /guard/pods.
func readGuardPods(ctx context.Context) (guard.PodList, error) {
	text, err := provider.Node().Kubelet().Get(ctx, guard.PodsPath)
	if err != nil {
		return guard.PodList{}, err
	}
	return framework.ParseGuardPods(text)
}

// guardPod returns what the kubelet says about one protected pod, or nil.
func guardPod(ctx context.Context, uid types.UID) (*guard.PodState, error) {
	list, err := readGuardPods(ctx)
	return framework.FindGuardPod(list, uid), err
}

// expectKnown returns what the kubelet says about a protected pod.
func expectKnown(g Gomega, ctx context.Context, pod *subject) *guard.PodState {
	found := framework.Try(guardPod(ctx, pod.uid)).In(g)
	g.Expect(found).NotTo(BeNil(), "pod %s in %s", pod, guard.PodsPath)
	return found
}

// expectState checks the state of a pod in GET /guard/pods and the causes of its
// holds.
func expectState(g Gomega, ctx context.Context, pod *subject, state guard.State, causes ...guard.Cause) {
	found := expectKnown(g, ctx, pod)
	g.Expect(found.State).To(Equal(state), "state of pod %s in %s", pod, guard.PodsPath)
	g.Expect(framework.HeldFor(found)).To(ConsistOf(causes), "causes of pod %s in %s", pod, guard.PodsPath)
}

// expectEvents checks that every refusal was reported by exactly one event: on the
// pod, or on the node if the pod's object is gone.
func (s *scene) expectEvents(g Gomega, ctx context.Context, pod *subject, i incident) {
	onThePod := framework.Try(client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: "reason=" + guard.EventKillRefused + ",involvedObject.uid=" + string(pod.uid),
	})).In(g)
	onTheNode := framework.Try(client.CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{
		FieldSelector: "reason=" + guard.EventKillRefused + ",involvedObject.kind=Node",
	})).In(g)
	onPod, onNode := 0, 0
	for _, event := range onThePod.Items {
		onPod += occurrences(event)
	}
	for _, event := range onTheNode.Items {
		if strings.Contains(event.Message, string(pod.uid)) {
			onNode += occurrences(event)
		}
	}
	if i.vanished {
		// The API may refuse an event on an object that it does not have.
		g.Expect(onNode).To(Equal(len(i.causes)), "events %s on the node about pod %s", guard.EventKillRefused, pod)
		return
	}
	g.Expect(onPod).To(Equal(len(i.causes)), "events %s on pod %s", guard.EventKillRefused, pod)
	g.Expect(onNode).To(BeZero(), "events %s on the node about pod %s", guard.EventKillRefused, pod)
}

// occurrences is how often an event happened: repetitions are counted in the
// object of the first.
func occurrences(event corev1.Event) int {
	if event.Series != nil {
		return int(event.Series.Count)
	}
	return int(max(1, event.Count))
}

// expectHeldCondition checks that the API shows the pod as held for the causes.
func (s *scene) expectHeldCondition(g Gomega, ctx context.Context, pod *subject, causes []guard.Cause) {
	framework.ExpectKillRefused(g, framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g), causes...)
}

// expectNodeCondition checks a node's condition HoldingPods.
func expectNodeCondition(g Gomega, ctx context.Context, name string, want corev1.ConditionStatus) {
	_, condition := nodeutil.GetNodeCondition(&framework.Try(client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})).In(g).Status, guard.NodeHoldingPods)
	g.Expect(condition).NotTo(BeNil(), "the node has a condition %s", guard.NodeHoldingPods)
	g.Expect(condition.Status).To(Equal(want), "condition %s of the node: %s", guard.NodeHoldingPods, condition.Message)
}
