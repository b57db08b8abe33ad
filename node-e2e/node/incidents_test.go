package node

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"k8s.io/utils/ptr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// poolLabel is a node label that a pod can select by.
const poolLabel = "e2e.kubelet-guard.io/pool"

// unsafeSysctl is one that a kubelet lets pods set only where it is configured to.
const unsafeSysctl = "net.core.somaxconn"

// wrongName returns a name under which the node is not known.
func wrongName() string { return "e2e-wrong-name-" + string(variant) }

// unknownPod is what a kubelet that starts without an object of a pod attempts.
var unknownPod = []guard.Cause{guard.PodVanished}

var _ = Describe("Kubelet restart", func() {
	describeIncident(incident{
		title: "node label changed, kubelet restarted",
		before: func(ctx context.Context, _ *scene) {
			labelNode(ctx, ptr.To("a"))
			DeferCleanup(labelNode, (*string)(nil))
		},
		pod: []podOption{func(pod *corev1.Pod) { pod.Spec.NodeSelector = map[string]string{poolLabel: "a"} }},
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			labelNode(ctx, ptr.To("b"))
			restartKubelet(ctx, unchanged)
		},
		restarts: true,
		causes:   []guard.Cause{guard.AdmissionRejected},
	})

	describeIncident(incident{
		title: "systemReserved raised, too little CPU left",
		podFrom: func(ctx context.Context) []podOption {
			return []podOption{requesting(nodeMilliCPU(ctx) * 35 / 100)}
		},
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			// A quarter of the node remains: less than either pod requests.
			reserved := nodeMilliCPU(ctx) * 75 / 100
			restartLeaving(ctx, corev1.ResourceCPU, nodeMilliCPU(ctx)-reserved, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
				c.SystemReserved = map[string]string{"cpu": fmt.Sprintf("%dm", reserved)}
			}})
		},
		restarts: true,
		causes:   []guard.Cause{guard.AdmissionRejected},
	})

	describeIncident(memoryReserved())

	describeIncident(incident{
		title: "maxPods lowered",
		before: func(ctx context.Context, s *scene) {
			By("running the older pod that takes the one place")
			oldest := s.run(ctx, s.newPod("oldest"))[0]
			created := framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, oldest.name, metav1.GetOptions{}))
			// The kubelet admits by age, which the API reports in whole seconds.
			Eventually(func() time.Duration { return time.Since(created.CreationTimestamp.Time) }).
				WithContext(ctx).WithTimeout(5 * time.Second).Should(BeNumerically(">", 2*time.Second))
		},
		fault: func(ctx context.Context, s *scene, _ []*subject) {
			// The pods that came with the node are older still.
			places := int32(1 + len(s.otherPods(ctx)))
			restartLeaving(ctx, corev1.ResourcePods, int64(places), testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) { c.MaxPods = places }})
		},
		restarts: true,
		causes:   []guard.Cause{guard.AdmissionRejected},
	})

	describeIncident(incident{
		title: "unsafe sysctls no longer allowed",
		before: func(ctx context.Context, _ *scene) {
			restartKubelet(ctx, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
				c.AllowedUnsafeSysctls = []string{unsafeSysctl}
			}})
		},
		pod: []podOption{func(pod *corev1.Pod) {
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: unsafeSysctl, Value: "512"}}}
		}},
		fault:    func(ctx context.Context, _ *scene, _ []*subject) { restartKubelet(ctx, unchanged) },
		restarts: true,
		causes:   []guard.Cause{guard.AdmissionRejected},
	})

	describeIncident(incident{
		title: "false memory pressure",
		// Pods without requests would not be evicted but rejected by admission.
		pod: []podOption{requesting(10)},
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			// A node uses more than what this leaves of its memory, and the pods request
			// less.
			threshold := nodeCapacity(ctx).Memory().Value() - 80<<20
			restartKubelet(ctx, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
				c.EvictionHard = map[string]string{"memory.available": fmt.Sprint(threshold)}
			}})
		},
		restarts: true,
		within:   evictionTimeout,
		hold:     evictionHold,
		causes:   []guard.Cause{guard.Evicted},
	})

	describeIncident(incident{
		title: "phase Failed patched in, kubelet restarted",
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			stopKubelet(ctx)
			for _, pod := range pods {
				s.patchPhase(ctx, pod, corev1.PodFailed)
			}
			startKubelet(ctx, unchanged)
		},
		restarts: true,
		terminal: true,
		causes:   []guard.Cause{guard.TerminalPhaseReported},
	})

	describeIncident(incident{
		title: "forged restart condition, kubelet restart",
		since: "v1.36",
		pod:   []podOption{withRestartAllRule},
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			stopKubelet(ctx)
			for _, pod := range pods {
				s.patch(ctx, pod, fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":"True"}]}}`, corev1.AllContainersRestarting), "status")
			}
			startKubelet(ctx, unchanged)
		},
		restarts: true,
		causes:   []guard.Cause{guard.RestartReported},
	})

	describeIncident(incident{
		title: "cgroup root changed",
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			restartKubelet(ctx, testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) {
				// A folder that exists and that the kubelet does not clean up: the
				// normal root's own pod folder.
				c.CgroupRoot = path.Join(c.CgroupRoot, "kubepods")
			}})
		},
		restarts: true,
		causes:   []guard.Cause{guard.PodCgroupMissing},
	})

	describeIncident(incident{
		title: "pod cgroup lost while kubelet restarts",
		fault: func(ctx context.Context, _ *scene, pods []*subject) {
			stopKubelet(ctx)
			for _, pod := range pods {
				root, cgroup, err := podCgroup(pod.process)
				Expect(err).NotTo(HaveOccurred(), "find the cgroup of pod %s", pod)
				Expect(removeCgroup(root, cgroup)).To(Succeed(), "remove the cgroup of pod %s", pod)
			}
			startKubelet(ctx, unchanged)
		},
		restarts: true,
		causes:   []guard.Cause{guard.PodCgroupMissing},
	})

	describeIncident(incident{
		title: "containerd and kubelet restarted together",
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			stopKubelet(ctx)
			Expect(provider.Node().Runtime().Restart(ctx)).To(Succeed(), "restart the container runtime")
			startKubelet(ctx, unchanged)
		},
		restarts: true,
		survives: true,
	})

	describeIncident(incident{
		title: "API server away while kubelet restarts",
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			start := stopAPIServer(ctx)
			restartKubelet(ctx, unchanged)
			start(ctx)
		},
		controlPlane: true,
		restarts:     true,
		survives:     true,
	})

	describeIncident(incident{
		title: "node starts under a wrong name",
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			DeferCleanup(func(ctx context.Context) error {
				return ctrlclient.IgnoreNotFound(client.CoreV1().Nodes().Delete(ctx, wrongName(), metav1.DeleteOptions{}))
			})
			restartKubelet(ctx, testnode.KubeletChange{NodeName: wrongName()})
		},
		restarts: true,
		vanished: true,
		nodeName: wrongName(),
		// The restored pod is bound to the node's right name.
		causes: []guard.Cause{guard.AdmissionRejected, guard.PodVanished},
		repair: func(ctx context.Context, s *scene, pod *subject) {
			restartKubelet(ctx, unchanged)
			s.awaitKnownAgain(ctx, pod)
		},
	})

	describeIncident(incident{
		title: "key lost in etcd, kubelet down",
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			stopKubelet(ctx)
			s.loseKey(ctx, pods...)
			startKubelet(ctx, unchanged)
		},
		restarts: true,
		vanished: true,
		causes:   unknownPod,
		repair:   func(ctx context.Context, s *scene, pod *subject) { s.restoreKey(ctx, pod) },
	})

	describeIncident(emptyEtcd("etcd emptied while the kubelet is down", true))

	describeIncident(lostEtcd())
})

