package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/mod/semver"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubelettypes "k8s.io/kubelet/pkg/types"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/unixsocket"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// A kubelet admits and syncs all its pods again when it starts. These are parts of a pod that may be
// gone by then, or have ended, next to a container that runs.
var _ = Describe("A kubelet restart", Label(labelTransparency, labelOwnMachine), func() {
	It("costs no protected pod its container for want of another one's record or of a claim, and runs nothing twice", func(ctx SpecContext) {
		s := newScene(ctx)
		s.provideClaim(ctx)
		pods := s.run(ctx,
			s.newPod("init-removed", protected, withEndedInit),
			s.newPod("debug-removed", protected),
			s.newPod("claim-deleted", protected, withClaim))
		initRemoved, debugRemoved, claimDeleted := pods[0], pods[1], pods[2]
		s.debug(ctx, debugRemoved.name)

		By("deleting the claim, and removing an init and a debug container past the kubelet")
		Expect(client.CoreV1().PersistentVolumeClaims(s.namespace).Delete(ctx, claim, metav1.DeleteOptions{})).To(Succeed())
		stopKubelet(ctx)
		removeContainer(ctx, initRemoved, initContainer)
		removeContainer(ctx, debugRemoved, debugContainer)
		startKubelet(ctx, unchanged)
		expectUntouched := func() {
			GinkgoHelper()
			Consistently(func(g Gomega) {
				for _, pod := range pods {
					pod.expectAlive(g)
				}
				g.Expect(containersNamed(ctx, initRemoved, initContainer)).To(BeEmpty(), "init containers of pod %s", initRemoved)
				g.Expect(len(containersNamed(ctx, debugRemoved, debugContainer))).To(BeNumerically("<=", 1), "debug containers of pod %s", debugRemoved)
			}).WithContext(ctx).WithTimeout(survivalPeriod).Should(Succeed())
		}
		expectUntouched()
		By("ending the container that has its file on the claim")
		framework.Must(fetch(ctx, claimDeleted, claimPort, "/exit?code=1"))
		Eventually(expectFile).WithContext(ctx).WithArguments(ctx, claimDeleted, int32(claimPort), claimDeleted.name).
			WithTimeout(restartTimeout).Should(Succeed(), "the restarted container has the file of its predecessor")
		if variant == Guarded {
			for _, pod := range pods {
				expectState(Default, ctx, pod, guard.Protected)
			}
			By("losing the objects, too")
			stopKubelet(ctx)
			s.loseKey(ctx, pods...)
			startKubelet(ctx, unchanged)
			s.awaitVanished(ctx, pods...)
			expectUntouched()
			s.restoreKey(ctx, pods...)
		}
		s.deleteExplicitly(ctx, pods...)
	})

	It("ends protected pods that have completed next to a debug container, and starts none that is Terminating", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx,
			s.newPod("completed", protected, restartPolicy(corev1.RestartPolicyNever)),
			s.newPod("reported", protected, restartPolicy(corev1.RestartPolicyNever)),
			s.newPod("finalized", protected, withFinalizer))
		DeferCleanup(s.removeFinalizer, pods[2])
		completed, reported, finalized := pods[0], pods[1], pods[2]
		debugged := []*subject{s.debug(ctx, completed.name), s.debug(ctx, reported.name)}

		By("deleting a pod that has a finalizer")
		requested := time.Now()
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, finalized.name, metav1.DeleteOptions{})).To(Succeed())
		finalized.awaitHonoured(ctx, requested, gracePeriod+deletionSlack)
		By("completing two pods while the kubelet is down, and reporting so of one")
		stopKubelet(ctx)
		for _, pod := range []*subject{completed, reported} {
			s.exit(ctx, pod.name, 0)
			pod.awaitDeath(ctx, time.Now(), killTimeout)
		}
		s.patchPhase(ctx, reported, corev1.PodSucceeded)
		since := time.Now()
		startKubelet(ctx, unchanged)
		for _, pod := range debugged {
			pod.awaitDeath(ctx, since, killTimeout)
		}
		for _, pod := range []*subject{completed, reported} {
			s.awaitPhase(ctx, framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})), corev1.PodSucceeded)
		}
		Expect(containersOf(ctx, finalized.uid)).To(BeEmpty(), "running containers of pod %s", finalized)
		s.removeFinalizer(ctx, finalized)
		for _, pod := range pods {
			Expect(ctrlclient.IgnoreNotFound(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{}))).To(Succeed())
		}
		for _, pod := range pods {
			s.awaitGone(ctx, pod, deletionSlack)
		}
		if variant == Guarded {
			Expect(mustReadMetrics(ctx).ByCause(heldPods)).To(BeEmpty(), heldPods)
		}
	})
})

