package fleet

import (
	"regexp"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	gomegatypes "github.com/onsi/gomega/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// releaseWait is promised: the kubelet looks for the records of held pods every 10 s.
const releaseWait = 30 * time.Second

// row is a line of a table that starts with the first cell and has the others in this
// order.
func row(first string, others ...string) gomegatypes.GomegaMatcher {
	pattern := `(?m)^` + regexp.QuoteMeta(first)
	for _, cell := range others {
		pattern += `\s+` + cell
	}
	return MatchRegexp(pattern)
}

var _ = Describe("kubectl guard", func() {
	It("shows which nodes are guarded, and a held pod until it is deleted", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		pods := s.runCompared(ctx, "late")
		status := kubectl(ctx, "guard", "status")
		Expect(status).To(And(
			row(stockNode().Name(), "Unguarded"),
			row(guardedNode().Name(), "Guarded", `v\S+\+guard\.\S+`, "Enforce"),
			row(cluster.ControlPlane().Name(), "Unguarded")))

		By("letting the pods' deadline pass")
		for _, pod := range pods.all() {
			framework.Must(client.CoreV1().Pods(s.namespace).Patch(ctx, pod.name, types.MergePatchType, []byte(`{"spec":{"activeDeadlineSeconds":1}}`), metav1.PatchOptions{}))
		}
		awaitEnded(ctx, time.Now(), killTimeout, pods.killable()...)
		held := pods.guardedProtected
		awaitGuardState(ctx, held, guard.Held, guard.ActiveDeadlineExceeded)
		Expect(kubectl(ctx, "guard", "holds", "-n", s.namespace)).To(
			row(held.name, guardedNode().Name(), string(guard.ActiveDeadlineExceeded), `\S+`, "Present"))
		Expect(kubectl(ctx, "guard", "why", held.name, "-n", s.namespace)).To(And(
			ContainSubstring("Held since"), ContainSubstring(string(guard.ActiveDeadlineExceeded)), ContainSubstring(guardedNode().Name())))
		deleteExplicitly(ctx, metav1.DeleteOptions{}, held)
		Expect(tryKubectl(ctx, "guard", "holds", "-n", s.namespace).ExpectDone().Stderr).To(ContainSubstring("No pods are held"))
	}, SpecTimeout(specTimeout))

	It("releases a pod that was deleted by force while its kubelet was down", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		pods := s.runCompared(ctx, "forced")
		stopKubelet(ctx, workers()...)
		for _, pod := range pods.all() {
			Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})).To(Succeed())
		}
		startKubelet(ctx, workers()...)
		started := time.Now()
		took := awaitEnded(ctx, started, killTimeout, pods.killable()...)
		held := pods.guardedProtected
		awaitGuardState(ctx, held, guard.Held, guard.PodVanished)
		found("pods deleted by force while the kubelet was down: the stock kubelet ended them %.0f s after its start, the guarded one holds the protected pod", took.Seconds())
		Expect(kubectl(ctx, "guard", "holds", "-n", s.namespace)).To(
			row(held.name, guardedNode().Name(), string(guard.PodVanished), `\S+`, "Gone"))
		stayRunning(ctx, holdPeriod, held)
		requested := time.Now()
		Expect(kubectl(ctx, "guard", "release", held.name, "-n", s.namespace, "--yes", "--timeout=0", "--reason=fleet suite")).To(
			ContainSubstring("record " + string(held.uid) + " written"))
		released := awaitEnded(ctx, requested, releaseWait+gracePeriod, held)
		framework.Progress("kubectl guard release: the pod had ended after %.0f s", released.Seconds())
	}, SpecTimeout(specTimeout))

	It("protects the running pods of a Deployment, on both workers", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		pods := s.createDeployments(ctx, "web", 1)
		for _, node := range workers() {
			kubectl(ctx, "guard", "protect", "-n", s.namespace, "deployment/web-"+node.Pool())
		}
		awaitGuardState(ctx, pods[guardedNode()][0], guard.Protected)
		expectRunning(Default, ctx, both(pods)...)
		warned := tryKubectl(ctx, "guard", "unprotect", "-n", s.namespace, "deployment/web-"+guardedNode().Pool(), "--yes").ExpectDone()
		Expect(warned.Stdout).To(ContainSubstring("no longer protected"))
		expectRunning(Default, ctx, both(pods)...)
	}, SpecTimeout(specTimeout))
})
