package node

import (
	"context"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// catchUp covers an API server that finds its storage again, and the kubelet's watches
// that find the API server: both try again after up to 30 s.
const catchUp = 90 * time.Second

var _ = Describe("A kubelet restart against an API server that lags behind its storage", Label(labelGuarded, labelControlPlane), func() {
	// By default the kubelet's first question is one that only the storage can answer. With
	// WatchListClient switched off it takes what the API server remembers.
	It("costs no protected pod its life that the list lacks, and ends the one that was deleted meanwhile", func(ctx SpecContext) {
		s := newScene(ctx)
		known := s.run(ctx, s.newPod("deleted", protected))[0]
		lagging := startOtherAPIServer(ctx)
		Expect(lagging.Cut()).To(Succeed())
		pods := s.run(ctx, s.newPod("late", protected), s.newPod("late-unprotected"))
		late, unprotected := pods[0], pods[1]
		releaseLeft(known, late)
		stopKubelet(ctx)
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, known.name, metav1.DeleteOptions{})).To(Succeed())

		By("starting the kubelet, which gets no answer: nobody is stopped for want of one")
		startKubelet(ctx, testnode.KubeletChange{APIServer: lagging})
		stayAlive(ctx, holdPeriod, known, late, unprotected)
		By("starting it so that it takes an old answer")
		since := time.Now()
		restartKubelet(ctx, testnode.KubeletChange{APIServer: lagging, Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.FeatureGates = map[string]bool{"WatchListClient": false}
		}})
		unprotected.awaitDeath(ctx, since, killTimeout)
		s.awaitVanished(ctx, late)
		known.expectAlive(Default)

		By("letting the API server catch up")
		restored := time.Now()
		Expect(lagging.Restore()).To(Succeed())
		took := known.awaitHonoured(ctx, restored, catchUp+gracePeriod)
		framework.Progress("the deleted pod ended %.1f s after its API server could hear of that", took.Seconds())
		Eventually(expectState).WithContext(ctx).WithArguments(ctx, late, guard.Protected).WithTimeout(catchUp).
			Should(Succeed(), "the kubelet manages pod %s as before", late)
		s.awaitServing(ctx, late.name, late.uid)
		s.awaitGone(ctx, known, catchUp)
		s.deleteExplicitly(ctx, late)
	})
})

// startOtherAPIServer starts a second API server, until the spec ends.
func startOtherAPIServer(ctx context.Context) testnode.OtherAPIServer {
	GinkgoHelper()
	other, err := provider.Node().StartOtherAPIServer(ctx)
	Expect(err).NotTo(HaveOccurred(), "start a second API server")
	DeferCleanup(other.Stop)
	return other
}
