package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// garbageCollection is how soon the garbage collector deletes an object whose owners are all
	// gone, on a loaded machine; four seconds were measured.
	garbageCollection = time.Minute
	// garbagePatience is how long a restored pod is watched that it must not delete.
	garbagePatience = 20 * time.Second
)

var _ = Describe("guard-etcd pods restores what the node holds", Label(labelGuarded, labelControlPlane), func() {
	It("after the restore of a snapshot that is older than 20 pods", func(ctx SpecContext) {
		s := newScene(ctx)
		snapshot := saveStorage(ctx)
		s.agesStorage(ctx)
		web := s.deployment("web", 20)
		pods := s.apply(ctx, 20, web)

		snapshot.restore(ctx)
		s.awaitVanished(ctx, pods...)
		Expect(guardEtcd(ctx, "pods")).To(ContainSubstring("Plan: 20 created, 0 replaced, 0 present, 0 left out, 0 refused"))
		started := time.Now()
		output := guardEtcd(ctx, "pods", "--apply")
		Expect(output).To(And(ContainSubstring("Read through the API with their UIDs: 20 of 20"), ContainSubstring("Deployment "+s.namespace+"/web (pods: 20)")))
		framework.Progress("20 pods restored from their node in %.1f s", time.Since(started).Seconds())
		Expect(guardEtcd(ctx, "pods", "--apply")).To(ContainSubstring("Nothing to write"), "a second run")
		for _, pod := range pods {
			s.awaitManaged(ctx, pod)
		}
		s.adopt(ctx, pods, web)
	})

	It("into an empty etcd, with claims and volumes, so that kubectl apply restarts nothing", func(ctx SpecContext) {
		s := newScene(ctx)
		snapshot := saveStorage(ctx)
		web, db := s.deployment("web", 3), s.statefulSet("db", 2)
		s.createVolumes(ctx, 2)
		pods := s.apply(ctx, 5, web, db)
		bound := s.claims(ctx)
		Expect(bound).To(HaveLen(2))

		snapshot.empty(ctx)
		s.awaitVanished(ctx, pods...)
		By("inspecting what a node holds that has no Node")
		Expect(guardEtcdFails(ctx, "pods")).To(ContainSubstring("restart the kubelets"), "a running kubelet does not create its Node again")
		local := provider.Node().(localNode)
		Expect(guardEtcd(ctx, "pods", "--node="+local.Name()+"="+local.NodeIP(), "-o=wide")).To(And(
			ContainSubstring("0 created, 0 replaced, 0 present, 5 left out"), ContainSubstring("its namespace is not there")))
		restartKubelet(ctx, unchanged)
		Eventually(func() error {
			_, err := client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{})
			return err
		}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the restarted kubelet registers its node")
		s.awaitVanished(ctx, pods...)
		s.createNamespace(ctx)

		By("restoring the pods")
		Eventually(func() (string, error) { return runGuardEtcd(ctx, "pods") }).WithContext(ctx).WithTimeout(apiLag).
			Should(ContainSubstring("Plan: 9 created"), "5 pods, 2 claims, 2 volumes, when the node has no taint any more")
		Expect(guardEtcd(ctx, "pods", "--apply")).To(ContainSubstring("Read through the API with their UIDs: 9 of 9"))
		for _, pod := range pods {
			s.awaitManaged(ctx, pod)
		}
		s.adopt(ctx, pods, web, db)
		Expect(s.claims(ctx)).To(Equal(bound), "UIDs of the claims, and their volumes")
		s.expectBound(ctx)
	})

	It("and the garbage collector deletes none of it, although its owners are gone", func(ctx SpecContext) {
		s := newScene(ctx)
		snapshot := saveStorage(ctx)
		s.agesStorage(ctx)
		web := s.deployment("web", 4)
		pods := s.apply(ctx, 4, web)
		naive, ours := pods[:2], pods[2:]
		values := map[types.UID][]byte{}
		for _, pod := range naive {
			values[pod.uid] = framework.Must(provider.Node().Storage().Get(ctx, podKey(pod)))
		}
		snapshot.restore(ctx)
		s.awaitVanished(ctx, pods...)

		By("writing two pods as they were, as a copy of etcd's keys does: with their owner")
		started := time.Now()
		for _, pod := range naive {
			Expect(provider.Node().Storage().Put(ctx, podKey(pod), values[pod.uid])).To(Succeed())
		}
		for _, pod := range naive {
			pod.awaitDeath(ctx, started, garbageCollection+gracePeriod)
		}
		framework.Progress("two pods that were written with their owner were deleted and dead after %.1f s", time.Since(started).Seconds())

		By("writing two pods by guard-etcd")
		Expect(guardEtcd(ctx, "pods", "--apply")).To(ContainSubstring("Read through the API with their UIDs: 2 of 2"))
		stayAlive(ctx, garbagePatience, ours...)
		for _, pod := range ours {
			s.awaitManaged(ctx, pod)
			object := framework.Must(client.CoreV1().Pods(s.namespace).Get(ctx, pod.name, metav1.GetOptions{}))
			Expect(object.OwnerReferences).To(BeEmpty())
			Expect(object.Annotations).To(HaveKeyWithValue(guardv1alpha1.LostOwnerAnnotation, HavePrefix("ReplicaSet/web-")))
		}
		s.deleteExplicitly(ctx, ours...)
	})
})

