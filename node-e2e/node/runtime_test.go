package node

import (
	"context"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/criproxy"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// startOtherRuntime starts a runtime that knows none of the node's pods, and returns it
// with the change that points a kubelet to it. It ends after the kubelet's return to
// the node's own runtime, so that is to come before anything that stops the kubelet.
func startOtherRuntime(ctx context.Context) (testnode.OtherRuntime, testnode.KubeletChange) {
	GinkgoHelper()
	other, err := provider.Node().Runtime().StartOther(ctx)
	Expect(err).NotTo(HaveOccurred(), "start another container runtime")
	DeferCleanup(other.Stop)
	return other, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
		c.ContainerRuntimeEndpoint = other.Endpoint()
	}}
}

var _ = Describe("Kubelet restart", Label(labelOwnMachine), func() {
	describeIncident(incident{
		title: "pointed to an empty runtime, object gone",
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			_, change := startOtherRuntime(ctx)
			stopKubelet(ctx)
			s.loseKey(ctx, pods...)
			startKubelet(ctx, change)
		},
		restarts: true,
		vanished: true,
		// Its object is gone, and to the runtime it has never run.
		causes: []guard.Cause{guard.PodVanished, guard.ContainerStateUnknown},
		repair: func(ctx context.Context, s *scene, pod *subject) {
			restartKubelet(ctx, unchanged)
			s.awaitHeld(ctx, pod, unknownPod...)
			s.restoreKey(ctx, pod)
		},
	})
})

var _ = Describe("A runtime that does not know the node's pods", Label(labelGuarded, labelOwnMachine), func() {
	It("costs no protected pod its processes or files, and starts none a second time", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx,
			s.newPod("present", protected, withEmptyDir("/data"), withArgs("--file=/data/file", "--content=present")),
			s.newPod("gone", protected, withEmptyDir("/data"), withArgs("--file=/data/file", "--content=gone")))
		gone := pods[1]
		releaseLeft(gone)
		other, change := startOtherRuntime(ctx)
		stopKubelet(ctx)
		s.loseKey(ctx, gone)
		startKubelet(ctx, change)
		for _, pod := range pods {
			Eventually(func(g Gomega) {
				pod.expectAlive(g)
				found := expectKnown(g, ctx, pod)
				g.Expect(found.State).To(Equal(guard.Held), "state of pod %s", pod)
			}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "pod %s is held", pod)
		}
		Consistently(func(g Gomega) {
			g.Expect(other.Containers(ctx)).To(BeEmpty(), "containers in the other runtime")
			for _, pod := range pods {
				pod.expectAlive(g)
				expectFile(g, ctx, pod, workloadPort, pod.name)
				g.Expect(savedFile(pod)).To(BeAnExistingFile(), "the saved file of pod %s", pod)
			}
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())

		By("going back to the node's own runtime")
		restartKubelet(ctx, unchanged)
		s.awaitVanished(ctx, gone)
		s.restoreKey(ctx, gone)
		for _, pod := range pods {
			s.awaitServing(ctx, pod.name, pod.uid)
			expectState(Default, ctx, pod, guard.Protected)
			expectFile(Default, ctx, pod, workloadPort, pod.name)
			s.deleteExplicitly(ctx, pod)
		}
	})
})

// runtimeQuestions is the operation that fails when a question to the runtime does.
const runtimeQuestions = "Runtime"

// aboutOne reports whether a list of containers is filtered by a container's or a
// sandbox's ID. The stock kubelet never does.
func aboutOne(_ criproxy.Call, request proto.Message) bool {
	list, ok := request.(*runtimeapi.ListContainersRequest)
	return ok && (list.GetFilter().GetId() != "" || list.GetFilter().GetPodSandboxId() != "")
}

var _ = Describe("A runtime that answers one question badly", Label(labelTransparency, labelOwnMachine), func() {
	It("keeps no pod from its explicit deletion", func(ctx SpecContext) {
		tolerate(runtimeQuestions)
		s := newScene(ctx)
		proxy := newRuntimeProxy(ctx)
		restartKubelet(ctx, throughProxy(proxy, testnode.KubeletChange{}))
		pods := s.run(ctx, s.newPod("failing-plain"), s.newPod("failing-protected", protected),
			s.newPod("hanging-plain"), s.newPod("hanging-protected", protected))
		for _, fault := range []struct {
			name string
			criproxy.Fault
			pods []*subject
		}{
			{"fails", criproxy.Fault{Method: "ListContainers", When: aboutOne, Err: criproxy.Failed}, pods[:2]},
			{"hangs", criproxy.Fault{Method: "ListContainers", When: aboutOne}, pods[2:]},
		} {
			By("deleting pods while the question " + fault.name)
			remove := proxy.Inject(fault.Fault)
			DeferCleanup(remove)
			for _, pod := range fault.pods {
				requested := time.Now()
				s.deleteExplicitly(ctx, pod)
				took := time.Since(requested)
				framework.Progress("a question to the runtime %s: pod %s gone %.1f s after its deletion", fault.name, pod.name, took.Seconds())
				Expect(took).To(BeNumerically("<", undelayed), "time until pod %s is gone", pod)
			}
			remove()
		}
	})
})

// newRuntimeProxy puts a proxy before the node's container runtime, for kubelets that
// are started with throughProxy. It ends with the spec. Call it before anything that
// restarts the kubelet, so that the normal kubelet is back before the proxy goes.
//
// The socket is a file of this machine that the nodes of a kind cluster do not see: the
// spec needs the label control-plane, as the others do that the kind provider cannot run.
func newRuntimeProxy(ctx context.Context) *criproxy.Proxy {
	GinkgoHelper()
	// Not GinkgoT().TempDir: the path of a socket has at most 107 bytes.
	dir := framework.Must(os.MkdirTemp("", "criproxy-"))
	DeferCleanup(os.RemoveAll, dir)
	proxy, err := criproxy.Start(ctx, filepath.Join(dir, "cri.sock"), provider.Node().RuntimeSocket())
	Expect(err).NotTo(HaveOccurred(), "start the proxy of the container runtime")
	DeferCleanup(proxy.Close)
	return proxy
}

// throughProxy adds to a change of the kubelet that it reaches the container runtime
// through the proxy only.
func throughProxy(proxy *criproxy.Proxy, change testnode.KubeletChange) testnode.KubeletChange {
	inner := change.Configure
	change.Configure = func(config *kubeletconfig.KubeletConfiguration) {
		if inner != nil {
			inner(config)
		}
		config.ContainerRuntimeEndpoint = proxy.Endpoint()
	}
	return change
}
