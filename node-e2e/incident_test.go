package e2e

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// killTimeout is how long the stock kubelet may take to kill what it kills. It
	// needs 2 s on an idle machine; housekeeping and resyncs run every 2 and 10 s.
	killTimeout = 30 * time.Second
	// evictionTimeout allows for two victims: the eviction manager looks every 10 s,
	// takes one pod a time and waits up to 30 s for its clean-up.
	evictionTimeout = 100 * time.Second
	// holdPeriod is how long a pod must have been kept, from the moment on when its
	// unprotected twin was dead: three times the 2 s within which the kubelet's
	// loops (housekeeping 2 s, PLEG 1 s, config sources 1 s) come round, so that a
	// kill that is merely late is seen.
	holdPeriod = 6 * time.Second
	// survivalPeriod is how long pods are watched that not even the stock kubelet
	// kills: it covers the 10 s of status updates and evictions.
	survivalPeriod = 11 * time.Second
)

// incident is one row of the demonstration: a fault, and what it does to two pods
// of the same template, of which only one asks for protection.
type incident struct {
	title string
	// pod changes the template.
	pod []podOption
	// podFrom changes it too, where the change depends on the node.
	podFrom func(ctx context.Context) []podOption
	// before prepares the node, before the pods exist.
	before func(ctx context.Context, s *scene)
	// fault breaks something and returns when that has taken effect. Times count
	// from its return, or from its beginning if it is gradual.
	fault   func(ctx context.Context, s *scene, pods []*subject)
	gradual bool
	// survives: the stock kubelet kills neither pod.
	survives bool
	// within is how long the stock kubelet may take; killTimeout if zero.
	within time.Duration
	// cause under which the guarded kubelet refuses. Empty where the kubelet
	// attempts nothing. Where even the stock kubelet spares the pod, the cause is
	// one that passes by itself: it may be counted once and must not last.
	cause guard.Cause
	// restarts: the fault includes a restart of the kubelet, after which its
	// counters begin at zero.
	restarts bool
	// vanished: the fault takes the pods' objects out of the API.
	vanished bool
	// terminal: the fault shows the pods in a terminal phase for a while. The
	// EndpointSlice controller drops such a pod if it looks in that while, and does
	// not look again when only the phase changes, so the endpoint proves nothing.
	terminal bool
	// repair mends what stands in the way of an explicit deletion. It runs only
	// when the protected pod was kept.
	repair func(ctx context.Context, s *scene, pod *subject)
	labels Labels
}

// describeIncident makes the spec of an incident. It is the same for both
// kubelets but for the fate that it expects of the protected pod.
func describeIncident(i incident) bool {
	labels := i.labels
	if labels == nil {
		labels = Label(labelIncident)
	}
	return It(i.title, labels, func(ctx SpecContext) { i.run(ctx) })
}

func (i incident) run(ctx context.Context) {
	result := &IncidentResult{Incident: i.title}
	AddReportEntry("incident", ReportEntryVisibilityNever, result)

	s := newScene(ctx)
	if i.before != nil {
		i.before(ctx, s)
	}
	By("running a protected and an unprotected pod of the same template")
	options := i.pod
	if i.podFrom != nil {
		options = append(options, i.podFrom(ctx)...)
	}
	pods := s.run(ctx,
		s.newPod("protected", append(options, protected)...),
		s.newPod("unprotected", options...))
	guardedPod, plainPod := pods[0], pods[1]
	var before map[guard.Cause]int
	if variant == Guarded {
		Eventually(expectState).WithContext(ctx).WithArguments(ctx, guardedPod, guard.Protected).WithTimeout(apiLag).
			Should(Succeed(), "the kubelet knows pod %s as protected", guardedPod)
		if !i.restarts {
			before = mustReadMetrics(ctx).byCause(refusedKills)
		}
	}

	By("bringing in the fault")
	since := time.Now()
	i.fault(ctx, s, pods)
	if !i.gradual {
		since = time.Now()
	}
	progress("%s: fault is in", i.title)

	By("awaiting the fates of both pods")
	defer func() { i.conclude(result, since, guardedPod, plainPod) }()
	i.expectFate(ctx, plainPod, since)
	if variant == Stock {
		i.expectFate(ctx, guardedPod, since)
	} else {
		result.Protected.Refused = i.expectKept(ctx, s, guardedPod, before)
	}
	result.Observed = true

	By("deleting the protected pod through the API")
	if i.repair != nil && (variant == Guarded || i.survives) {
		i.repair(ctx, s, guardedPod)
	}
	if i.vanished && variant == Stock {
		s.awaitGone(ctx, guardedPod, deletionSlack)
		return
	}
	asked := time.Now()
	Expect(ignoreNotFound(client.CoreV1().Pods(s.namespace).Delete(ctx, guardedPod.name, metav1.DeleteOptions{}))).To(Succeed())
	guardedPod.awaitDeath(ctx, asked, gracePeriod+deletionSlack)
	result.Deletion = Deletion{Honoured: true, Seconds: max(0, guardedPod.death.at.Sub(asked).Seconds())}
	s.awaitGone(ctx, guardedPod, gracePeriod+deletionSlack)
	if variant == Guarded || i.survives {
		progress("%s: deletion honoured in %.1f s", i.title, result.Deletion.Seconds)
	}
}

