package node

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/mod/semver"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	killTimeout = framework.KillTimeout
	// evictionTimeout allows for two victims: the eviction manager looks every 10 s,
	// takes one pod a time and waits up to 30 s for its clean-up.
	evictionTimeout = 100 * time.Second
	holdPeriod      = framework.HoldPeriod
	// evictionHold lets the eviction manager, which looks every 10 s, try again.
	evictionHold = 12 * time.Second
	// survivalPeriod is how long pods are watched that not even the stock kubelet
	// kills: it covers the 10 s of status updates and evictions.
	survivalPeriod = 11 * time.Second
)

// incident is one row of the demonstration: a fault, and what it does to two pods
// of the same template, of which only one is labelled for protection.
type incident struct {
	title string
	// pod changes the template.
	pod []podOption
	// podFrom changes it too, where the change depends on the node.
	podFrom func(ctx context.Context) []podOption
	// before prepares the node, before the pods exist.
	before func(ctx context.Context, s *scene)
	// fault breaks something and returns when that has taken effect. Times count
	// from its return, or from its start if it is gradual.
	fault   func(ctx context.Context, s *scene, pods []*subject)
	gradual bool
	// since is the first version whose kubelet has what breaks; empty is all of them.
	since string
	// cgroup2: on cgroup v1 the fault does nothing.
	cgroup2 bool
	// alone: there is no unprotected pod, since the fault takes from all pods together
	// and ends with the first that dies.
	alone bool
	// after checks what the node does when the protected pod was deleted.
	after func(ctx context.Context)
	// survives: the stock kubelet kills neither pod.
	survives bool
	// within is how long the stock kubelet may take; killTimeout if zero.
	within time.Duration
	// causes under which the guarded kubelet refuses, each once. Empty where the
	// kubelet attempts nothing.
	causes []guard.Cause
	// hold is how long the guarded kubelet must keep the pod; holdPeriod if zero.
	hold time.Duration
	// restarts: the fault includes a restart of the kubelet, after which its
	// counters start at zero.
	restarts bool
	// vanished: the fault takes the pods' objects out of the kubelet's sight.
	vanished bool
	// unregistered: it takes the node's object, too, and the kubelet does not bring
	// that back before the repair.
	unregistered bool
	// controlPlane: the fault is one of the control plane, not of this node.
	controlPlane bool
	// nodeName is the name that the fault gives the node; empty leaves its own.
	nodeName string
	// terminal: the fault shows the pods in a terminal phase, until the kubelet has
	// written the truth back. A hold ends with that. The EndpointSlice controller
	// drops a pod that it sees in that phase, and does not look again when only the
	// phase changes, so the endpoint proves nothing.
	terminal bool
	// repair removes what prevents an explicit deletion. It runs only
	// when the protected pod was kept.
	repair func(ctx context.Context, s *scene, pod *subject)
}

// describeIncident makes the spec of an incident. It is the same for both
// kubelets but for the fate that it expects of the protected pod.
func describeIncident(i incident) bool {
	labels := Label(labelIncident)
	if i.cgroup2 {
		labels = append(labels, labelCgroup2)
	}
	if i.controlPlane {
		labels = append(labels, labelControlPlane)
	}
	return It(i.title, labels, func(ctx SpecContext) { i.run(ctx) })
}

func (i incident) run(ctx context.Context) {
	result := &IncidentResult{Incident: i.title, Alone: i.alone}
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); i.cgroup2 && err != nil {
		Skip("the node is not on cgroup v2, where alone the kernel kills to obey a limit")
	}
	if i.since != "" && semver.Compare(kubeletVersion, i.since) < 0 {
		Skip("the kubelet has it since " + i.since)
	}
	AddReportEntry(incidentEntry, ReportEntryVisibilityNever, result)

	s := newScene(ctx)
	if i.before != nil {
		i.before(ctx, s)
	}
	By("running a protected and an unprotected pod of the same template")
	options := i.pod
	if i.podFrom != nil {
		options = append(options, i.podFrom(ctx)...)
	}
	templates := []*corev1.Pod{s.newPod("protected", append(slices.Clone(options), protected)...)}
	if !i.alone {
		templates = append(templates, s.newPod("unprotected", options...))
	}
	pods := s.run(ctx, templates...)
	guardedPod, plainPod := pods[0], pods[len(pods)-1]
	var before map[guard.Cause]int
	if variant == Guarded {
		Eventually(expectState).WithContext(ctx).WithArguments(ctx, guardedPod, guard.Protected).WithTimeout(apiLag).
			Should(Succeed(), "the kubelet knows pod %s as protected", guardedPod)
		if !i.restarts {
			before = mustReadMetrics(ctx).ByCause(refusedKills)
		}
	}

	By("bringing in the fault")
	since := time.Now()
	i.fault(ctx, s, pods)
	if !i.gradual {
		since = time.Now()
	}
	framework.Progress("%s: fault is in", i.title)

	By("awaiting the fates of both pods")
	defer func() { i.conclude(result, since, guardedPod, plainPod) }()
	if !i.alone {
		i.expectFate(ctx, plainPod, since)
	}
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
	if i.vanished && variant == Stock && !i.survives {
		return
	}
	requested := time.Now()
	Expect(ctrlclient.IgnoreNotFound(client.CoreV1().Pods(s.namespace).Delete(ctx, guardedPod.name, metav1.DeleteOptions{}))).To(Succeed())
	guardedPod.awaitHonoured(ctx, requested, gracePeriod+deletionSlack)
	result.Deletion = Deletion{Honoured: true, Seconds: max(0, guardedPod.death.at.Sub(requested).Seconds())}
	s.awaitGone(ctx, guardedPod, gracePeriod+deletionSlack)
	if i.after != nil {
		i.after(ctx)
	}
	if variant == Guarded || i.survives {
		framework.Progress("%s: deletion honoured in %.1f s", i.title, result.Deletion.Seconds)
	}
}

