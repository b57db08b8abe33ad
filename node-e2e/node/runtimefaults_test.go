package node

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/criproxy"
)

// runtimeQuestions is the operation that fails when a question to the runtime does.
const runtimeQuestions = "Runtime"

// aboutOne reports whether a list of containers is filtered by a container's or a
// sandbox's ID. The stock kubelet never asks so.
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
				asked := time.Now()
				s.deleteExplicitly(ctx, pod)
				took := time.Since(asked)
				framework.Progress("a question to the runtime %s: pod %s gone %.1f s after its deletion", fault.name, pod.name, took.Seconds())
				Expect(took).To(BeNumerically("<", undelayed), "time until pod %s is gone", pod)
			}
			remove()
		}
	})
})
