package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/workqueue"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// watchHistory is how long the API server keeps the events of a resource for
	// watches, however many there are (cacher.DefaultEventFreshDuration). After that,
	// newer ones take the places of older ones.
	watchHistory = 75 * time.Second
	// watchPlaces bounds how many newer ones that may take. There are 100 places at
	// first, and twice as many when more come within watchHistory.
	watchPlaces = 20000
	// watchAnswer is how long a watch gets to say its first word. What the API server
	// remembers comes at once.
	watchAnswer = 10 * time.Second
	// kubeletReturn covers a kubelet's way back to a relist of its pods: its last
	// attempt may have to time out, and the next may come up to a minute later.
	kubeletReturn = 2 * time.Minute
)

// The case to think about: a node that was cut off is back when nobody can inform it any
// more that its pod was deleted, and the pod's successor runs elsewhere.
var _ = Describe("A StatefulSet's pod that is force-deleted while its node is cut off for longer than the API server remembers", Label(labelAway, labelLong), func() {
	It("ends after the reconnect where the webhook recorded the deletion, and else is held and shown next to its successor", func(ctx SpecContext) {
		installWebhook(ctx)
		recorded, forgotten, busy := newScene(ctx, withWebhook), newScene(ctx, nil), newScene(ctx, nil)
		var pods []*lostPod
		for _, node := range workers() {
			pods = append(pods,
				&lostPod{scene: recorded, set: "recorded", worker: node, protected: true, recorded: true},
				&lostPod{scene: forgotten, set: "forgotten", worker: node, protected: true},
				&lostPod{scene: forgotten, set: "unprotected", worker: node})
		}

		By("running a StatefulSet each")
		for _, pod := range pods {
			pod.create(ctx)
		}
		for _, pod := range pods {
			pod.old = pod.scene.ofApp(ctx, pod.app(), 1)[0]
			Expect(pod.old.node.Name()).To(Equal(pod.worker.Name()), "node of pod %s, which prefers it", pod.old)
		}

		abandoned := newScene(ctx, nil).runAbandoned(ctx)

		By("cutting both workers off")
		disconnect(ctx, workers()...)
		cut := time.Now()
		// Neither kubelet can have heard of anything that is later than this.
		heard := framework.Must(client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})).ResourceVersion

		By("giving them up: kubectl cordon, and kubectl delete --force of their pods")
		setCordon(ctx, true, workers()...)
		for _, pod := range pods {
			kubectl(ctx, "delete", "pod", pod.old.name, "--namespace", pod.old.namespace, "--force", "--grace-period=0", "--wait=false")
			pod.expectRecord(ctx)
		}
		deleted := time.Now()
		for _, node := range workers() {
			Eventually(ctx, func() error { return watchFrom(ctx, heard, node) }).WithTimeout(apiLag).
				Should(Succeed(), "the API server could still inform %s", node.Name())
		}
		for _, pod := range pods {
			pod.successor = pod.scene.ofApp(ctx, pod.app(), 1)[0]
			Expect(pod.successor.uid).NotTo(Equal(pod.old.uid))
			Expect(pod.successor.node).To(Equal(elsewhere()), "node of the successor %s", pod.successor)
		}

		By("waiting until the API server has forgotten")
		written := outlastHistory(ctx, busy, heard, deleted)
		abandoned.awaitDeletion(ctx)
		expectRunning(Default, ctx, append(subjectsOf(pods, (*lostPod).oldCopy), abandoned.leaving.all()...)...)

		By("reconnecting them")
		found("cut-off: cut for %.0f s; a watch of the node's pods from the last resource version that its kubelet can have heard of is answered with 410 Expired (75 s and %d further events of pods)",
			time.Since(cut).Seconds(), written)
		back := time.Now()
		Expect(inParallel(workers(), func(n *kind.Node) error { return n.Reconnect(ctx) })).To(Succeed())

		By("seeing which old copies end")
		held := pods[slices.IndexFunc(pods, (*lostPod).isHeld)]
		atOnce(ctx, workers(), func(ctx context.Context, node *kind.Node) {
			for _, pod := range pods {
				if pod.worker == node && !pod.isHeld() {
					pod.awaitEnd(ctx, back, "the reconnect")
				}
			}
		})
		held.expectHeldNextToSuccessor(ctx)
		abandoned.awaitFates(ctx)
		expectAPIShowsRunning(Default, ctx, subjectsOf(pods, (*lostPod).newCopy)...)

		By("releasing the one that is held")
		requested := time.Now()
		kubectl(ctx, "guard", "release", held.old.name, "--namespace", held.old.namespace, "--uid", string(held.old.uid),
			"--node", held.worker.Name(), "--reason", "its successor runs", "--yes", "--timeout=0")
		held.awaitEnd(ctx, requested, "kubectl guard release")
		expectRunning(Default, ctx, subjectsOf(pods, (*lostPod).newCopy)...)
		expectAPIShowsRunning(Default, ctx, subjectsOf(pods, (*lostPod).newCopy)...)
	}, SpecTimeout(9*time.Minute))
})

