package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// Other names of the workload's image. The runtime's status of a container names the
// first of them, whatever name the pod has.
var (
	earlierTag = workloadRepository + ":a"
	laterTag   = workloadRepository + ":z"
	// shortTag is a name that the runtime writes in full.
	shortTag = "e2e-workload:1"
)

// errImageNeverPull is the kubelet's reason for a container whose image is not there and
// must not be pulled.
const errImageNeverPull = "ErrImageNeverPull"

const workloadRepository = "localhost/guard/workload"

func withImage(image string) podOption {
	return func(pod *corev1.Pod) {
		for i := range pod.Spec.Containers {
			pod.Spec.Containers[i].Image = image
		}
	}
}

// tagWorkload gives the workload's image one more name, until the spec ends.
func tagWorkload(ctx context.Context, name string) {
	GinkgoHelper()
	runtime := provider.Node().Runtime()
	Expect(runtime.Tag(ctx, workloadImage, name)).To(Succeed(), "give image %s the name %s", workloadImage, name)
	DeferCleanup(runtime.Untag, name)
}

var _ = Describe("Kubelet restart", func() {
	describeIncident(incident{
		title:  "container hash damaged, image has two tags",
		before: func(ctx context.Context, _ *scene) { tagWorkload(ctx, earlierTag) },
		fault: func(ctx context.Context, _ *scene, pods []*subject) {
			stopKubelet(ctx)
			damageHashes(ctx, pods...)
			startKubelet(ctx, unchanged)
		},
		restarts: true,
		causes:   []guard.Cause{guard.ContainerHashChanged},
	})
})

