package node

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// guardHeader starts every valid guard configuration.
const guardHeader = "apiVersion: config.kubelet-guard.io/v1alpha1\nkind: GuardConfiguration\n"

func writeGuardConfig(content string) string {
	GinkgoHelper()
	file := filepath.Join(GinkgoT().TempDir(), "guard.yaml")
	Expect(os.WriteFile(file, []byte(content), 0o600)).To(Succeed())
	return file
}

var _ = Describe("Guard configuration", Label(labelGuarded), func() {
	It("with a mistake keeps the kubelet from starting, and the message names it", func(ctx SpecContext) {
		_, pod := runProtected(ctx)
		stopKubelet(ctx)
		for _, mistake := range []struct{ name, content, names string }{
			{"unknown field", guardHeader + "modus: Enforce\n", "modus"},
			{"unknown cause", guardHeader + "allowedCauses: [NodeShutdown, Boredom]\n", "allowedCauses[1]"},
			{"empty selector", guardHeader + "podSelector: {}\n", "podSelector"},
			{"unknown mode", guardHeader + "mode: Sometimes\n", "mode"},
			{"unknown version", "apiVersion: config.kubelet-guard.io/v9\nkind: GuardConfiguration\n", "apiVersion"},
			{"relative state directory", guardHeader + "stateDir: guard\n", "stateDir"},
		} {
			By(mistake.name)
			expectRefusedStart(ctx, writeGuardConfig(mistake.content), mistake.names)
		}
		By("missing file")
		missing := filepath.Join(GinkgoT().TempDir(), "missing.yaml")
		expectRefusedStart(ctx, missing, missing)
		pod.expectAlive(Default)
	})

	It("in mode Audit counts what mode Enforce would refuse, and changes nothing", func(ctx SpecContext) {
		s := newScene(ctx)
		restartKubelet(ctx, testnode.KubeletChange{GuardConfig: writeGuardConfig(guardHeader + "mode: Audit\n")})
		pod := s.run(ctx, s.newPod("protected", protected))[0]
		s.patch(ctx, pod, `{"spec":{"activeDeadlineSeconds":1}}`)
		pod.awaitDeath(ctx, time.Now(), killTimeout)
		metrics := mustReadMetrics(ctx)
		Expect(metrics.ByCause(auditedKills)).To(Equal(map[guard.Cause]int{guard.ActiveDeadlineExceeded: 1}), auditedKills)
		Expect(metrics.ByCause(refusedKills)).To(BeEmpty(), refusedKills)
		Expect(metrics.ByCause(heldPods)).To(BeEmpty(), heldPods)
	})

	It("in mode Off leaves the kubelet as stock", func(ctx SpecContext) {
		s := newScene(ctx)
		restartKubelet(ctx, testnode.KubeletChange{GuardConfig: writeGuardConfig(guardHeader + "mode: \"Off\"\n")})
		pod := s.run(ctx, s.newPod("protected", protected))[0]
		s.patch(ctx, pod, `{"spec":{"activeDeadlineSeconds":1}}`)
		pod.awaitDeath(ctx, time.Now(), killTimeout)
		metrics := mustReadMetrics(ctx)
		for _, name := range []string{refusedKills, auditedKills, allowedKills, heldPods, protectedPods} {
			Expect(metrics.Sum(name)).To(BeZero(), name)
		}
	})

	It("exempts allowedCauses and no other", func(ctx SpecContext) {
		s := newScene(ctx)
		restartKubelet(ctx, testnode.KubeletChange{GuardConfig: writeGuardConfig(guardHeader + "allowedCauses: [ActiveDeadlineExceeded]\n")})
		pods := s.run(ctx, s.newPod("exempt", protected), s.newPod("held", protected))
		By("letting the first pass its deadline")
		s.patch(ctx, pods[0], `{"spec":{"activeDeadlineSeconds":1}}`)
		pods[0].awaitDeath(ctx, time.Now(), killTimeout)
		By("killing the sandbox of the second")
		Expect(syscall.Kill(pods[1].sandbox.PID, syscall.SIGKILL)).To(Succeed())
		s.awaitHeld(ctx, pods[1], guard.SandboxChanged)
		metrics := mustReadMetrics(ctx)
		Expect(metrics.ByCause(allowedKills)).To(Equal(map[guard.Cause]int{guard.ActiveDeadlineExceeded: 1}), allowedKills)
		Expect(metrics.ByCause(refusedKills)).To(Equal(map[guard.Cause]int{guard.SandboxChanged: 1}), refusedKills)
	})

	It("selects the pods to protect", func(ctx SpecContext) {
		s := newScene(ctx)
		restartKubelet(ctx, testnode.KubeletChange{GuardConfig: writeGuardConfig(guardHeader + "podSelector: {matchLabels: {app: e2e}}\n")})
		pod := s.run(ctx, s.newPod("selected"))[0]
		s.hold(ctx, pod)
		s.deleteExplicitly(ctx, pod)
	})
})