var _ = Describe("Live", func() {
	describeIncident(incident{
		title:    "key lost in etcd, live",
		fault:    func(ctx context.Context, s *scene, pods []*subject) { s.loseKey(ctx, pods...) },
		vanished: true,
		causes:   []guard.Cause{guard.PodVanished},
		repair:   func(ctx context.Context, s *scene, pod *subject) { s.restoreKey(ctx, pod) },
	})

	describeIncident(incident{
		title: "critical static pods need the CPU",
		podFrom: func(ctx context.Context) []podOption {
			return []podOption{requesting(nodeMilliCPU(ctx) * 25 / 100)}
		},
		// The first needs the room of one pod, the second that of the other, so that
		// the unprotected pod's fate does not depend on whether the protected one may
		// be chosen.
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			capacity := nodeMilliCPU(ctx)
			s.runCriticalStaticPod("critical-1", capacity*60/100)
			Eventually(func() bool { return ended(pods[0]) || ended(pods[1]) }).
				WithContext(ctx).WithTimeout(killTimeout).Should(BeTrue(), "the first critical pod displaces one of the pods")
			s.runCriticalStaticPod("critical-2", capacity*30/100)
		},
		gradual: true,
		causes:  []guard.Cause{guard.Preempted},
	})

	describeIncident(incident{
		title: "sandbox lost (pause process killed)",
		fault: func(ctx context.Context, _ *scene, pods []*subject) {
			for _, pod := range pods {
				Expect(pod.sandbox.Alive()).To(BeTrue(), "the sandbox of pod %s (%s) runs", pod, pod.sandbox)
				Expect(syscall.Kill(pod.sandbox.PID, syscall.SIGKILL)).To(Succeed())
			}
		},
		causes: []guard.Cause{guard.SandboxChanged},
	})

	describeIncident(incident{
		title: "activeDeadlineSeconds passes",
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			for _, pod := range pods {
				s.patch(ctx, pod, `{"spec":{"activeDeadlineSeconds":1}}`)
			}
		},
		causes: []guard.Cause{guard.ActiveDeadlineExceeded},
	})

	describeIncident(incident{
		title: "phase Failed patched in, live",
		fault: func(ctx context.Context, s *scene, pods []*subject) {
			for _, pod := range pods {
				s.patchPhase(ctx, pod, corev1.PodFailed)
			}
			// The kubelet writes its own status back.
			for _, pod := range pods {
				Eventually(s.expectReady).WithContext(ctx).WithArguments(ctx, pod.name, pod.uid).WithTimeout(apiLag).
					Should(Succeed(), "the kubelet corrects the phase of pod %s", pod)
			}
		},
		survives: true,
		terminal: true,
		causes:   []guard.Cause{guard.TerminalPhaseReported},
	})

	describeIncident(emptyEtcd("etcd replaced by an empty one, live", false))
})

