package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

var _ = Describe("A held pod", Label(labelGuarded), func() {
	It("gets its exclusive CPU from a changed policy, and keeps it over a kubelet restart", func(ctx SpecContext) {
		s := newScene(ctx)
		s.needTwoCPUs(ctx)
		labelNode(ctx, ptr.To("a"))
		DeferCleanup(labelNode, (*string)(nil))
		pods := s.run(ctx, s.newPod("exclusive", protected, exclusiveCPU, func(pod *corev1.Pod) {
			pod.Spec.NodeSelector = map[string]string{poolLabel: "a"}
		}), s.newPod("shared"))
		exclusive, shared := pods[0], pods[1]
		By("starting the kubelet with another policy than that of its state file")
		stopKubelet(ctx)
		Expect(provider.Node().Kubelet().Start(ctx, staticCPUs)).To(MatchError(ContainSubstring(cpuManagerState)))
		for _, pod := range pods {
			pod.expectAlive(Default)
		}
		static := startStaticCPUs(ctx)
		var own string
		Eventually(func(g Gomega) {
			own = allowedCPUs(exclusive.process)
			g.Expect(own).To(MatchRegexp(`^\d+$`), "CPUs of pod %s", exclusive)
		}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed(), "the policy gives pod %s a CPU", exclusive)

		By("restarting the kubelet with a node label that no longer suits the pod")
		labelNode(ctx, ptr.To("b"))
		restartKubelet(ctx, static)
		s.awaitHeld(ctx, exclusive, guard.AdmissionRejected)
		// The CPU manager reconciles every 10 s, and at once for what it admits.
		Consistently(func(g Gomega) {
			exclusive.expectAlive(g)
			g.Expect(allowedCPUs(exclusive.process)).To(Equal(own), "CPUs of pod %s", exclusive)
			g.Expect(allowedCPUs(shared.process)).NotTo(ContainSubstring(own), "CPUs of pod %s", shared)
		}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed(), "nobody else gets the CPU of pod %s", exclusive)
		s.deleteExplicitly(ctx, exclusive)
	})

	It("whose object is gone keeps its exclusive CPU and its port over a kubelet restart", func(ctx SpecContext) {
		s := newScene(ctx)
		s.needTwoCPUs(ctx)
		static := startStaticCPUs(ctx)
		pod := s.run(ctx, s.newPod("exclusive", protected, exclusiveCPU, withHostPort))[0]
		own := allowedCPUs(pod.process)
		Expect(own).To(MatchRegexp(`^\d+$`), "CPUs of pod %s", pod)
		stopKubelet(ctx)
		s.loseKey(ctx, pod)
		startKubelet(ctx, static)
		s.awaitVanished(ctx, pod)

		By("requesting all CPUs, and the same port")
		all := s.create(ctx, s.newPod("all-cpus", requesting(nodeMilliCPU(ctx)-1000)))
		port := s.create(ctx, s.newPod("same-port", withHostPort))
		s.expectRejected(ctx, all, "OutOfcpu")
		s.expectRejected(ctx, port, "NodePorts")
		shared := s.run(ctx, s.newPod("shared"))[0]
		// The CPU manager reconciles every 10 s.
		Consistently(func(g Gomega) {
			pod.expectAlive(g)
			g.Expect(allowedCPUs(pod.process)).To(Equal(own), "CPUs of pod %s", pod)
			g.Expect(allowedCPUs(shared.process)).NotTo(ContainSubstring(own), "CPUs of pod %s", shared)
		}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed(), "nobody else gets the CPU of pod %s", pod)
		s.restoreKey(ctx, pod)
		Expect(allowedCPUs(pod.process)).To(Equal(own), "CPUs of pod %s", pod)
		s.deleteExplicitly(ctx, pod)
	})

	// What the state file says nobody else knows: with it the pod loses its CPU to the
	// shared ones, and not its life.
	It("whose CPU is forgotten and reserved runs on among the others, and gets one again", func(ctx SpecContext) {
		s := newScene(ctx)
		s.needTwoCPUs(ctx)
		static := startStaticCPUs(ctx)
		pod := s.run(ctx, s.newPod("exclusive", protected, exclusiveCPU))[0]
		Expect(allowedCPUs(pod.process)).To(MatchRegexp(`^\d+$`), "CPUs of pod %s", pod)
		By("losing the state file, with all CPUs reserved for the system")
		stopKubelet(ctx)
		forgetCPUs()
		last := nodeMilliCPU(ctx)/1000 - 1
		restartLeaving(ctx, corev1.ResourceCPU, 0, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			static.Configure(c)
			c.ReservedSystemCPUs = fmt.Sprintf("0-%d", last)
		}})
		s.awaitHeld(ctx, pod, guard.AdmissionRejected)
		// The CPU manager reconciles every 10 s.
		stayAlive(ctx, survivalPeriod, pod)
		By("reserving one CPU only")
		restartLeaving(ctx, corev1.ResourceCPU, last*1000, static)
		Eventually(func(g Gomega) {
			pod.expectAlive(g)
			expectState(g, ctx, pod, guard.Protected)
			g.Expect(allowedCPUs(pod.process)).To(MatchRegexp(`^\d+$`), "CPUs of pod %s", pod)
		}).WithContext(ctx).WithTimeout(survivalPeriod+apiLag).Should(Succeed(), "the policy gives pod %s a CPU", pod)
		s.deleteExplicitly(ctx, pod)
	})
})