// lostPod is the one pod of a StatefulSet on a worker that is cut off.
type lostPod struct {
	scene  *scene
	set    string
	worker *kind.Node
	// protected pods carry the label; recorded ones are in a namespace in which the
	// webhook acts.
	protected, recorded bool
	// old is the pod of the start, successor the one that has its name now.
	old, successor *subject
}

func (p *lostPod) app() string       { return p.set + "-" + p.worker.Pool() }
func (p *lostPod) oldCopy() *subject { return p.old }
func (p *lostPod) newCopy() *subject { return p.successor }
func (p *lostPod) isHeld() bool      { return p.guards() && !p.recorded }
func (p *lostPod) guards() bool      { return p.protected && p.worker.Guarded() }
func (p *lostPod) describe() string {
	return fmt.Sprintf("cut-off, %s worker, %s", p.worker.Pool(), p.title())
}
func (p *lostPod) title() string {
	switch {
	case !p.protected:
		return "unprotected pod"
	case p.recorded:
		return "protected pod, with the webhook"
	}
	return "protected pod, without the webhook"
}

func subjectsOf(pods []*lostPod, which func(*lostPod) *subject) []*subject {
	var subjects []*subject
	for _, pod := range pods {
		subjects = append(subjects, which(pod))
	}
	return subjects
}

// create creates the StatefulSet. Its pod prefers the worker, and may run elsewhere.
func (p *lostPod) create(ctx context.Context) {
	GinkgoHelper()
	set := newStatefulSet(p.app(), 1, protectedIf(p.protected), preferring(p.worker))
	framework.Must(client.AppsV1().StatefulSets(p.scene.namespace).Create(ctx, set, metav1.CreateOptions{}))
}

// expectRecord checks that the webhook has written the PodDeletion of the old copy,
// where it acts, and that nobody has elsewhere.
func (p *lostPod) expectRecord(ctx context.Context) {
	GinkgoHelper()
	_, err := dynamicClient.Resource(guardv1alpha1.GroupVersion.WithResource("poddeletions")).Get(ctx, string(p.old.uid), metav1.GetOptions{})
	if p.recorded {
		Expect(err).NotTo(HaveOccurred(), "PodDeletion of pod %s", p.old)
	} else {
		Expect(err).To(MatchError(apierrors.IsNotFound, "is not found"), "PodDeletion of pod %s", p.old)
	}
}

// awaitEnd waits until the old copy has ended. One that the guard protects must have
// ended for its record: the deletion itself was not seen.
func (p *lostPod) awaitEnd(ctx context.Context, since time.Time, event string) {
	GinkgoHelper()
	took := awaitEnded(ctx, since, kubeletReturn, p.old)
	evidence := ""
	if p.guards() {
		// It remembers for half a minute.
		state := framework.Must(guardPod(ctx, p.old))
		Expect(state).NotTo(BeNil(), "pod %s in %s", p.old, guard.PodsPath)
		Expect(state.Evidence).To(HaveField("Kind", guard.PodDeletionRecord), "evidence of pod %s", p.old)
		evidence = fmt.Sprintf(", evidence %s", state.Evidence.Kind)
	}
	found("%s: the old copy ended within %.0f s of %s%s", p.describe(), took.Seconds(), event, evidence)
}

