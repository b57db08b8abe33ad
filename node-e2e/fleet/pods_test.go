package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/embedded"
	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	workloadImage     = embedded.WorkloadImage
	workloadContainer = framework.WorkloadContainer
	workloadPort      = framework.WorkloadPort
	gracePeriod       = framework.GracePeriod
)

// Waits for pods.
const (
	// podStart covers scheduling, sandbox, network and container on a loaded machine.
	podStart = 90 * time.Second
	// deletionSlack is what a deletion may take beyond the grace period: the watch,
	// the runtime and the removal of the object.
	deletionSlack = 20 * time.Second
	apiLag        = framework.APILag
	killTimeout   = framework.KillTimeout
	holdPeriod    = framework.HoldPeriod
)

// scene is a namespace of one spec.
type scene struct{ namespace string }

// scenes are those of the running spec, for the report of its failure.
var scenes []*scene

// newScene makes a namespace with labels and sees to it that nothing of it is left on
// the nodes afterwards.
func newScene(ctx context.Context, labels map[string]string) *scene {
	GinkgoHelper()
	namespace := framework.Must(client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "fleet-", Labels: labels},
	}, metav1.CreateOptions{}))
	s := &scene{namespace: namespace.Name}
	DeferCleanup(func(ctx SpecContext) {
		if *keepFlag && CurrentSpecReport().Failed() {
			framework.Progress("left as it is: namespace %s", s.namespace)
			return
		}
		s.remove(ctx)
		scenes = slices.DeleteFunc(scenes, func(other *scene) bool { return other == s })
	}, NodeTimeout(cleanTimeout))
	scenes = append(scenes, s)
	Eventually(ctx, func() error {
		return framework.ErrorOf(client.CoreV1().ServiceAccounts(s.namespace).Get(ctx, "default", metav1.GetOptions{}))
	}).WithTimeout(podStart).Should(Succeed(), "the default service account of the namespace")
	return s
}

// newNamespace is newScene for those who need the name alone.
func newNamespace(ctx context.Context, labels map[string]string) string {
	GinkgoHelper()
	return newScene(ctx, labels).namespace
}

// remove deletes all that the spec made and waits for the containers, because what a
// spec leaves on a node would take resources from the next one.
func (s *scene) remove(ctx context.Context) {
	GinkgoHelper()
	s.deleteBudgets(ctx)
	apps := client.AppsV1()
	background := metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}
	Expect(apps.Deployments(s.namespace).DeleteCollection(ctx, background, metav1.ListOptions{})).To(Succeed())
	Expect(apps.StatefulSets(s.namespace).DeleteCollection(ctx, background, metav1.ListOptions{})).To(Succeed())
	Expect(apps.DaemonSets(s.namespace).DeleteCollection(ctx, background, metav1.ListOptions{})).To(Succeed())
	Eventually(ctx, func(g Gomega) {
		framework.DeletePods(g, ctx, client, s.namespace)
		g.Expect(s.releaseLeft(ctx)).To(Succeed())
		g.Expect(s.containers(ctx)).To(BeEmpty(), "containers of the namespace %s", s.namespace)
	}).WithTimeout(2*time.Minute).WithPolling(time.Second).Should(Succeed(), "the nodes are left as they were found")
	framework.DeleteNamespace(ctx, client, s.namespace)
}

// releaseLeft releases, on the nodes, held pods of the scene whose objects are gone.
func (s *scene) releaseLeft(ctx context.Context) error {
	for _, node := range ownNodes() {
		if !node.Guarded() {
			continue
		}
		list, err := guardPods(ctx, node)
		if err != nil {
			return err
		}
		for _, pod := range list.Items {
			if pod.Namespace != s.namespace || pod.ObjectPresent || pod.State != guard.Held {
				continue
			}
			const folder = "/var/lib/kubelet/guard/release"
			if _, err := node.Exec(ctx, "sh", "-c", fmt.Sprintf("mkdir -p %s && touch %s/%s", folder, folder, pod.UID)); err != nil {
				return err
			}
		}
	}
	return nil
}

// containers lists the running containers of the scene on all nodes.
func (s *scene) containers(ctx context.Context) ([]string, error) {
	var lock sync.Mutex
	var names []string
	err := inParallel(ownNodes(), func(node *kind.Node) error {
		running, err := node.Containers(ctx)
		if err != nil {
			return err
		}
		lock.Lock()
		defer lock.Unlock()
		for _, c := range running {
			if c.PodNamespace == s.namespace {
				names = append(names, node.Name()+": "+c.PodName+"/"+c.Name)
			}
		}
		return nil
	})
	return names, err
}