// needTwoCPUs skips a spec in which one CPU is reserved and one is given away, where that
// leaves no room for the pods that came with the node.
func (s *scene) needTwoCPUs(ctx context.Context) {
	GinkgoHelper()
	needed := int64(2000)
	for _, pod := range s.otherPods(ctx) {
		for _, container := range pod.Spec.Containers {
			needed += container.Resources.Requests.Cpu().MilliValue()
		}
	}
	if capacity := nodeMilliCPU(ctx); capacity < needed {
		Skip(fmt.Sprintf("the spec and the node's own pods need %dm of CPU, the node has %dm", needed, capacity))
	}
}

// startStaticCPUs restarts the kubelet with the static CPU manager policy and CPU 0
// reserved, and returns how to do so again.
func startStaticCPUs(ctx context.Context) testnode.KubeletChange {
	GinkgoHelper()
	By("starting the kubelet with the static CPU manager policy")
	stopKubelet(ctx)
	forgetCPUs()
	// Before the kubelet's return to its normal policy, which a state of another
	// policy would keep from starting.
	DeferCleanup(func(ctx context.Context) {
		endKubelet(ctx, provider.Node().Kubelet().Stop)
		forgetCPUs()
	})
	startKubelet(ctx, staticCPUs)
	return staticCPUs
}

// staticCPUs gives Guaranteed pods whole CPUs of their own, except for CPU 0.
var staticCPUs = testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
	c.CPUManagerPolicy = "static"
	c.ReservedSystemCPUs = "0"
}}

// cpuManagerState is the file with the CPU manager's notes, in the kubelet's folder.
const cpuManagerState = "cpu_manager_state"

// withHostPort requests a port of the node. Nothing maps it here; the kubelet admits
// only one pod with it.
func withHostPort(pod *corev1.Pod) { pod.Spec.Containers[0].Ports[0].HostPort = 32080 }

// expectRejected waits until the kubelet rejects a pod for the reason.
func (s *scene) expectRejected(ctx context.Context, pod *corev1.Pod, reason string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.Name, metav1.GetOptions{})).In(g)
		g.Expect(object.Status.Phase).To(Equal(corev1.PodFailed), "phase of pod %s", pod.Name)
		g.Expect(object.Status.Reason).To(Equal(reason), "why pod %s was rejected: %s", pod.Name, object.Status.Message)
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the kubelet rejects pod %s", pod.Name)
}

// exclusiveCPU makes a pod one to which the static policy gives a whole CPU.
func exclusiveCPU(pod *corev1.Pod) {
	resources := &pod.Spec.Containers[0].Resources
	resources.Requests = cpuAndMemory(1000)
	resources.Limits = resources.Requests
}

// forgetCPUs removes what the stopped kubelet noted about CPUs: it refuses to start
// with the notes of another policy.
func forgetCPUs() {
	GinkgoHelper()
	err := os.Remove(filepath.Join(provider.Node().KubeletDir(), cpuManagerState))
	if !errors.Is(err, fs.ErrNotExist) {
		Expect(err).NotTo(HaveOccurred(), "remove the CPU manager's state")
	}
}

var cpusAllowed = regexp.MustCompile(`(?m)^Cpus_allowed_list:\s*(\S+)$`)

// allowedCPUs returns the CPUs that a process may use, in the kernel's list format.
func allowedCPUs(p testnode.Process) string {
	GinkgoHelper()
	found := cpusAllowed.FindSubmatch(framework.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))))
	Expect(found).NotTo(BeNil(), "Cpus_allowed_list in the status of %s", p)
	return string(found[1])
}