// emptyEtcd is the loss of the whole storage. A running stock kubelet does not
// notice: its watch stays silent. One that starts again finds no pods.
func emptyEtcd(title string, restart bool) incident {
	var snapshot string
	return incident{
		title: title,
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			snapshot = filepath.Join(GinkgoT().TempDir(), "etcd.snapshot")
			Expect(provider.Node().Storage().Snapshot(ctx, snapshot)).To(Succeed(), "save the storage")
			DeferCleanup(func(ctx context.Context) {
				if snapshot != "" {
					restoreStorage(ctx, snapshot)
				}
			})
			if restart {
				// A running kubelet would hold the pod already, and the one after it again.
				stopKubelet(ctx)
			}
			Expect(provider.Node().Storage().Wipe(ctx)).To(Succeed(), "replace the storage by an empty one")
			if restart {
				startKubelet(ctx, unchanged)
			}
		},
		controlPlane: true,
		restarts:     restart,
		survives:     !restart,
		vanished:     true,
		unregistered: !restart,
		causes:       unknownPod,
		repair: func(ctx context.Context, s *scene, pod *subject) {
			restoreStorage(ctx, snapshot)
			snapshot = ""
			pod.expectAlive(Default)
			s.awaitServing(ctx, pod.name, pod.uid)
		},
	}
}

