package fleet

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// garbageCollection is how long the pod garbage collector takes to delete the pods
	// of a node without an object: it looks every 20 s, and waits 40 s for the node to
	// come back.
	garbageCollection = 70 * time.Second
	// diskLabel is a label that a person put on a node by hand.
	diskLabel = "e2e.kubelet-guard.io/disk"
	// autoscalerTaint is what the cluster autoscaler puts on a node that it removes.
	autoscalerTaint = "ToBeDeletedByClusterAutoscaler"
)

var _ = Describe("A node whose object is deleted", Label(labelAway), func() {
	It("keeps its pods when it registers again in time, and protected ones also without the labels that they need", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		for _, node := range workers() {
			labelNode(ctx, node, diskLabel, "ssd")
			DeferCleanup(func(ctx SpecContext) { labelNode(ctx, node, diskLabel, "") }, NodeTimeout(cleanTimeout))
		}
		ordinary := s.runCompared(ctx, "ordinary")
		labelled := s.runCompared(ctx, "labelled", selecting(diskLabel, "ssd"))

		By("deleting the nodes, and registering them again by a restart of their kubelets")
		deleteNodeObjects(ctx, workers()...)
		deleted := time.Now()
		restartKubelet(ctx, workers()...)
		registered := time.Now()
		framework.Progress("deleted: registered again after %.0f s", registered.Sub(deleted).Seconds())

		By("finding out who needed the label that nobody put on the new nodes")
		took := awaitEnded(ctx, registered, killTimeout, labelled.killable()...)
		found("node deleted and registered again without a hand-made label: the stock kubelet killed both pods that select it after %.0f s, the guarded one kept the protected pod", took.Seconds())
		awaitGuardState(ctx, labelled.guardedProtected, guard.Held, guard.AdmissionRejected)
		awaitHeldCondition(ctx, labelled.guardedProtected, guard.AdmissionRejected)

		By("awaiting that the pod garbage collector would have acted")
		left := garbageCollection - time.Since(deleted)
		stayRunning(ctx, max(left, holdPeriod), append(ordinary.all(), labelled.guardedProtected)...)
		expectAPIShowsRunning(Default, ctx, append(ordinary.all(), labelled.guardedProtected)...)

		By("putting the label back")
		labelNode(ctx, guardedNode(), diskLabel, "ssd")
		restartKubelet(ctx, guardedNode())
		awaitGuardState(ctx, labelled.guardedProtected, guard.Protected)
		deleteExplicitly(ctx, metav1.DeleteOptions{}, append(ordinary.all(), labelled.guardedProtected)...)
	}, SpecTimeout(2*specTimeout))

	It("loses its pods to the pod garbage collector, which deletes them through the API", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		pods := s.runCompared(ctx, "orphan")
		deleteNodeObjects(ctx, workers()...)
		deleted := time.Now()
		for _, node := range workers() {
			ours := []*subject{pods.stockProtected, pods.stockPlain}
			if node.Guarded() {
				ours = []*subject{pods.guardedProtected, pods.guardedPlain}
			}
			took := awaitEnded(ctx, deleted, garbageCollection+killTimeout, ours...)
			framework.Progress("deleted: the pods of worker %s had ended %.0f s after their node was deleted", node.Name(), took.Seconds())
		}
		awaitGone(ctx, deletionSlack, pods.all()...)

		By("registering the nodes again")
		restartKubelet(ctx, workers()...)
		s.expectNothingHeld(ctx)
		again := s.runCompared(ctx, "again")
		expectRunning(Default, ctx, again.all()...)
	}, SpecTimeout(2*specTimeout))

	It("has given its pods away before, when it is removed as the cluster autoscaler does it", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		const replicas, minAvailable = 3, 2
		for _, node := range workers() {
			name := "web-" + node.Pool()
			deployment := newDeployment(name, replicas, protected, preferring(node))
			framework.Must(client.AppsV1().Deployments(s.namespace).Create(ctx, deployment, metav1.CreateOptions{}))
		}
		before := map[*kind.Node][]*subject{}
		for _, node := range workers() {
			before[node] = s.ofApp(ctx, "web-"+node.Pool(), replicas)
			for _, pod := range before[node] {
				Expect(pod.node).To(Equal(node), "node of pod %s", pod)
			}
			s.createBudget(ctx, "web-"+node.Pool(), minAvailable, replicas-minAvailable)
		}

		By("tainting the nodes and evicting their pods as far as the budgets allow, again and again")
		for _, node := range workers() {
			setTaint(ctx, node, autoscalerTaint, true)
			DeferCleanup(func(ctx SpecContext) { setTaint(ctx, node, autoscalerTaint, false) }, NodeTimeout(cleanTimeout))
		}
		started := time.Now()
		gone := map[*kind.Node]time.Duration{}
		Eventually(ctx, func(g Gomega) {
			for _, node := range workers() {
				left := s.evictAll(g, ctx, node)
				if left == 0 && gone[node] == 0 {
					gone[node] = time.Since(started)
				}
				deployment := framework.Try(client.AppsV1().Deployments(s.namespace).Get(ctx, "web-"+node.Pool(), metav1.GetOptions{})).In(g)
				if deployment.Status.AvailableReplicas < minAvailable {
					StopTrying(fmt.Sprintf("Deployment %s has %d available replicas", deployment.Name, deployment.Status.AvailableReplicas)).Now()
				}
			}
			g.Expect(gone).To(HaveLen(len(workers())), "nodes that are empty")
		}).WithTimeout(2*time.Minute).WithPolling(time.Second).Should(Succeed(), "the nodes are empty")
		for _, node := range workers() {
			framework.Progress("autoscaler: worker %s was empty after %.0f s", node.Name(), gone[node].Seconds())
			awaitEnded(ctx, started, deletionSlack, before[node]...)
			for _, pod := range s.ofApp(ctx, "web-"+node.Pool(), replicas) {
				Expect(pod.node).To(Equal(elsewhere()), "node of the new pod %s", pod)
			}
		}

		By("deleting the nodes")
		deleteNodeObjects(ctx, workers()...)

		By("bringing the machines back as new nodes")
		restartKubelet(ctx, workers()...)
		s.expectNothingHeld(ctx)
	}, SpecTimeout(2*specTimeout))
})

// setTaint puts a taint without a value on a node, or removes it. A node without an
// object has none.
func setTaint(ctx context.Context, node *kind.Node, key string, on bool) {
	GinkgoHelper()
	if on {
		kubectl(ctx, "taint", "node", node.Name(), key+":NoSchedule")
		return
	}
	object, err := client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return
	}
	Expect(err).NotTo(HaveOccurred())
	for _, taint := range object.Spec.Taints {
		if taint.Key == key {
			kubectl(ctx, "taint", "node", node.Name(), key+"-")
		}
	}
}

// evictAll requests the eviction of the scene's pods on a node, and returns how many
// there are.
func (s *scene) evictAll(g Gomega, ctx context.Context, node *kind.Node) int {
	pods := framework.Try(client.CoreV1().Pods(s.namespace).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node.Name()})).In(g)
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp != nil {
			continue
		}
		err := client.CoreV1().Pods(s.namespace).EvictV1(ctx, &policyv1.Eviction{
			ObjectMeta:    metav1.ObjectMeta{Name: pod.Name},
			DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr.To(types.UID(pod.UID))}},
		})
		if err != nil && !apierrors.IsTooManyRequests(err) && !apierrors.IsNotFound(err) {
			g.Expect(err).NotTo(HaveOccurred(), "evict pod %s", pod.Name)
		}
	}
	return len(pods.Items)
}