// expectFate waits for what the stock kubelet does with a pod.
func (i incident) expectFate(ctx context.Context, pod *subject, since time.Time) {
	GinkgoHelper()
	if i.survives {
		stayAlive(ctx, time.Until(since.Add(survivalPeriod)), pod)
		framework.Progress("%s: %s pod survived %.0f s", i.title, pod.name, time.Since(since).Seconds())
		return
	}
	took := pod.awaitDeath(ctx, since, cmp.Or(i.within, killTimeout))
	framework.Progress("%s: %s pod killed after %.1f s", i.title, pod.name, took.Seconds())
}

// expectKept checks that the guarded kubelet kept a pod and reports it everywhere,
// and returns how many refusals it counted.
func (i incident) expectKept(ctx context.Context, s *scene, pod *subject, before map[guard.Cause]int) (refused int) {
	GinkgoHelper()
	if len(i.causes) == 0 {
		pod.expectAlive(Default)
		added := increase(before, mustReadMetrics(ctx).ByCause(refusedKills))
		Expect(added).To(BeEmpty(), "increase of %s where the kubelet attempts nothing", refusedKills)
		return 0
	}
	want := map[guard.Cause]int{}
	for _, cause := range i.causes {
		want[cause] = 1
	}
	held, state, causes := want, guard.Held, i.causes
	if i.terminal {
		held, state, causes = map[guard.Cause]int{}, guard.Protected, nil
	}
	Eventually(func(g Gomega) {
		pod.expectAlive(g)
		if i.restarts && !i.vanished {
			expectProbed(g, ctx, pod)
		}
		metrics := framework.Try(readMetrics(ctx)).In(g)
		g.Expect(increase(before, metrics.ByCause(refusedKills))).To(Equal(want), "increase of %s", refusedKills)
		g.Expect(metrics.ByCause(heldPods)).To(Equal(held), heldPods)
		expectState(g, ctx, pod, state, causes...)
	}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "killing pod %s is refused for %v", pod, i.causes)
	framework.Progress("%s: protected pod kept, refused for %v", i.title, i.causes)

	// What reaches the API does so by events and status updates, so it may come
	// later; what is there must then stay as it is.
	Eventually(func(g Gomega) {
		s.expectEvents(g, ctx, pod, i)
		switch {
		case i.unregistered:
		case i.vanished:
			// The object has no condition to show; the node has.
			expectNodeCondition(g, ctx, cmp.Or(i.nodeName, provider.Node().Name()), corev1.ConditionTrue)
		case i.terminal:
			s.expectReady(g, ctx, pod.name, pod.uid)
		default:
			s.expectHeldCondition(g, ctx, pod, i.causes)
			s.expectServing(g, ctx, pod.name, pod.uid)
		}
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the API shows what became of pod %s", pod)

	Consistently(func(g Gomega) {
		pod.expectAlive(g)
		g.Expect(increase(before, framework.Try(readMetrics(ctx)).In(g).ByCause(refusedKills))).To(Equal(want), "increase of %s", refusedKills)
		s.expectEvents(g, ctx, pod, i)
		switch {
		case i.vanished:
		case i.terminal:
			s.expectReady(g, ctx, pod.name, pod.uid)
		default:
			s.expectServing(g, ctx, pod.name, pod.uid)
		}
	}).WithContext(ctx).WithTimeout(cmp.Or(i.hold, holdPeriod)).Should(Succeed(), "pod %s is kept, and each refusal is reported once", pod)
	return len(i.causes)
}

// expectProbed checks that the kubelet, since its start, has found a pod ready by a
// probe of its own. A container younger than settling is shown as ready at first, and
// then as not ready until that probe.
func expectProbed(g Gomega, ctx context.Context, pod *subject) {
	probed := slices.ContainsFunc(framework.Try(readMetricsAt(ctx, "/metrics/probes")).In(g)["prober_probe_total"].GetMetric(), func(metric *dto.Metric) bool {
		labels := map[string]string{}
		for _, label := range metric.GetLabel() {
			labels[label.GetName()] = label.GetValue()
		}
		return labels["pod_uid"] == string(pod.uid) && labels["probe_type"] == "Readiness" && labels["result"] == "successful"
	})
	g.Expect(probed).To(BeTrue(), "a readiness probe of pod %s has succeeded", pod)
}

// conclude fills in the fates as far as they were seen, also when an assertion
// ended the spec early.
func (i incident) conclude(result *IncidentResult, since time.Time, guardedPod, plainPod *subject) {
	fill := func(fate *Fate, pod *subject) {
		if at, dead := pod.death.seen(); dead {
			fate.Killed, fate.Seconds = true, max(0, at.Sub(since).Seconds())
		}
	}
	if !i.alone {
		fill(&result.Unprotected, plainPod)
	}
	// A process that ended through the explicit deletion was kept until then.
	if !result.Deletion.Honoured || variant == Stock && !i.survives {
		fill(&result.Protected, guardedPod)
	}
	if variant == Stock && !i.survives {
		result.Deletion = Deletion{}
	}
}
