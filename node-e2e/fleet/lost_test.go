package fleet

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/framework"
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

var _ = Describe("A node that is lost", Label(labelAway), func() {
	It("was cut off for less than the node controller waits: it keeps its pods, and ends those that were deleted by force", func(ctx SpecContext) {
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

	It("was frozen for longer: it ends the pods that were deleted meanwhile, and no others", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		pods := s.runAbandoned(ctx)
		pause(ctx, workers()...)
		pods.awaitDeletion(ctx)
		unpause(ctx, workers()...)
		pods.awaitFates(ctx)
		s.expectNothingHeld(ctx)
	}, SpecTimeout(2*specTimeout))
})

// abandoned are pods on workers that are about to go away for longer than the node
// controller waits. Some must leave such a node soon, the others need not.
type abandoned struct{ leaving, staying compared }

func (s *scene) runAbandoned(ctx context.Context) abandoned {
	GinkgoHelper()
	return abandoned{
		leaving: s.runCompared(ctx, "leaving", leavingAfter(stay)),
		staying: s.runCompared(ctx, "staying", leavingAfter(-1)),
	}
}

// awaitDeletion waits until the nodes are given up and the pods deleted that must
// leave. That is a deletion through the API, for all to see, so it is explicit.
func (a abandoned) awaitDeletion(ctx context.Context) {
	GinkgoHelper()
	awaitUnreachable(ctx, workers()...)
	Eventually(ctx, func(g Gomega) {
		for _, pod := range a.leaving.all() {
			object := framework.Try(client.CoreV1().Pods(pod.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g)
			g.Expect(object.DeletionTimestamp).NotTo(BeNil(), "deletion of pod %s", pod)
		}
	}).WithTimeout(stay+taintEviction).Should(Succeed(), "taint eviction deletes the pods")
}

// awaitFates waits until the pods that were deleted have ended, on nodes that are back,
// and checks that the others run.
func (a abandoned) awaitFates(ctx context.Context) {
	GinkgoHelper()
	awaitEnded(ctx, time.Now(), reconnection, a.leaving.all()...)
	awaitGone(ctx, gracePeriod+deletionSlack, a.leaving.all()...)
	stayRunning(ctx, holdPeriod, a.staying.all()...)
	Eventually(ctx, func(g Gomega) { expectAPIShowsRunning(g, ctx, a.staying.all()...) }).WithTimeout(apiLag).Should(Succeed())
	awaitGuardState(ctx, a.staying.guardedProtected, guard.Protected)
}
