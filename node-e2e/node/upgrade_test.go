package node

import (
	"path/filepath"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/mod/semver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// A minor version reads what the one before has written, and the other way round: the guard's
// saved pods as well as the kubelet's own checkpoints.
var _ = Describe("An upgrade of the kubelet", Label(labelGuarded, labelOwnMachine), func() {
	It("by all supported minor versions, and a step back, ends no process and keeps what is held", func(ctx SpecContext) {
		versions := builtVersions()
		if len(versions) < 2 {
			Skip("kubelets of other minor versions are not built (make kubelets)")
		}
		walk := append(slices.Clone(versions), versions[len(versions)-2])
		s := newScene(ctx)
		s.provideClaim(ctx)
		By("starting with " + walk[0])
		restartKubelet(ctx, kubeletOf(walk[0]))
		pods := s.run(ctx,
			s.newPod("plain"), s.newPod("protected", protected), s.newPod("sidecar", protected, withInitAndSidecar),
			s.newPod("held", protected), s.newPod("vanished", protected, withClaim))
		running, held, vanished := pods[:3], pods[3], pods[4]
		sidecar := s.observe(ctx, "sidecar", sidecarContainer)
		init := containersNamed(ctx, sidecar, initContainer)
		s.hold(ctx, held)
		s.loseKey(ctx, vanished)
		s.awaitVanished(ctx, vanished)
		for _, version := range walk[1:] {
			By("going on with " + version)
			restartKubelet(ctx, kubeletOf(version))
			Eventually(func(g Gomega) {
				node := framework.Try(client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{})).In(g)
				g.Expect(node.Status.NodeInfo.KubeletVersion).To(Equal(build.GuardedVersion(version)))
			}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed())
			s.awaitHeld(ctx, held, guard.ActiveDeadlineExceeded)
			s.awaitHeld(ctx, vanished, unknownPod...)
			Consistently(func(g Gomega) {
				for _, pod := range append(slices.Clone(pods), sidecar) {
					pod.expectAlive(g)
				}
				for _, pod := range running {
					s.expectServing(g, ctx, pod.name, pod.uid)
				}
				for _, pod := range running[1:] {
					expectState(g, ctx, pod, guard.Protected)
				}
				g.Expect(containersNamed(ctx, sidecar, initContainer)).To(Equal(init), "init containers of pod %s in the runtime", sidecar)
			}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed())
		}
		By("deleting the pods")
		s.restoreKey(ctx, vanished)
		requested := time.Now()
		s.deleteExplicitly(ctx, pods[1:]...)
		sidecar.awaitHonoured(ctx, requested, deletionSlack)
	})
})

// kubeletOf is the guarded kubelet of a version, as the build leaves it.
func kubeletOf(version string) testnode.KubeletChange {
	return testnode.KubeletChange{Binary: filepath.Join(outputDir, version, "kubelet")}
}

// builtVersions are the versions of Kubernetes whose guarded kubelets are built, one of each
// minor version, oldest first.
func builtVersions() []string {
	GinkgoHelper()
	files := framework.Must(filepath.Glob(filepath.Join(outputDir, "v*", "kubelet")))
	newest := map[string]string{}
	for _, file := range files {
		version := filepath.Base(filepath.Dir(file))
		if semver.IsValid(version) && semver.Compare(version, newest[semver.MajorMinor(version)]) > 0 {
			newest[semver.MajorMinor(version)] = version
		}
	}
	var versions []string
	for _, version := range newest {
		versions = append(versions, version)
	}
	semver.Sort(versions)
	return versions
}