// agesStorage raises the revision, so that the kubelet notices the restore of a snapshot: a backup
// is older than what a starting control plane writes in a moment.
func (s *scene) agesStorage(ctx context.Context) {
	GinkgoHelper()
	for range revisionsSince {
		Expect(provider.Node().Storage().Put(ctx, "/e2e/age", []byte("1"))).To(Succeed(), "raise the revision of the storage")
	}
}

// template of the pods of a workload.
func (s *scene) template(app string, options ...podOption) corev1.PodTemplateSpec {
	pod := s.newPod("", append([]podOption{protected}, options...)...)
	pod.Labels["workload"] = app
	pod.Spec.NodeName = ""
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec}
}

func (s *scene) deployment(name string, replicas int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"workload": name}}, Template: s.template(name),
		},
	}
}

// statefulSet has a claim for each pod, of the scene's own class of volumes.
func (s *scene) statefulSet(name string, replicas int32) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: "pods", PodManagementPolicy: appsv1.ParallelPodManagement,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"workload": name}},
			Template: s.template(name, func(pod *corev1.Pod) {
				pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
			}),
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
				ObjectMeta: metav1.ObjectMeta{Name: "data"},
				Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: ptr.To(s.namespace), Resources: storageOf("1Mi"),
				},
			}},
		},
	}
}

func storageOf(size string) corev1.VolumeResourceRequirements {
	return corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}
}

func (s *scene) createVolumes(ctx context.Context, n int) {
	GinkgoHelper()
	for i := range n {
		name := fmt.Sprintf("%s-%d", s.namespace, i)
		framework.Must(client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PersistentVolumeSpec{
				Capacity: storageOf("1Mi").Requests, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: s.namespace,
				PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
				PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{
					Path: "/var/lib/kubelet/" + name, Type: ptr.To(corev1.HostPathDirectoryOrCreate),
				}},
			},
		}, metav1.CreateOptions{}))
		DeferCleanup(func(ctx context.Context) error {
			return os.RemoveAll(filepath.Join(provider.Node().KubeletDir(), name))
		})
	}
}

// claims returns the UID and the volume of each claim.
func (s *scene) claims(ctx context.Context) map[string]string {
	GinkgoHelper()
	found := map[string]string{}
	for _, claim := range framework.Must(client.CoreV1().PersistentVolumeClaims(s.namespace).List(ctx, metav1.ListOptions{})).Items {
		found[claim.Name] = string(claim.UID) + " on " + claim.Spec.VolumeName
	}
	return found
}

// expectBound checks that the controller of volumes has the claims and the volumes as bound.
func (s *scene) expectBound(ctx context.Context) {
	GinkgoHelper()
	Consistently(func(g Gomega) {
		for _, claim := range framework.Try(client.CoreV1().PersistentVolumeClaims(s.namespace).List(ctx, metav1.ListOptions{})).In(g).Items {
			g.Expect(claim.Status.Phase).To(Equal(corev1.ClaimBound), "claim %s", claim.Name)
			volume := framework.Try(client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})).In(g)
			g.Expect(volume.Status.Phase).To(Equal(corev1.VolumeBound), "volume %s", volume.Name)
			g.Expect(volume.Spec.ClaimRef.UID).To(Equal(claim.UID), "volume %s", volume.Name)
		}
	}).WithContext(ctx).WithTimeout(holdPeriod).Should(Succeed())
}

// apply applies manifests as a person does, and returns their pods when each serves. The spec's
// end deletes the workloads.
func (s *scene) apply(ctx context.Context, pods int, workloads ...runtime.Object) []*subject {
	GinkgoHelper()
	DeferCleanup(s.deleteWorkloads)
	s.kubectlApply(ctx, workloads...)
	var created []corev1.Pod
	Eventually(func(g Gomega) {
		created = framework.Try(client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})).In(g).Items
		g.Expect(created).To(HaveLen(pods))
		for i := range created {
			s.expectReady(g, ctx, created[i].Name, created[i].UID)
		}
	}).WithContext(ctx).WithTimeout(2*podStart).Should(Succeed(), "%d pods run", pods)
	subjects := make([]*subject, 0, pods)
	for i := range created {
		subjects = append(subjects, s.observe(ctx, created[i].Name, workloadContainer))
	}
	releaseLeft(subjects...)
	return subjects
}

func (s *scene) kubectlApply(ctx context.Context, objects ...runtime.Object) {
	GinkgoHelper()
	var documents []string
	for _, o := range objects {
		documents = append(documents, string(framework.Must(yaml.Marshal(o))))
	}
	file := filepath.Join(GinkgoT().TempDir(), "manifests.yaml")
	Expect(os.WriteFile(file, []byte(strings.Join(documents, "---\n")), 0o600)).To(Succeed())
	kubectl(ctx, "apply", "-f", file)
}