var _ = Describe("Damaged records of the runtime", func() {
	It("cost no protected pod its containers, by whatever name it has its image", Label(labelGuarded), func(ctx SpecContext) {
		s := newScene(ctx)
		byDigest := workloadRepository + "@" + framework.Must(provider.Node().Runtime().Digest(ctx, workloadImage))
		for _, name := range []string{earlierTag, laterTag, byDigest, "docker.io/library/" + shortTag} {
			tagWorkload(ctx, name)
		}
		pods := s.run(ctx,
			s.newPod("later-tag", protected, withImage(laterTag)),
			s.newPod("digest", protected, withImage(byDigest)),
			s.newPod("short", protected, withImage(shortTag)))
		stopKubelet(ctx)
		damageHashes(ctx, pods...)
		startKubelet(ctx, unchanged)
		for _, pod := range pods {
			s.awaitHeld(ctx, pod, guard.ContainerHashChanged)
		}
		s.deleteExplicitly(ctx, pods...)
	})

	It("keep no container from a restart that its author asks for by another tag of the same image", Label(labelTransparency), func(ctx SpecContext) {
		s := newScene(ctx)
		tagWorkload(ctx, earlierTag)
		pods := s.run(ctx, s.newPod("protected", protected), s.newPod("unprotected"))
		var before map[guard.Cause]int
		if variant == Guarded {
			before = mustReadMetrics(ctx).ByCause(refusedKills)
		}
		requested := time.Now()
		for _, pod := range pods {
			s.patch(ctx, pod, `{"spec":{"containers":[{"name":"`+workloadContainer+`","image":"`+earlierTag+`"}]}}`)
		}
		for _, pod := range pods {
			pod.awaitDeath(ctx, requested, killTimeout)
		}
		for _, pod := range pods {
			restarted := awaitRestarted(ctx, pod)
			s.awaitServing(ctx, pod.name, pod.uid)
			restarted.expectAlive(Default)
		}
		if variant == Guarded {
			expectState(Default, ctx, pods[0], guard.Protected)
			Expect(increase(before, mustReadMetrics(ctx).ByCause(refusedKills))).To(BeEmpty(), "increase of %s", refusedKills)
		}
	})

	It("cost no protected pod its container when its image is gone, too, and its next start waits for the image as with the stock kubelet", Label(labelTransparency, labelOwnMachine), func(ctx SpecContext) {
		s := newScene(ctx)
		pods := s.run(ctx, s.newPod("protected", protected), s.newPod("unprotected"))
		restore := removeImage(ctx, workloadImage)
		if variant == Guarded {
			stopKubelet(ctx)
			damageHashes(ctx, pods[0])
			startKubelet(ctx, unchanged)
			s.awaitHeld(ctx, pods[0], guard.ContainerHashChanged)
		} else {
			restartKubelet(ctx, unchanged)
		}
		stayAlive(ctx, holdPeriod, pods...)
		By("ending the containers")
		for _, pod := range pods {
			s.exit(ctx, pod.name, 1)
			pod.awaitDeath(ctx, time.Now(), killTimeout)
		}
		for _, pod := range pods {
			s.awaitWaiting(ctx, pod, errImageNeverPull)
		}
		By("bringing the image back")
		restore(ctx)
		for _, pod := range pods {
			restarted := awaitRestarted(ctx, pod)
			s.awaitServing(ctx, pod.name, pod.uid)
			s.deleteExplicitly(ctx, restarted)
		}
	})

	It("whose container runs cost no protected pod its life, and those whose container is dead are no obstacle", func(ctx SpecContext) {
		s := newScene(ctx)
		By("running pods whose init container runs, and pods whose container will be dead")
		for _, name := range []string{"init-protected", "init-unprotected"} {
			options := []podOption{restartPolicy(corev1.RestartPolicyNever), withRunningInit}
			if name == "init-protected" {
				options = append(options, protected)
			}
			s.create(ctx, s.newPod(name, options...))
		}
		dead := s.run(ctx, s.newPod("dead-protected", protected), s.newPod("dead-unprotected"),
			s.newPod("dead-next-to-sidecar", protected, withInitAndSidecar))
		kept, lost := s.observe(ctx, "init-protected", initContainer), s.observe(ctx, "init-unprotected", initContainer)

		By("losing what the runtime knows about the containers' states")
		stopKubelet(ctx)
		ids := []string{containerID(ctx, kept, initContainer), containerID(ctx, lost, initContainer)}
		for _, pod := range dead {
			id := containerID(ctx, pod, workloadContainer)
			Expect(syscall.Kill(pod.process.PID, syscall.SIGKILL)).To(Succeed())
			awaitEnded(ctx, pod, workloadContainer)
			ids = append(ids, id)
		}
		loseStates(ctx, ids...)
		since := time.Now()
		startKubelet(ctx, unchanged)
		lost.awaitDeath(ctx, since, killTimeout)
		if variant == Stock {
			kept.awaitDeath(ctx, since, killTimeout)
		} else {
			s.awaitHeld(ctx, kept, guard.ContainerStateUnknown)
		}
		for _, pod := range dead {
			awaitRestarted(ctx, pod)
			s.awaitServing(ctx, pod.name, pod.uid)
		}
		if variant == Stock {
			return
		}
		for _, pod := range []*subject{dead[0], dead[2]} {
			expectState(Default, ctx, pod, guard.Protected)
		}
		Consistently(func(g Gomega) {
			kept.expectAlive(g)
			object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, kept.name, metav1.GetOptions{})).In(g)
			g.Expect(object.Status.Phase).To(Equal(corev1.PodPending), "phase of pod %s", kept)
		}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed(), "pod %s is kept and shown as what it is", kept)
		s.deleteExplicitly(ctx, kept)
	})
})

// removeImage removes an image from the runtime; the returned function, or the spec's
// end, brings it back.
func removeImage(ctx context.Context, image string) (restore func(context.Context)) {
	GinkgoHelper()
	back, err := provider.Node().Runtime().RemoveImage(ctx, image)
	gone := true
	restore = func(ctx context.Context) {
		if gone && back != nil {
			Expect(back(ctx)).To(Succeed(), "bring image %s back", image)
			gone = false
		}
	}
	DeferCleanup(restore)
	Expect(err).NotTo(HaveOccurred(), "remove image %s", image)
	return restore
}

// awaitWaiting waits until the API shows why a pod's container does not start.
func (s *scene) awaitWaiting(ctx context.Context, pod *subject, reason string) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		object := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{})).In(g)
		g.Expect(object.Status.ContainerStatuses).To(HaveLen(1), "container statuses of pod %s", pod)
		waiting := object.Status.ContainerStatuses[0].State.Waiting
		g.Expect(waiting).NotTo(BeNil(), "state of the container of pod %s: %v", pod, object.Status.ContainerStatuses[0].State)
		g.Expect(waiting.Reason).To(Equal(reason), "why the container of pod %s waits: %s", pod, waiting.Message)
	}).WithContext(ctx).WithTimeout(restartTimeout).Should(Succeed())
}