// lostEtcd is the loss of the whole storage without a backup: the pod's object comes back from its
// node.
func lostEtcd() incident {
	var snapshot *storageSnapshot
	return incident{
		title: "etcd lost, restored from the nodes",
		// For the specs after this one.
		before: func(ctx context.Context, _ *scene) { snapshot = saveStorage(ctx) },
		fault: func(ctx context.Context, _ *scene, _ []*subject) {
			stopKubelet(ctx)
			snapshot.empty(ctx)
			startKubelet(ctx, unchanged)
		},
		controlPlane: true,
		restarts:     true,
		vanished:     true,
		causes:       unknownPod,
		repair: func(ctx context.Context, s *scene, pod *subject) {
			s.createNamespace(ctx)
			Expect(guardEtcd(ctx, "pods", "--apply")).To(ContainSubstring("Read through the API with their UIDs: 1 of 1"))
			s.awaitManaged(ctx, pod)
			expectState(Default, ctx, pod, guard.Protected)
		},
	}
}

// restoreStorage brings a snapshot back, and the kubelet in step with it: its
// watches belong to the storage that was replaced.
func restoreStorage(ctx context.Context, snapshot string) {
	GinkgoHelper()
	Expect(provider.Node().Storage().Restore(ctx, snapshot)).To(Succeed(), "restore the storage")
	normalKubelet(ctx)
}

