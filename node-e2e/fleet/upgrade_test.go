package fleet

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/mod/semver"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/build"
	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// upgradeTime covers an upgrade of the control plane, four roll-outs over two nodes, and a
// loaded machine.
const upgradeTime = 30 * time.Minute

// imageOf is the image of the installer with the guarded kubelet of a version.
func imageOf(version string) rolloutImage {
	return rolloutImage{"localhost/guard/installer:" + version, func() string { return filepath.Join(outputDir, version, "kubelet") }}
}

var _ = Describe("An upgrade of Kubernetes by a minor version", Label(labelRollout, labelLong, labelUpgrade), func() {
	It("in kubeadm's order, and a step back, ends no process of a pool that a roll-out upgrades, nor of the pool next to it", func(ctx SpecContext) {
		from, to := cluster.Version(), framework.KubeVersion
		if semver.MajorMinor(from) == semver.MajorMinor(to) {
			Skip("the cluster has " + from + ": make test-upgrade has one of the previous minor version")
		}
		blue, green := cluster.Pool(poolBlue), cluster.Pool(poolGreen)
		if len(blue) < 2 || len(green) < 1 {
			Skip(fmt.Sprintf("the cluster has no pools for it (--pools %s=2,%s=1)", poolBlue, poolGreen))
		}
		older, newer := imageOf(from), imageOf(to)
		Expect(older.load(ctx, blue)).To(Succeed())
		Expect(newer.load(ctx, blue)).To(Succeed())
		storage := framework.Must(cluster.Storage(ctx))
		prepareRollouts(ctx, poolBlue)
		s := newScene(ctx, nil)
		claim := s.provideClaim(ctx, blue[0])

		var create []*corev1.Pod
		for _, node := range slices.Concat(blue, green) {
			create = append(create, newPod("protected-"+node.Name(), protected, onNode(node)), newPod("plain-"+node.Name(), onNode(node)))
		}
		create = append(create,
			newPod("claim", protected, onNode(blue[0]), mounting(claim)),
			newPod("released", protected, onNode(blue[0])), newPod("held", protected, onNode(blue[1])),
			newPod("deleted", protected, onNode(blue[1])))
		pods := s.run(ctx, create...)
		claimed, released, held, deleted := pods[6], pods[7], pods[8], pods[9]
		processes := s.processes(ctx)
		neighbour := kubeletOf(ctx, green[0])

		// unchanged checks all that no step of the upgrade may change.
		vanished := []*subject{released, held}
		unchanged := func(version string) {
			GinkgoHelper()
			expectRunning(Default, ctx, pods...)
			Expect(s.processes(ctx)).To(Equal(processes), "the processes of the pods")
			expectRolledOut(ctx, blue, version, guard.Enforce)
			for _, pod := range vanished {
				expectVanishedHeld(ctx, pod)
			}
			for _, pod := range pods {
				if pod.node.Pool() == poolBlue && pod != released && pod != held && pod.name != "plain-"+pod.node.Name() {
					awaitGuardState(ctx, pod, guard.Protected)
				}
			}
			Expect(kubeletOf(ctx, green[0])).To(Equal(neighbour), "the kubelet of the pool next to it")
			Expect(versionOf(ctx, green[0])).To(Equal(from), "the version of that kubelet")
		}
		// remove forgets pods that were to end.
		remove := func(ended *subject) {
			pods = slices.DeleteFunc(pods, func(pod *subject) bool { return pod == ended })
			vanished = slices.DeleteFunc(vanished, func(pod *subject) bool { return pod == ended })
			processes = slices.DeleteFunc(processes, func(p process) bool { return p.pod == ended.name })
		}

		phase("roll-out of "+build.GuardedVersion(from), func() {
			asOperator(ctx, "start", "--allow-tag", "--yes", "--skip-audit", "--pool", poolOf(poolBlue), "--mode=Enforce", "--image="+older.name).ExpectDone()
			for _, pod := range vanished {
				loseKey(ctx, storage, pod)
			}
			unchanged(build.GuardedVersion(from))
		})

		phase("refusal before the control plane", func() {
			// Also with the distribution's kubelet upgraded too early.
			Expect(cluster.InstallKubelet(ctx, to, blue...)).To(Succeed())
			before := []kubeletProcess{kubeletOf(ctx, blue[0]), kubeletOf(ctx, blue[1])}
			asOperator(ctx, "start", "--allow-tag", "--yes", "--pool", poolBlue, "--image="+newer.name).
				ExpectRefused("nodes that cannot be changed: 2", "the image's kubelet is "+build.GuardedVersion(to)+", newer than the API server ("+from+"): upgrade the control plane first")
			awaitComplete(ctx, poolBlue)
			Expect(cluster.InstallKubelet(ctx, from, blue...)).To(Succeed())
			Expect([]kubeletProcess{kubeletOf(ctx, blue[0]), kubeletOf(ctx, blue[1])}).To(Equal(before), "the kubelets are not restarted")
			unchanged(build.GuardedVersion(from))
		})

		phase("upgrade of the control plane", func() {
			Expect(cluster.LoadVersion(ctx, to)).To(Succeed())
			Expect(cluster.UpgradeControlPlane(ctx, to)).To(Succeed())
			for _, workload := range []string{"daemonset/kube-proxy", "deployment/coredns"} {
				kubectl(ctx, "rollout", "status", workload, "--namespace=kube-system", "--timeout=3m")
			}
			awaitReady(ctx, cluster.Nodes()...)
			Expect(framework.Must(client.Discovery().ServerVersion()).GitVersion).To(Equal(to))
			Expect(versionOf(ctx, cluster.ControlPlane())).To(Equal(to))
			unchanged(build.GuardedVersion(from))
		})

		phase("upgrade of the pool", func() {
			Expect(cluster.UpgradeNodes(ctx, to, blue...)).To(Succeed())
			unchanged(build.GuardedVersion(from))
			asOperator(ctx, "start", "--allow-tag", "--yes", "--pool", poolBlue, "--image="+newer.name).ExpectDone()
			expectOneAfterTheOther(ctx, blue)
			unchanged(build.GuardedVersion(to))
		})

		phase("explicit deletions", func() {
			deleteExplicitly(ctx, metav1.DeleteOptions{}, deleted)
			remove(deleted)
			release(ctx, released)
			remove(released)
			unchanged(build.GuardedVersion(to))
		})

		phase("step back", func() {
			asOperator(ctx, "undo", "--pool", poolBlue, "--yes").
				ExpectRefused("the image's kubelet is "+build.GuardedVersion(from), "the node's own (/usr/bin/kubelet) is "+to+": another minor version")
			for _, node := range blue {
				Expect(versionOf(ctx, node)).To(Equal(build.GuardedVersion(to)), "the kubelet of %s", node.Name())
			}
			Expect(cluster.InstallKubelet(ctx, from, blue...)).To(Succeed())
			awaitComplete(ctx, poolBlue)
			expectOneAfterTheOther(ctx, blue)
			unchanged(build.GuardedVersion(from))
		})

		phase("explicit deletions after it", func() {
			release(ctx, held)
			remove(held)
			deleteExplicitly(ctx, metav1.DeleteOptions{}, claimed)
			remove(claimed)
			unchanged(build.GuardedVersion(from))
		})
	}, SpecTimeout(upgradeTime))
})