// podOption changes a pod template before it is used.
type podOption func(*corev1.PodTemplateSpec)

// protected requests the guard's protection.
func protected(pod *corev1.PodTemplateSpec) {
	pod.Labels[guardv1alpha1.ExplicitDeletionLabel] = guardv1alpha1.ExplicitDeletionRequired
}

// protectedIf is protected, or no change.
func protectedIf(on bool) podOption {
	if on {
		return protected
	}
	return func(*corev1.PodTemplateSpec) {}
}

// requesting sets the CPU request, in thousandths of a core.
func requesting(milliCPU int64) podOption {
	return func(pod *corev1.PodTemplateSpec) {
		pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(milliCPU, resource.DecimalSI)}
	}
}

// onNode binds a pod to a node without the scheduler.
func onNode(node *kind.Node) podOption {
	return func(pod *corev1.PodTemplateSpec) { pod.Spec.NodeName = node.Name() }
}

// selectingNode has the scheduler choose the node.
func selectingNode(node *kind.Node) podOption {
	return selecting(corev1.LabelHostname, node.Name())
}

// selecting adds to the node selector.
func selecting(key, value string) podOption {
	return func(pod *corev1.PodTemplateSpec) {
		if pod.Spec.NodeSelector == nil {
			pod.Spec.NodeSelector = map[string]string{}
		}
		pod.Spec.NodeSelector[key] = value
	}
}

// onlyOn has the scheduler choose among nodes.
func onlyOn(nodes ...*kind.Node) podOption {
	return func(pod *corev1.PodTemplateSpec) {
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				nodeTerm(corev1.LabelHostname, namesOf(nodes)...),
			}},
		}}
	}
}

// elsewhere is where pods go that cannot run on a worker: no spec damages the control
// plane node.
func elsewhere() *kind.Node { return cluster.ControlPlane() }

// preferring has the scheduler choose a node, or elsewhere where that is closed.
func preferring(node *kind.Node) podOption {
	return func(pod *corev1.PodTemplateSpec) {
		onlyOn(node, elsewhere())(pod)
		pod.Spec.Affinity.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.PreferredSchedulingTerm{
			{Weight: 100, Preference: nodeTerm(corev1.LabelHostname, node.Name())},
		}
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Key: controlPlaneRole, Operator: corev1.TolerationOpExists})
	}
}

// controlPlaneRole is the key of the label and of the taint of the control plane node.
const controlPlaneRole = "node-role.kubernetes.io/control-plane"

func nodeTerm(label string, values ...string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
		{Key: label, Operator: corev1.NodeSelectorOpIn, Values: values},
	}}
}

// leavingAfter sets how long the pod stays on a node that is unreachable or not
// ready; a negative time is for ever.
func leavingAfter(stay time.Duration) podOption {
	return func(pod *corev1.PodTemplateSpec) {
		for _, key := range []string{corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady} {
			toleration := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}
			if stay >= 0 {
				toleration.TolerationSeconds = ptr.To(int64(stay.Seconds()))
			}
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, toleration)
		}
	}
}

// template is that of all pods: a server that is ready as soon as it responds. Pods
// with the same app belong together.
func template(app string, options ...podOption) corev1.PodTemplateSpec {
	pod := framework.NewPodTemplate(framework.AppLabels(app), framework.NewContainer(workloadContainer, workloadPort))
	for _, option := range options {
		option(&pod)
	}
	return pod
}

// newPod is a pod without a controller, not yet created, that is its own app.
func newPod(name string, options ...podOption) *corev1.Pod {
	return framework.NewPod(name, template(name, options...))
}

// newDeployment, newStatefulSet and newDaemonSet are workloads, not yet created, over
// the pods of the app with their name.
func newDeployment(name string, replicas int, options ...podOption) *appsv1.Deployment {
	return framework.NewDeployment(name, replicas, template(name, options...))
}

func newStatefulSet(name string, replicas int, options ...podOption) *appsv1.StatefulSet {
	set := framework.NewStatefulSet(name, replicas, template(name, options...))
	set.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	return set
}

func newDaemonSet(name string, options ...podOption) *appsv1.DaemonSet {
	return framework.NewDaemonSet(name, template(name, options...))
}

// createBudget creates a disruption budget over the pods of an app and waits until it
// allows so many disruptions.
func (s *scene) createBudget(ctx context.Context, app string, minAvailable, allowed int) {
	GinkgoHelper()
	framework.CreateBudget(ctx, client, s.namespace, framework.NewBudget(app, app, minAvailable), allowed)
}

