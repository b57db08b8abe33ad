package node

import (
	"context"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// The kubelet is not restarted in between: what it does is up to its watches.
var _ = Describe("A storage that is replaced under a running kubelet", Label(labelControlPlane), func() {
	It("by an empty one and then by a snapshot costs no pod its life, not even one that the snapshot lacks", Label(labelTransparency), func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("protected", protected), s.newPod("unprotected"))
		snapshot := saveStorage(ctx)
		pods = append(pods, s.run(ctx, s.newPod("late-protected", protected), s.newPod("late-unprotected"))...)
		releaseLeft(pods...)
		expectKept := func() {
			GinkgoHelper()
			Consistently(func(g Gomega) {
				for _, pod := range pods {
					pod.expectAlive(g)
					framework.Try(fetch(ctx, pod, workloadPort, "/healthz")).In(g)
				}
			}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed())
		}
		snapshot.empty(ctx)
		expectKept()
		snapshot.restore(ctx)
		expectKept()
		if variant == Guarded {
			// About unprotected pods, and with the stock kubelet about all, a kubelet hears
			// nothing from a restored storage: when the control plane was away for so
			// long that it called them not ready, they stay so.
			s.awaitServing(ctx, pods[0].name, pods[0].uid)
		}
	})

	It("by an empty one and then by a snapshot is followed each time", Label(labelGuarded), func(ctx SpecContext) {
		s, pod := runProtected(ctx)
		snapshot := saveStorage(ctx)
		releaseLeft(pod)
		snapshot.empty(ctx)
		s.awaitVanished(ctx, pod)
		// An emptied storage has not even the namespace of events at first.
		expectNodeEvent(ctx, guard.EventKillRefused, string(pod.uid), string(guard.PodVanished))
		snapshot.restore(ctx)
		s.awaitKnownAgain(ctx, pod)
		expectState(Default, ctx, pod, guard.Protected)
		Eventually(func(g Gomega) {
			onThePod := framework.Try(client.CoreV1().Events(s.namespace).List(ctx, metav1.ListOptions{
				FieldSelector: "reason=" + guard.EventKillRefused + ",involvedObject.uid=" + string(pod.uid),
			})).In(g)
			g.Expect(onThePod.Items).To(HaveLen(1), "events %s on pod %s", guard.EventKillRefused, pod)
		}).WithContext(ctx).WithTimeout(eventRetry).Should(Succeed(), "the event for which the emptied storage had no namespace is written again")
		s.expectFollowed(ctx)
		s.deleteExplicitly(ctx, pod)
	})

	It("by a snapshot that lacks a pod is followed, and the pod held and shown", Label(labelGuarded), func(ctx SpecContext) {
		s := newScene(ctx)
		snapshot := saveStorage(ctx)
		// A backup is older than what a starting control plane writes in a moment.
		for range revisionsSince {
			Expect(provider.Node().Storage().Put(ctx, "/e2e/age", []byte("1"))).To(Succeed(), "raise the revision of the storage")
		}
		late := s.run(ctx, s.newPod("late", protected))[0]
		releaseLeft(late)
		snapshot.restore(ctx)
		s.awaitVanished(ctx, late)
		expectNodeEvent(ctx, guard.EventKillRefused, string(late.uid), string(guard.PodVanished))
		Eventually(expectNodeCondition).WithContext(ctx).WithArguments(ctx, provider.Node().Name(), corev1.ConditionTrue).WithTimeout(apiLag).
			Should(Succeed(), "the node says that it holds pods")
		s.expectFollowed(ctx)
		By("releasing the lost pod")
		late.expectAlive(Default)
		requested := releaseByFile(late)
		late.awaitHonoured(ctx, requested, releaseFileTimeout+gracePeriod+killSlack)
		s.awaitGone(ctx, late, deletionSlack)
	})
})

// expectFollowed checks that the kubelet starts and ends pods as the API says.
func (s *scene) expectFollowed(ctx context.Context) {
	GinkgoHelper()
	By("creating and deleting a pod")
	s.deleteExplicitly(ctx, s.run(ctx, s.newPod("new", protected))[0])
}

// eventRetry is promised: how soon after the API accepts it a refused event is written
// again.
const eventRetry = time.Minute

// revisionsSince is how far the storage goes on after a snapshot. A starting control
// plane writes some hundred times; when the server has come to the version that the
// kubelet has seen before the kubelet connects, nothing shows that it was rolled back.
const revisionsSince = 1000

// storageSnapshot is what the storage was at a moment of a spec.
type storageSnapshot struct {
	file string
	// emptied is set while the storage has to be restored.
	emptied bool
}

// saveStorage takes a snapshot. The spec's end brings it back, if the storage is
// empty then, and the kubelet in step with it: its watches belong to the storage
// that was replaced. Pods that the storage has lost end there, if they are not held.
func saveStorage(ctx context.Context) *storageSnapshot {
	GinkgoHelper()
	snapshot := &storageSnapshot{file: filepath.Join(GinkgoT().TempDir(), "etcd.snapshot")}
	Expect(provider.Node().Storage().Snapshot(ctx, snapshot.file)).To(Succeed(), "save the storage")
	DeferCleanup(func(ctx context.Context) {
		if snapshot.emptied {
			snapshot.restore(ctx)
		}
		normalKubelet(ctx)
	})
	return snapshot
}

func (s *storageSnapshot) empty(ctx context.Context) {
	GinkgoHelper()
	s.emptied = true
	Expect(provider.Node().Storage().Wipe(ctx)).To(Succeed(), "replace the storage by an empty one")
}

func (s *storageSnapshot) restore(ctx context.Context) {
	GinkgoHelper()
	Expect(provider.Node().Storage().Restore(ctx, s.file)).To(Succeed(), "restore the storage")
	s.emptied = false
}