// expectHeldNextToSuccessor checks that the old copy is kept, and that the kubelet and
// kubectl guard report it.
func (p *lostPod) expectHeldNextToSuccessor(ctx context.Context) {
	GinkgoHelper()
	state := awaitGuardState(ctx, p.old, guard.Held, guard.PodVanished)
	Expect(state.ObjectPresent).To(BeFalse(), "the kubelet sees an object of pod %s", p.old)
	Expect(state.Evidence).To(BeNil(), "evidence of pod %s", p.old)
	stayRunning(ctx, holdPeriod, p.old, p.successor)
	found("%s: %s says %s for %s, objectPresent %t, no evidence", p.describe(), guard.PodsPath, state.State, guard.PodVanished, state.ObjectPresent)

	var held struct {
		Items []struct {
			UID       types.UID `json:"uid"`
			Node      string    `json:"node"`
			Object    string    `json:"object"`
			Successor struct {
				UID   types.UID       `json:"uid"`
				Node  string          `json:"node"`
				Phase corev1.PodPhase `json:"phase"`
			} `json:"successor"`
		} `json:"items"`
	}
	text := kubectl(ctx, "guard", "holds", "--namespace", p.old.namespace, "--output", "json")
	Expect(json.Unmarshal([]byte(text), &held)).To(Succeed(), "kubectl guard holds: %s", text)
	Expect(held.Items).To(HaveLen(1), "kubectl guard holds: %s", text)
	item := held.Items[0]
	Expect(item.UID).To(Equal(p.old.uid), "kubectl guard holds: %s", text)
	Expect(item.Node).To(Equal(p.worker.Name()), "kubectl guard holds: %s", text)
	Expect(item.Object).To(Equal("Replaced"), "kubectl guard holds: %s", text)
	Expect(item.Successor.UID).To(Equal(p.successor.uid), "kubectl guard holds: %s", text)
	Expect(item.Successor.Node).To(Equal(p.successor.node.Name()), "kubectl guard holds: %s", text)
	Expect(item.Successor.Phase).To(Equal(corev1.PodRunning), "kubectl guard holds: %s", text)
	found("%s: kubectl guard holds says object %s, successor on %s, %s", p.describe(), item.Object, item.Successor.Node, item.Successor.Phase)
	why := kubectl(ctx, "guard", "why", p.old.name, "--namespace", p.old.namespace)
	Expect(why).To(And(ContainSubstring("a later pod has the name: UID "+string(p.successor.uid)), ContainSubstring("Two copies run now")))
	AddReportEntry("kubectl guard why "+p.old.name, why)
}

// errForgotten is the response 410 to a watch.
var errForgotten = errors.New("the resource version is too old")

// watchFrom watches the pods of a node from a resource version on, as its kubelet
// does. It succeeds when the API server sends a deletion that has happened since, and
// returns errForgotten when the API server does not remember any more what has.
func watchFrom(ctx context.Context, resourceVersion string, node *kind.Node) error {
	ctx, cancel := context.WithTimeout(ctx, watchAnswer)
	defer cancel()
	w, err := client.CoreV1().Pods(metav1.NamespaceAll).Watch(ctx, metav1.ListOptions{
		FieldSelector: "spec.nodeName=" + node.Name(), ResourceVersion: resourceVersion,
	})
	if err != nil {
		return orForgotten(err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		switch event.Type {
		case watch.Error:
			return orForgotten(apierrors.FromObject(event.Object))
		case watch.Deleted:
			return nil
		}
	}
	return fmt.Errorf("a watch of the pods of %s from resource version %s has no deletion within %s", node.Name(), resourceVersion, watchAnswer)
}

func orForgotten(err error) error {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
		return errForgotten
	}
	return err
}

// outlastHistory waits until the API server may forget what happened until a moment,
// and then writes to a pod of the scene until it has. It returns how many writes that
// took.
func outlastHistory(ctx context.Context, s *scene, heard string, until time.Time) int {
	GinkgoHelper()
	Eventually(ctx, func() time.Duration { return time.Since(until) }).WithTimeout(2*watchHistory).WithPolling(time.Second).
		Should(BeNumerically(">", watchHistory), "time since the deletions")
	pods := client.CoreV1().Pods(s.namespace)
	busy := newPod("busy")
	// It never runs.
	busy.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "e2e.kubelet-guard.io/never"}}
	framework.Must(pods.Create(ctx, busy, metav1.CreateOptions{}))
	const writers, batch = 8, 100
	var written atomic.Int64
	Eventually(ctx, func(g Gomega) {
		errs := make([]error, batch)
		workqueue.ParallelizeUntil(ctx, writers, batch, func(i int) {
			patch := fmt.Sprintf(`{"metadata":{"annotations":{"e2e.kubelet-guard.io/write":"%d"}}}`, written.Add(1))
			_, errs[i] = pods.Patch(ctx, busy.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		})
		g.Expect(errs).To(HaveEach(BeNil()))
		if written.Load() > watchPlaces {
			StopTrying("the API server still remembers").Now()
		}
		for _, node := range workers() {
			g.Expect(watchFrom(ctx, heard, node)).To(MatchError(errForgotten), "a watch of the pods of %s from %s", node.Name(), heard)
		}
	}).WithTimeout(2*time.Minute).WithPolling(time.Millisecond).Should(Succeed(), "the API server forgets")
	return int(written.Load())
}
