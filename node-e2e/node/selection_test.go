package node

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/pkg/kubelet/guard"
)

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