var _ = Describe("The kubelet's lost record of resources", Label(labelGuarded), func() {
	It("restarts no protected container whose resize policy is a restart", func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("protected", protected, withRestartingResize), s.newPod("unprotected", withRestartingResize))
		stopKubelet(ctx)
		for _, name := range []string{"allocated_pods_state", "actuated_pods_state"} {
			Expect(os.Remove(filepath.Join(provider.Node().KubeletDir(), name))).To(Succeed())
		}
		since := time.Now()
		startKubelet(ctx, unchanged)
		if semver.Compare(kubeletVersion, "v1.37") >= 0 {
			// Since 1.37 the record of a whole pod is made again.
			stayAlive(ctx, survivalPeriod, pods...)
			s.deleteExplicitly(ctx, pods...)
			return
		}
		pods[1].awaitDeath(ctx, since, killTimeout)
		s.awaitHeld(ctx, pods[0], guard.ResizeRecordLost)
		s.deleteExplicitly(ctx, pods[0])
	})
})

// withRestartingResize declares that a resize of the memory restarts the container.
func withRestartingResize(pod *corev1.Pod) {
	container := &pod.Spec.Containers[0]
	container.Resources.Requests = cpuAndMemory(10)
	container.Resources.Limits = cpuAndMemory(500)
	container.ResizePolicy = []corev1.ContainerResizePolicy{
		{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer},
		{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer},
	}
}

const debugContainer = "debug"

// debug adds an ephemeral container to a running pod and returns it when it runs.
func (s *scene) debug(ctx context.Context, pod string) *subject {
	GinkgoHelper()
	patch := fmt.Sprintf(`{"spec":{"ephemeralContainers":[{"name":%q,"image":%q,"imagePullPolicy":%q,"args":["--listen=false"]}]}}`,
		debugContainer, workloadImage, corev1.PullNever)
	_, err := client.CoreV1().Pods(s.namespace).Patch(ctx, pod, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "ephemeralcontainers")
	Expect(err).NotTo(HaveOccurred(), "add a debug container to pod %s", pod)
	return s.observe(ctx, pod, debugContainer)
}

const finalizer = "e2e.kubelet-guard.io/finalizer"

func withFinalizer(pod *corev1.Pod) { pod.Finalizers = []string{finalizer} }

// removeFinalizer lets the object of a deleted pod go.
func (s *scene) removeFinalizer(ctx context.Context, pod *subject) {
	GinkgoHelper()
	_, err := client.CoreV1().Pods(s.namespace).Patch(ctx, pod.name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	Expect(ctrlclient.IgnoreNotFound(err)).To(Succeed(), "remove the finalizer of pod %s", pod)
}

// callRuntime calls the node's container runtime past the kubelet.
func callRuntime(call func(runtimeapi.RuntimeServiceClient) error) {
	GinkgoHelper()
	connection := framework.Must(unixsocket.Client(provider.Node().RuntimeSocket()))
	defer connection.Close()
	Expect(call(runtimeapi.NewRuntimeServiceClient(connection))).To(Succeed(), "call the container runtime")
}

// containersNamed returns the runtime's IDs of a pod's containers of one name, also of
// those that have ended.
func containersNamed(ctx context.Context, pod *subject, name string) (ids []string) {
	GinkgoHelper()
	callRuntime(func(runtime runtimeapi.RuntimeServiceClient) error {
		list, err := runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
			LabelSelector: map[string]string{kubelettypes.KubernetesPodUIDLabel: string(pod.uid), kubelettypes.KubernetesContainerNameLabel: name},
		}})
		for _, container := range list.GetContainers() {
			ids = append(ids, container.Id)
		}
		return err
	})
	return ids
}

