package node

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/mod/semver"
	corev1 "k8s.io/api/core/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/pkg/kubelet/guard"
)

var _ = Describe("Feature gates changed at a kubelet restart", Label(labelGuarded), func() {
	// Without PodLevelResources the kubelet admits no pod that has some, and would look
	// for its cgroup in that of another QoS class. EventedPLEG replaces the kubelet's list
	// of containers by events of the runtime.
	It("cost no protected pod its container, keep none from its restart, and leave no cgroup behind", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("protected", protected, withPodResources), s.newPod("unprotected", withPodResources),
			s.newPod("exits", protected))
		moved, unprotected, exits := pods[0], pods[1], pods[2]
		_, before, err := podCgroup(moved.process)
		Expect(err).NotTo(HaveOccurred(), "find the cgroup of pod %s", moved)
		stopKubelet(ctx)
		since := time.Now()
		startKubelet(ctx, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
			c.FeatureGates = map[string]bool{"PodLevelResources": false, "InPlacePodLevelResourcesVerticalScaling": false, "EventedPLEG": true}
			// Gates that depend on the first, by the version that they are new in.
			for gate, version := range map[string]string{
				"PodLevelResourceManagers": "v1.36", "PodLevelResourcesFixKubeletQOSClass": "v1.37", "PodLevelResourcesFixDefaulting": "v1.37",
			} {
				if semver.Compare(kubeletVersion, version) >= 0 {
					c.FeatureGates[gate] = false
				}
			}
		}})
		unprotected.awaitDeath(ctx, since, killTimeout)
		s.awaitHeld(ctx, moved, guard.AdmissionRejected)

		By("restarting the runtime, and ending a container")
		Expect(provider.Node().Runtime().Restart(ctx)).To(Succeed(), "restart the container runtime")
		s.exit(ctx, exits.name, 1)
		restarted := awaitRestarted(ctx, exits)
		s.awaitServing(ctx, exits.name, exits.uid)
		expectState(Default, ctx, restarted, guard.Protected)
		s.awaitHeld(ctx, moved, guard.AdmissionRejected)
		By("deleting the pods")
		s.deleteExplicitly(ctx, moved)
		s.deleteExplicitly(ctx, restarted)
		Eventually(before).WithContext(ctx).WithTimeout(killTimeout).ShouldNot(BeADirectory(), "the cgroup of pod %s at its start", moved)
	})
})

// withPodResources makes a pod Guaranteed by the resources of the pod, not of its
// containers.
func withPodResources(pod *corev1.Pod) {
	resources := cpuAndMemory(200)
	pod.Spec.Resources = &corev1.ResourceRequirements{Requests: resources, Limits: resources}
}