const initContainer = "init"

// withRunningInit adds an init container that never ends.
func withRunningInit(pod *corev1.Pod) {
	init := newContainer(initContainer, workloadPort+1)
	init.ReadinessProbe = nil
	pod.Spec.InitContainers = []corev1.Container{init}
}

// awaitEnded waits until the runtime, too, knows that a container has ended.
func awaitEnded(ctx context.Context, pod *subject, container string) {
	GinkgoHelper()
	Eventually(containersOf).WithContext(ctx).WithArguments(ctx, pod.uid).WithTimeout(killTimeout).
		ShouldNot(HaveKey(container), "running containers of pod %s", pod)
}

// loseStates makes the runtime forget the states of containers. It finds out again
// which of them run, but says of all that their state is unknown.
func loseStates(ctx context.Context, ids ...string) {
	GinkgoHelper()
	editRuntime(ctx, func() {
		for _, id := range ids {
			status := filepath.Join(provider.Node().Runtime().Dir(), "io.containerd.grpc.v1.cri", "containers", id, "status")
			Expect(os.Truncate(status, 0)).To(Succeed(), "lose the state of container %s", id)
		}
	})
}

// containerID returns the runtime's name for a running container of a pod.
func containerID(ctx context.Context, pod *subject, container string) string {
	GinkgoHelper()
	running := framework.Must(containersOf(ctx, pod.uid))
	Expect(running).To(HaveKey(container), "running containers of pod %s", pod)
	return running[container].ID
}

// editRuntime changes files of the runtime while it is stopped. Containers run on, but
// nobody can request them.
func editRuntime(ctx context.Context, edit func()) {
	GinkgoHelper()
	runtime := provider.Node().Runtime()
	stopped := true
	defer func() {
		if stopped {
			Expect(runtime.Start(ctx)).To(Succeed(), "start the container runtime")
		}
	}()
	Expect(runtime.Stop(ctx)).To(Succeed(), "stop the container runtime")
	edit()
	stopped = false
	Expect(runtime.Start(ctx)).To(Succeed(), "start the container runtime")
}

// damageHashes changes what the runtime has recorded of the hashes of the pods'
// workload containers, as if a kubelet had made them that hashes in another way.
func damageHashes(ctx context.Context, pods ...*subject) {
	GinkgoHelper()
	ids := make([]string, len(pods))
	for i, pod := range pods {
		ids[i] = containerID(ctx, pod, workloadContainer)
	}
	editRuntime(ctx, func() {
		file := filepath.Join(provider.Node().Runtime().Dir(), "io.containerd.metadata.v1.bolt", "meta.db")
		content := framework.Must(os.ReadFile(file))
		for i, id := range ids {
			Expect(damageHash(content, id)).To(BeNumerically(">", 0), "records of the hash of pod %s in %s", pods[i], file)
		}
		Expect(os.WriteFile(file, content, 0o600)).To(Succeed(), "write the runtime's records")
	})
}

// damageHash changes one digit of a container's hash in the runtime's records, and
// returns in how many places. The records of a container are JSON on consecutive pages
// of the file, which have no checksums; an older record of the same container may be on
// pages that are free.
func damageHash(records []byte, id string) (places int) {
	const hash = `"io.kubernetes.container.hash":"`
	start := []byte(`"Metadata":{"ID":"`)
	head := append(bytes.Clone(start), id...)
	for at := 0; ; {
		next := bytes.Index(records[at:], head)
		if next < 0 {
			return places
		}
		at += next + len(head)
		record := records[at:]
		if end := bytes.Index(record, start); end >= 0 {
			record = record[:end]
		}
		value := bytes.Index(record, []byte(hash))
		if value < 0 {
			continue
		}
		digit := value + len(hash)
		digit += bytes.IndexByte(record[digit:], '"') - 1
		if record[digit] == '0' {
			record[digit] = '1'
		} else {
			record[digit] = '0'
		}
		places++
	}
}