// removeContainer removes a container of a pod from the runtime, with all that is known
// of it, whether it runs or has ended.
func removeContainer(ctx context.Context, pod *subject, name string) {
	GinkgoHelper()
	ids := containersNamed(ctx, pod, name)
	Expect(ids).NotTo(BeEmpty(), "containers %s of pod %s", name, pod)
	callRuntime(func(runtime runtimeapi.RuntimeServiceClient) error {
		for _, id := range ids {
			if _, err := runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
				return err
			}
			if _, err := runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				return err
			}
		}
		return nil
	})
}

// runAnotherSandbox has the runtime run a sandbox of a pod next to the one that it has, as
// one whose records were restored may have it.
func (s *scene) runAnotherSandbox(ctx context.Context, pod *subject) {
	GinkgoHelper()
	callRuntime(func(runtime runtimeapi.RuntimeServiceClient) error {
		list, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
			LabelSelector: map[string]string{kubelettypes.KubernetesPodUIDLabel: string(pod.uid)},
		}})
		if err != nil {
			return err
		}
		Expect(list.Items).To(HaveLen(1), "sandboxes of pod %s", pod)
		first := list.Items[0]
		status, err := runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: first.Id, Verbose: true})
		if err != nil {
			return err
		}
		var info struct {
			Config *runtimeapi.PodSandboxConfig `json:"config"`
		}
		if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil {
			return err
		}
		Expect(info.Config).NotTo(BeNil(), "the configuration of sandbox %s", first.Id)
		info.Config.Metadata.Attempt++
		_, err = runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: info.Config})
		return err
	})
}

// withStartup adds a startup probe that the workload passes unless it is set to fail.
func withStartup(container *corev1.Container, port int32) {
	container.StartupProbe = &corev1.Probe{ProbeHandler: httpGet("/readyz", port), PeriodSeconds: 1, FailureThreshold: 2}
}

var _ = Describe("A vanished pod with a startup probe", Label(labelGuarded), func() {
	It("fares no worse at a kubelet restart than one with its object, and goes on being managed", func(ctx SpecContext) {
		s := newScene(ctx)
		probed := func(pod *corev1.Pod) { withStartup(&pod.Spec.Containers[0], workloadPort) }
		pods := s.run(ctx, s.newPod("present", protected, probed), s.newPod("vanished", protected, probed),
			s.newPod("sidecar", protected, withInitAndSidecar, func(pod *corev1.Pod) {
				withStartup(&pod.Spec.InitContainers[1], workloadPort+1)
			}))
		present, vanished, sidecared := pods[0], pods[1], pods[2]
		By("failing what the startup probes request, now that they have succeeded")
		for _, pod := range pods[:2] {
			framework.Must(fetch(ctx, pod, workloadPort, "/fail?on=true"))
		}
		stopKubelet(ctx)
		for _, pod := range pods[1:] {
			releaseLeft(pod)
			s.loseKey(ctx, pod)
		}
		startKubelet(ctx, unchanged)
		started := time.Now()
		s.awaitVanished(ctx, sidecared)

		By("killing the container next to the sidecar")
		Expect(syscall.Kill(sidecared.process.PID, syscall.SIGKILL)).To(Succeed())
		sidecared.awaitDeath(ctx, time.Now(), killTimeout)
		restarted := awaitRestarted(ctx, sidecared)

		By("comparing the fates of those whose probes fail")
		Eventually(func() time.Duration { return time.Since(started) }).WithContext(ctx).WithTimeout(2 * survivalPeriod).
			Should(BeNumerically(">", survivalPeriod))
		if !ended(present) {
			vanished.expectAlive(Default)
		}
		s.deleteRestored(ctx, restarted)
		s.deleteRestored(ctx, vanished)
	})
})

// deleteRestored writes a lost pod back and deletes it.
func (s *scene) deleteRestored(ctx context.Context, pod *subject) {
	GinkgoHelper()
	Expect(provider.Node().Storage().Put(ctx, podKey(pod), s.lost[pod.uid])).To(Succeed(), "write key %s", podKey(pod))
	Eventually(expectState).WithContext(ctx).WithArguments(ctx, pod, guard.Protected).WithTimeout(apiLag).
		Should(Succeed(), "the kubelet manages pod %s as before", pod)
	Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, pod.name, metav1.DeleteOptions{})).To(Succeed())
	s.awaitGone(ctx, pod, gracePeriod+deletionSlack)
}