// expectRefusedStart starts a kubelet that must end with an error that names the
// mistake.
func expectRefusedStart(ctx context.Context, config, names string) {
	GinkgoHelper()
	limited, cancel := context.WithTimeout(ctx, kubeletStart)
	defer cancel()
	err := provider.Node().Kubelet().Start(limited, testnode.KubeletChange{GuardConfig: config})
	var exit *testnode.ExitError
	Expect(err).To(BeAssignableToTypeOf(exit), "the kubelet refuses to start")
	exit = err.(*testnode.ExitError)
	Expect(exit.Code).To(BeNumerically(">", 0), "exit code of the kubelet")
	Expect(exit.Output).To(ContainSubstring("guard-config"), "the kubelet's last words")
	Expect(exit.Output).To(ContainSubstring(names), "the kubelet's last words")
}

var _ = Describe("Guard metrics", Label(labelGuarded), func() {
	It("exist from the start, with closed label sets and the build's version", func(ctx SpecContext) {
		metrics := mustReadMetrics(ctx)
		causes := len(guard.Causes())
		for name, series := range map[string]int{
			refusedKills: causes, auditedKills: causes, allowedKills: causes + 1, heldPods: causes,
			protectedPods: 1, oldestHold: 1, guardInfo: 1,
		} {
			Expect(metrics[name].GetMetric()).To(HaveLen(series), "series of %s", name)
		}
		for _, metric := range metrics[guardInfo].GetMetric() {
			labels := map[string]string{}
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			Expect(labels).To(Equal(map[string]string{"mode": "Enforce", "version": kubeletVersion}), "labels of %s", guardInfo)
		}
		Expect(kubeletVersion).To(MatchRegexp(`^v1\.\d+\.\d+\+guard\.`), "version that the node reports")
	})

	It("and GET /guard/pods follow a pod from start to end", func(ctx SpecContext) {
		s := newScene(ctx)
		Expect(mustReadMetrics(ctx).Sum(protectedPods)).To(BeZero(), protectedPods)
		pods := s.run(ctx, s.newPod("protected", protected), s.newPod("unprotected"))
		Eventually(func(g Gomega) {
			g.Expect(framework.Try(readMetrics(ctx)).In(g).Sum(protectedPods)).To(BeEquivalentTo(1), protectedPods)
			expectState(g, ctx, pods[0], guard.Protected)
			g.Expect(guardPod(ctx, pods[1].uid)).To(BeNil(), "the unprotected pod in %s", guard.PodsPath)
		}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed())
		s.hold(ctx, pods[0])
		Eventually(func(g Gomega) {
			g.Expect(framework.Try(readMetrics(ctx)).In(g).Sum(oldestHold)).To(BeNumerically(">=", 1), oldestHold)
		}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed())
		s.deleteExplicitly(ctx, pods[0])
		Eventually(func(g Gomega) {
			metrics := framework.Try(readMetrics(ctx)).In(g)
			g.Expect(metrics.Sum(protectedPods)).To(BeZero(), protectedPods)
			g.Expect(metrics.Sum(oldestHold)).To(BeZero(), oldestHold)
		}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed())
	})
})

// withoutLabels takes a pod's labels away, those too by which the Service finds it.
func withoutLabels(pod *corev1.Pod) { pod.Labels = nil }

// sourceAnnotation is where the kubelet notes which source a pod comes from. A pod's
// author may have set it, as in the copy of a mirror pod.
func sourceAnnotation(pod *corev1.Pod) {
	pod.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
}

// runUnlabelled is run for pods that no Service finds.
func (s *scene) runUnlabelled(ctx context.Context, pod *corev1.Pod) *subject {
	GinkgoHelper()
	created := s.create(ctx, pod)
	Eventually(s.expectReady).WithContext(ctx).WithArguments(ctx, created.Name, created.UID).WithTimeout(podStart).
		Should(Succeed(), "pod %s/%s runs", s.namespace, created.Name)
	return s.observe(ctx, created.Name, workloadContainer)
}

var _ = Describe("A pod is protected as the selector says", Label(labelGuarded), func() {
	It("also without any label, live and without a saved file", func(ctx SpecContext) {
		s := newScene(ctx)
		change := testnode.KubeletChange{GuardConfig: writeGuardConfig(guardHeader +
			"podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [batch]}]}\n")}
		restartKubelet(ctx, change)
		kept := s.runUnlabelled(ctx, s.newPod("unlabelled", withoutLabels))
		batch := s.run(ctx, s.newPod("batch", func(pod *corev1.Pod) { pod.Labels["tier"] = "batch" }))[0]
		releaseLeft(kept)
		s.loseKey(ctx, kept, batch)
		batch.awaitDeath(ctx, time.Now(), killTimeout)
		s.awaitVanished(ctx, kept)
		stayAlive(ctx, holdPeriod, kept)
		Expect(provider.Node().Storage().Put(ctx, podKey(kept), s.lost[kept.uid])).To(Succeed(), "write key %s", podKey(kept))
		Eventually(expectState).WithContext(ctx).WithArguments(ctx, kept, guard.Protected).WithTimeout(apiLag).
			Should(Succeed(), "the kubelet manages pod %s as before", kept)
		s.deleteExplicitly(ctx, kept)
	})

	It("whatever its author wrote into the annotation of the kubelet's sources", func(ctx SpecContext) {
		s := newScene(ctx)
		pod := s.run(ctx, s.newPod("annotated", protected, sourceAnnotation))[0]
		releaseLeft(pod)
		s.loseKey(ctx, pod)
		s.awaitVanished(ctx, pod)
		stayAlive(ctx, holdPeriod, pod)
		s.restoreKey(ctx, pod)
		s.deleteExplicitly(ctx, pod)
	})
})