// phase is a step of a spec whose time is one of its figures.
func phase(title string, f func()) {
	GinkgoHelper()
	By(title)
	started := time.Now()
	f()
	found("upgrade: %s: %.0f s", title, time.Since(started).Seconds())
}

// process is that of a container of a scene.
type process struct {
	node, pod, container string
	pid                  int
}

// processes are those of the scene's containers on all nodes, by node and pod.
func (s *scene) processes(ctx context.Context) []process {
	GinkgoHelper()
	var found []process
	for _, node := range ownNodes() {
		for _, c := range framework.Must(node.Containers(ctx)) {
			if c.PodNamespace == s.namespace {
				found = append(found, process{node.Name(), c.PodName, c.ID, c.PID})
			}
		}
	}
	return found
}

// provideClaim makes a claim that is bound to a folder of a node, and returns its name.
func (s *scene) provideClaim(ctx context.Context, node *kind.Node) string {
	GinkgoHelper()
	const name, folder = "data", "/var/lib/e2e-claim"
	capacity := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	volume := framework.Must(client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: s.namespace},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: capacity, AccessModes: modes,
			ClaimRef: &corev1.ObjectReference{Namespace: s.namespace, Name: name},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: ptr.To(corev1.HostPathDirectoryOrCreate)},
			},
		},
	}, metav1.CreateOptions{}))
	DeferCleanup(func(ctx SpecContext) {
		Expect(ctrlclient.IgnoreNotFound(client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, metav1.DeleteOptions{}))).To(Succeed())
		framework.Must(node.Exec(ctx, "rm", "-rf", folder))
	}, NodeTimeout(cleanTimeout))
	framework.Must(client.CoreV1().PersistentVolumeClaims(s.namespace).Create(ctx, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To(""), AccessModes: modes, VolumeName: volume.Name,
			Resources: corev1.VolumeResourceRequirements{Requests: capacity},
		},
	}, metav1.CreateOptions{}))
	return name
}