// withRestartAllRule declares that all containers of the pod restart when this one exits
// with a certain code.
func withRestartAllRule(pod *corev1.Pod) {
	container := &pod.Spec.Containers[0]
	container.RestartPolicy = ptr.To(corev1.ContainerRestartPolicyAlways)
	container.RestartPolicyRules = []corev1.ContainerRestartRule{{
		Action:    corev1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
}

// labelNode sets the pool label of the node; nil removes it.
func labelNode(ctx context.Context, pool *string) {
	GinkgoHelper()
	value := "null"
	if pool != nil {
		value = fmt.Sprintf("%q", *pool)
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, poolLabel, value)
	framework.Must(client.CoreV1().Nodes().Patch(ctx, provider.Node().Name(), types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
}

// patch changes a pod through the API.
func (s *scene) patch(ctx context.Context, pod *subject, patch string, subresources ...string) {
	GinkgoHelper()
	framework.Must(client.CoreV1().Pods(s.namespace).Patch(ctx, pod.name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...))
}

func (s *scene) patchPhase(ctx context.Context, pod *subject, phase corev1.PodPhase) {
	GinkgoHelper()
	s.patch(ctx, pod, fmt.Sprintf(`{"status":{"phase":%q}}`, phase), "status")
}

func podKey(pod *subject) string { return path.Join("/registry/pods", pod.namespace, pod.name) }

// loseKey removes pods from etcd behind the API server's back and remembers what
// was there. A pod that still runs at the spec's end gets it back, so that it can
// be deleted.
func (s *scene) loseKey(ctx context.Context, pods ...*subject) {
	GinkgoHelper()
	storage := provider.Node().Storage()
	for _, pod := range pods {
		value := framework.Must(storage.Get(ctx, podKey(pod)))
		DeferCleanup(func(ctx context.Context) error {
			_, err := client.CoreV1().Pods(pod.namespace).Get(ctx, pod.name, metav1.GetOptions{})
			if !apierrors.IsNotFound(err) {
				return nil
			}
			running, err := containersOf(ctx, pod.uid)
			if err != nil || len(running) == 0 {
				return err
			}
			return storage.Put(ctx, podKey(pod), value)
		})
		Expect(storage.Delete(ctx, podKey(pod))).To(Succeed(), "delete key %s", podKey(pod))
		s.lost[pod.uid] = value
	}
}

// restoreKey writes lost pods back, as an operator does with a backup.
func (s *scene) restoreKey(ctx context.Context, pods ...*subject) {
	GinkgoHelper()
	for _, pod := range pods {
		Expect(provider.Node().Storage().Put(ctx, podKey(pod), s.lost[pod.uid])).To(Succeed(), "write key %s", podKey(pod))
		s.awaitKnownAgain(ctx, pod)
	}
}

// awaitKnownAgain waits until the kubelet knows that a held pod's object is there
// again and manages it as before.
func (s *scene) awaitKnownAgain(ctx context.Context, pod *subject) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		pod.expectAlive(g)
		found := expectKnown(g, ctx, pod)
		g.Expect(found.ObjectPresent).To(BeTrue(), "the kubelet sees the object of pod %s", pod)
		for _, hold := range found.Holds {
			g.Expect(hold.Cause).NotTo(BeElementOf(guard.PodVanished, guard.OrphanedRuntimePod), "cause of a hold of pod %s", pod)
		}
		s.expectServing(g, ctx, pod.name, pod.uid)
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the kubelet manages pod %s as before", pod)
}

// runCriticalStaticPod puts a static pod of the highest priority on the node.
func (s *scene) runCriticalStaticPod(name string, milliCPU int64) {
	GinkgoHelper()
	pod := s.newPod(name, requesting(milliCPU), func(pod *corev1.Pod) {
		pod.Spec.NodeName = ""
		pod.Spec.PriorityClassName = "system-node-critical"
		// The API server resolves class names; static pods do not pass through it.
		pod.Spec.Priority = ptr.To[int32](2000001000)
	})
	s.runStaticPod(pod)
}

// runStaticPod hands a pod to the kubelet as a file, which the spec's end removes.
func (s *scene) runStaticPod(pod *corev1.Pod) {
	GinkgoHelper()
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	manifest := framework.Must(yaml.Marshal(pod))
	file := s.namespace + "-" + pod.Name
	DeferCleanup(s.removeStaticPod, file, pod.Name, NodeTimeout(time.Minute))
	// The kubelet ignores names that start with a dot, so it never reads half a manifest.
	partial := filepath.Join(provider.Node().StaticPodDir(), "."+file)
	Expect(os.WriteFile(partial, manifest, 0o600)).To(Succeed(), "write the manifest of static pod %s", pod.Name)
	Expect(os.Rename(partial, staticPodFile(file))).To(Succeed())
}

func staticPodFile(name string) string {
	return filepath.Join(provider.Node().StaticPodDir(), name+".yaml")
}

// removeStaticPod removes a static pod's file and waits until the kubelet has
// removed the pod.
func (s *scene) removeStaticPod(ctx SpecContext, file, pod string) {
	GinkgoHelper()
	Expect(os.Remove(staticPodFile(file))).To(Or(Succeed(), MatchError(fs.ErrNotExist)), "remove the manifest of static pod %s", pod)
	mirror := pod + "-" + provider.Node().Name()
	Eventually(func(g Gomega) {
		_, err := client.CoreV1().Pods(s.namespace).Get(ctx, mirror, metav1.GetOptions{})
		g.Expect(apierrors.IsNotFound(err)).To(BeTrue(), "mirror pod %s: %v", mirror, err)
		for _, c := range framework.Try(provider.Node().Runtime().Containers(ctx)).In(g) {
			g.Expect(c.PodName).NotTo(Equal(mirror), "container %s of static pod %s still runs", c.Name, pod)
		}
	}).WithContext(ctx).WithTimeout(killTimeout).Should(Succeed(), "static pod %s is gone", pod)
}

// otherPods returns the node's pods that are not the scene's and have not ended.
func (s *scene) otherPods(ctx context.Context) []corev1.Pod {
	GinkgoHelper()
	pods := framework.Must(client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + provider.Node().Name()}))
	var others []corev1.Pod
	for _, pod := range pods.Items {
		if pod.Namespace != s.namespace && pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded {
			others = append(others, pod)
		}
	}
	return others
}

func ended(pod *subject) bool {
	_, dead := pod.death.seen()
	return dead
}
