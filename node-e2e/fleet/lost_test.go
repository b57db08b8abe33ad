package fleet

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/kind"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// shortSilence is less than the 50 s after which the node controller gives up.
	shortSilence = 15 * time.Second
	// reconnection covers a kubelet whose connection is broken and whose next attempt may
	// come with a back-off.
	reconnection = 90 * time.Second
	// stay is how long pods stay on a node that was given up, in place of the default
	// of five minutes.
	stay = 5 * time.Second
	// taintEviction covers the controller that deletes them when it is over.
	taintEviction = 30 * time.Second
)

var _ = Describe("A node that is lost", func() {
	It("keeps its pods when it was cut off for less than the node controller waits, and ends those that were deleted by force", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		kept := s.runCompared(ctx, "kept", leavingAfter(stay))
		forced := s.runCompared(ctx, "forced", leavingAfter(stay))
		disconnect(ctx, workers()...)
		cut := time.Now()
		for _, pod := range forced.all() {
			Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, *metav1.NewDeleteOptions(0))).To(Succeed())
		}
		Eventually(ctx, func() time.Duration { return time.Since(cut) }).WithTimeout(2 * shortSilence).Should(BeNumerically(">", shortSilence))
		expectRunning(Default, ctx, append(kept.all(), forced.all()...)...)
		reconnect(ctx, workers()...)
		// The kubelets go on watching where they were, so that they see the deletions.
		awaitEnded(ctx, time.Now(), reconnection, forced.all()...)
		stayRunning(ctx, holdPeriod, kept.all()...)
		expectAPIShowsRunning(Default, ctx, kept.all()...)
		s.expectNothingHeld(ctx)
	}, SpecTimeout(specTimeout))

	It("ends the pods that were deleted meanwhile when it was frozen, and no others", func(ctx SpecContext) {
		lostAndBack(ctx, newScene(ctx, nil), pause, unpause)
	}, SpecTimeout(2*specTimeout))

	It("ends the pods that were deleted meanwhile when it was cut off, and no others", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		lostAndBack(ctx, s, disconnect, reconnect)
	}, SpecTimeout(2*specTimeout))
})

// lostAndBack takes both workers away until the controllers have deleted the pods that
// do not tolerate it, and brings them back. That deletion is one through the API, made
// for anybody to see, so it is explicit.
func lostAndBack(ctx context.Context, s *scene, take, bring func(context.Context, ...*kind.Node)) {
	GinkgoHelper()
	leaving := s.runCompared(ctx, "leaving", leavingAfter(stay))
	staying := s.runCompared(ctx, "staying", leavingAfter(-1))
	take(ctx, workers()...)
	taken := time.Now()

	By("awaiting that the nodes are given up, and the pods deleted that do not tolerate it")
	awaitUnreachable(ctx, workers()...)
	progress("lost: given up after %.0f s", time.Since(taken).Seconds())
	Eventually(ctx, func(g Gomega) {
		for _, pod := range leaving.all() {
			object, err := client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(object.DeletionTimestamp).NotTo(BeNil(), "deletion of pod %s", pod)
		}
	}).WithTimeout(stay+taintEviction).Should(Succeed(), "taint eviction deletes the pods")

	By("bringing the nodes back")
	bring(ctx, workers()...)
	back := time.Now()
	for _, end := range []struct {
		node *kind.Node
		pods []*subject
	}{
		{stockNode(), []*subject{leaving.stockProtected, leaving.stockPlain}},
		{guardedNode(), []*subject{leaving.guardedProtected, leaving.guardedPlain}},
	} {
		took := awaitEnded(ctx, back, time.Minute, end.pods...)
		progress("lost: the deleted pods of worker %s had ended %.0f s after it was Ready again", end.node.Name(), took.Seconds())
	}
	awaitGone(ctx, gracePeriod+deletionSlack, leaving.all()...)
	stayRunning(ctx, holdPeriod, staying.all()...)
	Eventually(ctx, func(g Gomega) { expectAPIShowsRunning(g, ctx, staying.all()...) }).WithTimeout(apiLag).Should(Succeed())
	awaitGuardState(ctx, staying.guardedProtected, guard.Protected)
	s.expectNothingHeld(ctx)
}