// mounting adds a volume of a claim.
func mounting(claim string) podOption {
	return func(pod *corev1.PodTemplateSpec) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: claim, MountPath: "/" + claim})
	}
}

// loseKey removes a pod from etcd. At the end of the spec it is there again if it still runs.
func loseKey(ctx context.Context, storage testnode.Etcd, pod *subject) {
	GinkgoHelper()
	key := "/registry/pods/" + pod.namespace + "/" + pod.name
	value := framework.Must(storage.Get(ctx, key))
	DeferCleanup(func(ctx SpecContext) {
		_, err := client.CoreV1().Pods(pod.namespace).Get(ctx, pod.name, metav1.GetOptions{})
		if gone := framework.Must(ended(ctx, pod)); len(gone) == 0 && apierrors.IsNotFound(err) {
			Expect(storage.Put(ctx, key, value)).To(Succeed(), "write key %s", key)
		}
	}, NodeTimeout(cleanTimeout))
	Expect(storage.Delete(ctx, key)).To(Succeed(), "delete key %s", key)
}

// expectVanishedHeld waits until a guarded node holds a pod whose object is gone.
func expectVanishedHeld(ctx context.Context, pod *subject) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		found := framework.Try(guardPod(ctx, pod)).In(g)
		g.Expect(found).NotTo(BeNil(), "pod %s in %s", pod, guard.PodsPath)
		g.Expect(found.State).To(Equal(guard.Held), "state of pod %s: %+v", pod, found)
		g.Expect(found.ObjectPresent).To(BeFalse(), "the kubelet sees the object of pod %s", pod)
		g.Expect(framework.HeldFor(found)).To(ContainElement(guard.PodVanished), "causes of the holds of pod %s", pod)
	}).WithTimeout(killTimeout+apiLag).Should(Succeed(), "pod %s is held", pod)
}

// release releases a held pod whose object is gone, as an administrator, and waits for its
// containers to end.
func release(ctx context.Context, pod *subject) {
	GinkgoHelper()
	requested := time.Now()
	kubectl(ctx, "guard", "release", pod.name, "--namespace="+pod.namespace, "--uid="+string(pod.uid), "--yes")
	awaitEnded(ctx, requested, gracePeriod+deletionSlack, pod)
}

// awaitComplete waits until all nodes of a pool are as requested.
func awaitComplete(ctx context.Context, pool string) {
	GinkgoHelper()
	// A pool that is stopped ends the wait of the command.
	Eventually(ctx, func() error {
		return asOperator(ctx, "status", "--pool", pool, "--wait", "--timeout=1m").Err
	}).WithTimeout(rolloutTime).Should(Succeed(), "pool %s is Complete", pool)
}