// expectFate waits for what the stock kubelet does with a pod.
func (i incident) expectFate(ctx context.Context, pod *subject, since time.Time) {
	GinkgoHelper()
	if i.survives {
		Consistently(pod.expectAlive).WithContext(ctx).WithTimeout(time.Until(since.Add(survivalPeriod))).Should(Succeed())
		progress("%s: %s pod survived %.0f s", i.title, pod.name, time.Since(since).Seconds())
		return
	}
	within := i.within
	if within == 0 {
		within = killTimeout
	}
	took := pod.awaitDeath(ctx, since, within)
	progress("%s: %s pod killed after %.1f s", i.title, pod.name, took.Seconds())
}

// expectKept checks that the guarded kubelet kept a pod and tells so everywhere,
// and returns how many refusals it counted.
func (i incident) expectKept(ctx context.Context, s *scene, pod *subject, before map[guard.Cause]int) (refused int) {
	GinkgoHelper()
	if i.survives {
		pod.expectAlive(Default)
		metrics := mustReadMetrics(ctx)
		Expect(metrics.byCause(heldPods)).To(BeEmpty(), "%s where the fault passes by itself", heldPods)
		added := increase(before, metrics.byCause(refusedKills))
		refused = added[i.cause]
		Expect(refused).To(BeNumerically("<=", 1), "increase of %s{cause=%q}", refusedKills, i.cause)
		delete(added, i.cause)
		Expect(added).To(BeEmpty(), "increase of %s for other causes", refusedKills)
		return refused
	}
	expectShown := s.expectServing
	if i.terminal {
		expectShown = s.expectReady
	}
	want := map[guard.Cause]int{i.cause: 1}
	Eventually(func(g Gomega) {
		pod.expectAlive(g)
		metrics, err := readMetrics(ctx)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(increase(before, metrics.byCause(refusedKills))).To(Equal(want), "increase of %s", refusedKills)
		g.Expect(metrics.byCause(heldPods)).To(Equal(want), heldPods)
		expectState(g, ctx, pod, guard.Held, i.cause)
	}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "pod %s is held for %s", pod, i.cause)
	progress("%s: protected pod held, refused for %s", i.title, i.cause)

	// What reaches the API does so by events and status updates, so it may come
	// later; what is there must then stay as it is.
	Eventually(func(g Gomega) {
		onPod, onNode, err := s.killRefusedEvents(ctx, pod)
		g.Expect(err).NotTo(HaveOccurred())
		if i.vanished {
			// The object has no condition to show; the node has.
			g.Expect(onNode).To(Equal(1), "events %s on the node about pod %s", guard.EventKillRefused, pod)
			expectNodeCondition(g, ctx, corev1.ConditionTrue)
		} else {
			g.Expect(onPod).To(Equal(1), "events %s on pod %s", guard.EventKillRefused, pod)
			s.expectHeldCondition(g, ctx, pod, i.cause)
			expectShown(g, ctx, pod.name, pod.uid)
		}
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the API shows pod %s as held and serving", pod)

	Consistently(func(g Gomega) {
		pod.expectAlive(g)
		metrics, err := readMetrics(ctx)
		g.Expect(err).NotTo(HaveOccurred())
		g.Expect(increase(before, metrics.byCause(refusedKills))).To(Equal(want), "increase of %s", refusedKills)
		if !i.vanished {
			expectShown(g, ctx, pod.name, pod.uid)
			onPod, _, err := s.killRefusedEvents(ctx, pod)
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(onPod).To(Equal(1), "events %s on pod %s", guard.EventKillRefused, pod)
		}
	}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed(), "pod %s stays held, and each hold is told once", pod)
	return want[i.cause]
}

// conclude fills in the fates as far as they were seen, also when an assertion
// ended the spec early.
func (i incident) conclude(result *IncidentResult, since time.Time, guardedPod, plainPod *subject) {
	fill := func(fate *Fate, pod *subject) {
		if at, dead := pod.death.seen(); dead {
			fate.Killed, fate.Seconds = true, max(0, at.Sub(since).Seconds())
		}
	}
	fill(&result.Unprotected, plainPod)
	// A process that ended through the explicit deletion was kept until then.
	if !result.Deletion.Honoured || variant == Stock && !i.survives {
		fill(&result.Protected, guardedPod)
	}
	if variant == Stock && !i.survives {
		result.Deletion = Deletion{}
	}
}