// deleteBudgets deletes the budgets of the scene by override, since protected pods may run.
func (s *scene) deleteBudgets(ctx context.Context) {
	GinkgoHelper()
	budgets := client.PolicyV1().PodDisruptionBudgets(s.namespace)
	list := framework.Must(budgets.List(ctx, metav1.ListOptions{}))
	override := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`,
		guardv1alpha1.OverrideAnnotation, guardv1alpha1.FormatOverride(time.Now().Add(time.Hour), "end of the spec"))
	for _, budget := range list.Items {
		framework.Must(budgets.Patch(ctx, budget.Name, types.MergePatchType, override, metav1.PatchOptions{}))
		Expect(budgets.Delete(ctx, budget.Name, metav1.DeleteOptions{})).To(Succeed(), "delete budget %s", budget.Name)
	}
}

// subject is a pod whose container a spec keeps an eye on.
type subject struct {
	name, namespace string
	uid             types.UID
	node            *kind.Node
	// container is the id of its container in the node's runtime.
	container string
}

func (s *subject) String() string { return s.namespace + "/" + s.name + " on " + s.node.Name() }

// run creates pods, waits until they are Ready and returns them in the same order.
func (s *scene) run(ctx context.Context, pods ...*corev1.Pod) []*subject {
	GinkgoHelper()
	for _, pod := range pods {
		framework.Must(client.CoreV1().Pods(s.namespace).Create(ctx, pod, metav1.CreateOptions{}))
	}
	names := map[string]int{}
	for i, pod := range pods {
		names[pod.Name] = i
	}
	found := make([]*subject, len(pods))
	for _, subject := range s.awaitRunning(ctx, len(pods), func(pod *corev1.Pod) bool { _, ours := names[pod.Name]; return ours }) {
		found[names[subject.name]] = subject
	}
	return found
}

// ofApp waits until so many pods of an app, and no more, are Ready and returns them.
// Pods that are being deleted count until they are gone.
func (s *scene) ofApp(ctx context.Context, app string, count int) []*subject {
	GinkgoHelper()
	return s.awaitRunning(ctx, count, func(pod *corev1.Pod) bool { return pod.Labels["app"] == app })
}

// awaitRunning waits until exactly so many pods of the scene are selected and each of
// them is Ready, and finds their containers.
func (s *scene) awaitRunning(ctx context.Context, count int, selected func(*corev1.Pod) bool) []*subject {
	GinkgoHelper()
	var found []*subject
	Eventually(ctx, func(g Gomega) {
		list := framework.Try(client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{})).In(g)
		found = nil
		var waiting []string
		for i := range list.Items {
			pod := &list.Items[i]
			if !selected(pod) {
				continue
			}
			subject := &subject{name: pod.Name, namespace: s.namespace, uid: pod.UID, node: cluster.Node(pod.Spec.NodeName)}
			found = append(found, subject)
			if pod.DeletionTimestamp != nil || !testnode.PodReady(pod) || len(pod.Status.ContainerStatuses) == 0 {
				waiting = append(waiting, fmt.Sprintf("%s (%s %s)", pod.Name, pod.Status.Phase, pod.Status.Reason))
				continue
			}
			_, subject.container, _ = strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
		}
		g.Expect(waiting).To(BeEmpty(), "pods that are not Ready, or end")
		g.Expect(found).To(HaveLen(count), "pods")
	}).WithTimeout(podStart).Should(Succeed(), "%d pods in %s are Ready", count, s.namespace)
	return found
}

// ended returns which of the subjects' containers do not run any more, according to the
// runtimes of their nodes.
func ended(ctx context.Context, subjects ...*subject) ([]*subject, error) {
	byNode := map[*kind.Node][]*subject{}
	var nodes []*kind.Node
	for _, s := range subjects {
		if byNode[s.node] == nil {
			nodes = append(nodes, s.node)
		}
		byNode[s.node] = append(byNode[s.node], s)
	}
	var lock sync.Mutex
	var gone []*subject
	err := inParallel(nodes, func(node *kind.Node) error {
		containers, err := node.Containers(ctx)
		if err != nil {
			return fmt.Errorf("containers of %s: %w", node.Name(), err)
		}
		running := map[string]bool{}
		for _, c := range containers {
			running[c.ID] = true
		}
		lock.Lock()
		defer lock.Unlock()
		for _, s := range byNode[node] {
			if !running[s.container] {
				gone = append(gone, s)
			}
		}
		return nil
	})
	return gone, err
}

// expectRunning checks that the containers of the start still run. One that does not is
// a failure whatever the next attempt at the spec says.
func expectRunning(g Gomega, ctx context.Context, subjects ...*subject) {
	gone := framework.Try(ended(ctx, subjects...)).In(g)
	for _, s := range gone {
		specLog.Stand("the container of pod %s had to run on and has ended", s)
	}
	g.Expect(gone).To(BeEmpty(), "pods whose containers have ended")
}

// stayRunning checks for a while that the containers of the start run on.
func stayRunning(ctx context.Context, during time.Duration, subjects ...*subject) {
	GinkgoHelper()
	Consistently(ctx, func(g Gomega) { expectRunning(g, ctx, subjects...) }).
		WithTimeout(during).WithPolling(time.Second).Should(Succeed(), "the containers of %v run on", subjects)
}

// awaitEnded waits until the containers of the subjects have ended and returns how
// long after the given moment the last one was seen to have.
func awaitEnded(ctx context.Context, since time.Time, within time.Duration, subjects ...*subject) time.Duration {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		g.Expect(ended(ctx, subjects...)).To(ConsistOf(subjects), "pods whose containers have ended")
	}).WithTimeout(within).Should(Succeed(), "the containers of %v end", subjects)
	return time.Since(since)
}

// awaitGone waits until the API does not have the subjects' objects any more.
func awaitGone(ctx context.Context, within time.Duration, subjects ...*subject) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		for _, s := range subjects {
			framework.ExpectPodGone(g, ctx, client, s.namespace, s.name, s.uid)
		}
	}).WithTimeout(within).Should(Succeed(), "the objects are gone")
}

// deleteExplicitly deletes pods through the API and waits until their containers and
// objects are gone. It returns how long the containers took.
func deleteExplicitly(ctx context.Context, options metav1.DeleteOptions, subjects ...*subject) time.Duration {
	GinkgoHelper()
	requested := time.Now()
	for _, s := range subjects {
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, s.name, options)).To(Succeed(), "delete pod %s", s)
	}
	took := awaitEnded(ctx, requested, gracePeriod+deletionSlack, subjects...)
	awaitGone(ctx, gracePeriod+deletionSlack, subjects...)
	return took
}

// expectAPIShowsRunning checks that the API shows the subjects as what they are:
// there, not being deleted, Running and Ready.
func expectAPIShowsRunning(g Gomega, ctx context.Context, subjects ...*subject) {
	for _, s := range subjects {
		pod := framework.Try(client.CoreV1().Pods(s.namespace).Get(ctx, s.name, metav1.GetOptions{})).In(g)
		g.Expect(pod.UID).To(Equal(s.uid), "UID of pod %s", s)
		g.Expect(pod.DeletionTimestamp).To(BeNil(), "deletion of pod %s", s)
		g.Expect(pod.Status.Phase).To(Equal(corev1.PodRunning), "phase of pod %s (%s)", s, pod.Status.Reason)
		g.Expect(testnode.PodReady(pod)).To(BeTrue(), "pod %s is Ready", s)
	}
}

// compared are the four pods of most specs: one that is protected and one that is
// not, on each of the two nodes.
type compared struct{ stockProtected, stockPlain, guardedProtected, guardedPlain *subject }

// runCompared runs a protected and an unprotected pod of the same template on each of
// the two nodes, with names that start as given.
func (s *scene) runCompared(ctx context.Context, name string, options ...podOption) compared {
	GinkgoHelper()
	var pods []*corev1.Pod
	for _, node := range workers() {
		for _, protect := range []bool{true, false} {
			kind := "plain"
			if protect {
				kind = "protected"
			}
			pods = append(pods, newPod(name+"-"+node.Pool()+"-"+kind, append([]podOption{onNode(node), protectedIf(protect)}, options...)...))
		}
	}
	subjects := s.run(ctx, pods...)
	c := compared{subjects[0], subjects[1], subjects[2], subjects[3]}
	awaitGuardState(ctx, c.guardedProtected, guard.Protected)
	return c
}

func (c compared) all() []*subject {
	return []*subject{c.stockProtected, c.stockPlain, c.guardedProtected, c.guardedPlain}
}

// killable are all but the one that the guard keeps when nobody requested an end.
func (c compared) killable() []*subject {
	return []*subject{c.stockProtected, c.stockPlain, c.guardedPlain}
}