// deleteWorkloads keeps controllers from creating pods while the scene is removed.
func (s *scene) deleteWorkloads(ctx context.Context) error {
	background := metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}
	if err := client.AppsV1().Deployments(s.namespace).DeleteCollection(ctx, background, metav1.ListOptions{}); err != nil {
		return err
	}
	return client.AppsV1().StatefulSets(s.namespace).DeleteCollection(ctx, background, metav1.ListOptions{})
}

// createNamespace creates the scene's namespace in a storage that has lost it.
func (s *scene) createNamespace(ctx context.Context) {
	GinkgoHelper()
	framework.Must(client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}, metav1.CreateOptions{}))
}

// awaitManaged waits until the kubelet manages a restored pod as before, and has written its
// status.
func (s *scene) awaitManaged(ctx context.Context, pod *subject) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		pod.expectAlive(g)
		g.Expect(expectKnown(g, ctx, pod).ObjectPresent).To(BeTrue(), "the kubelet sees the object of pod %s", pod)
		s.expectReady(g, ctx, pod.name, pod.uid)
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the kubelet manages pod %s as before", pod)
}

// adopt applies the workloads of restored pods again, and checks that these are adopted, that no
// pod is new and none restarted. Then it deletes the workloads, which ends the pods.
func (s *scene) adopt(ctx context.Context, pods []*subject, workloads ...runtime.Object) {
	GinkgoHelper()
	before := map[types.UID]bool{}
	for _, pod := range pods {
		before[pod.uid] = true
	}
	started := time.Now()
	s.kubectlApply(ctx, workloads...)
	summary := fmt.Sprintf("Restored pods that had lost their owners: %d. Adopted by controllers: %d. New pods: 0. Deleted: 0.", len(pods), len(pods))
	Expect(guardEtcd(ctx, "pods", "--wait", "--wait-timeout=1m")).To(ContainSubstring(summary))
	stayAlive(ctx, holdPeriod, pods...)
	restarts := int32(0)
	for _, pod := range framework.Must(client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})).Items {
		Expect(before).To(HaveKey(pod.UID), "pod %s is new", pod.Name)
		delete(before, pod.UID)
		Expect(metav1.GetControllerOf(&pod)).NotTo(BeNil(), "the controller of pod %s", pod.Name)
		for _, container := range pod.Status.ContainerStatuses {
			restarts += container.RestartCount
		}
	}
	Expect(before).To(BeEmpty(), "pods that are gone")
	Expect(restarts).To(BeZero(), "restarts")
	framework.Progress("%d of %d pods adopted, 0 new, 0 restarts, %.1f s after kubectl apply", len(pods), len(pods), time.Since(started).Seconds())
	By("deleting the workloads")
	requested := time.Now()
	Expect(s.deleteWorkloads(ctx)).To(Succeed())
	for _, pod := range pods {
		pod.awaitHonoured(ctx, requested, garbageCollection+gracePeriod)
		s.awaitGone(ctx, pod, deletionSlack)
	}
}

// guardEtcd runs guard-etcd with the connections of the cluster's API server, and returns what it
// printed.
func guardEtcd(ctx context.Context, args ...string) string {
	GinkgoHelper()
	return framework.Must(runGuardEtcd(ctx, args...))
}

// guardEtcdFails is guardEtcd for a run that is refused; it returns the error.
func guardEtcdFails(ctx context.Context, args ...string) string {
	GinkgoHelper()
	_, err := runGuardEtcd(ctx, args...)
	Expect(err).To(HaveOccurred(), "guard-etcd %s", strings.Join(args, " "))
	return err.Error()
}

func runGuardEtcd(ctx context.Context, args ...string) (string, error) {
	etcd := provider.Node().Storage().(*embedded.Etcd)
	pki := filepath.Dir(etcd.TLS.CertFile)
	arguments := append([]string{
		args[0], "--kubeconfig=" + provider.Kubeconfig(), "--etcd-servers=" + etcd.Endpoint,
		"--etcd-cafile=" + etcd.TLS.CAFile, "--etcd-certfile=" + etcd.TLS.CertFile, "--etcd-keyfile=" + etcd.TLS.KeyFile,
		"--kubelet-certificate-authority=" + filepath.Join(pki, "ca.crt"),
		"--kubelet-client-certificate=" + filepath.Join(pki, "apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + filepath.Join(pki, "apiserver-kubelet-client.key"),
		"--journal-dir=" + GinkgoT().TempDir(),
	}, args[1:]...)
	command := exec.CommandContext(ctx, filepath.Join(outputDir, "bin", "guard-etcd"), arguments...)
	var errOut strings.Builder
	command.Stderr = &errOut
	output, err := command.Output()
	GinkgoWriter.Printf("guard-etcd %s\n%s%s\n", strings.Join(args, " "), output, errOut.String())
	if err != nil {
		return string(output), fmt.Errorf("guard-etcd %s: %w: %s", strings.Join(args, " "), err, errOut.String())
	}
	return string(output), nil
}
