package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// colocatedPods is how many protected pods each of the two workers runs.
	colocatedPods = 20
	// colocatedStart covers the start of all of them, on workers that share two cores.
	colocatedStart = 6 * time.Minute
	// colocatedKill covers a kubelet that rejects all its pods at once; one of them
	// takes it 2 s.
	colocatedKill = time.Minute
	// colocatedEnd covers the end of all pods.
	colocatedEnd = 2 * time.Minute
	// kubeletConfigFile is where kubeadm puts the kubelet's configuration.
	kubeletConfigFile = "/var/lib/kubelet/config.yaml"
)

// The incident that this project comes from: a configuration for co-located work is
// rolled out with the kubelet and reserves far too much. No budget is checked.
var _ = Describe("A wrong resource reservation that comes with a kubelet", Label(labelLong), func() {
	It("kills every pod of a stock worker, and no protected one of a guarded worker", func(ctx SpecContext) {
		s := newScene(ctx, nil)
		stock, guarded := newColocated(ctx, s, stockNode()), newColocated(ctx, s, guardedNode())
		both := []*colocated{stock, guarded}

		By("running the pods")
		started := time.Now()
		for _, w := range both {
			w.create(ctx)
		}
		for _, w := range both {
			w.awaitAvailable(ctx, colocatedPods, colocatedStart)
			w.protected = s.ofApp(ctx, w.name, colocatedPods)
			w.unprotected = s.ofApp(ctx, w.name+"-plain", 1)
		}
		framework.Progress("co-location: %d protected pods and an unprotected one run on each worker after %.0f s", colocatedPods, time.Since(started).Seconds())

		By("rolling the reservation out")
		for _, w := range both {
			w.reserve(ctx)
		}
		restartKubelet(ctx, workers()...)
		atOnce(ctx, workers(), func(ctx context.Context, node *kind.Node) {
			both[slices.Index(workers(), node)].awaitAdmission(ctx)
		})

		By("counting who is left")
		awaitEnded(ctx, time.Now(), colocatedKill, stock.protected...)
		guarded.awaitStates(ctx, map[guard.State]int{guard.Held: colocatedPods})
		stayRunning(ctx, holdPeriod, guarded.protected...)
		stock.awaitAvailable(ctx, 0, colocatedKill)
		guarded.awaitAvailable(ctx, colocatedPods, apiLag)
		for _, w := range both {
			w.report(ctx)
		}
		Expect(refused(ctx, guarded.node)).To(HaveKeyWithValue(guard.AdmissionRejected, colocatedPods), framework.RefusedKills)
		holds := kubectl(ctx, "guard", "holds", "--namespace", s.namespace)
		Expect(strings.Count(holds, string(guard.AdmissionRejected))).To(Equal(colocatedPods), "kubectl guard holds:\n%s", holds)

		By("taking the reservation back")
		Expect(inParallel(both, func(w *colocated) error { return w.write(ctx, w.original) })).To(Succeed())
		restartKubelet(ctx, workers()...)
		guarded.awaitRelief(ctx)
		expectRunning(Default, ctx, guarded.protected...)

		By("deleting the pods through the API")
		requested := time.Now()
		background := metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground)}
		for _, w := range both {
			Expect(client.AppsV1().Deployments(s.namespace).Delete(ctx, w.name, background)).To(Succeed())
		}
		took := awaitEnded(ctx, requested, colocatedEnd, guarded.protected...)
		framework.Progress("co-location: the guarded worker's pods ended %.0f s after they were deleted", took.Seconds())
	}, SpecTimeout(12*time.Minute))
})

// colocated is one of the two workers with its pods.
type colocated struct {
	scene *scene
	node  *kind.Node
	name  string
	// request is the CPU that each pod requests, in thousandths of a core.
	request int64
	// original is the kubelet's configuration before the spec, wrong the one that
	// leaves half of what a single pod requests.
	original, wrong string
	// protected and unprotected are the pods of the start.
	protected, unprotected []*subject
}

func newColocated(ctx context.Context, s *scene, node *kind.Node) *colocated {
	GinkgoHelper()
	w := &colocated{scene: s, node: node, name: "colocated-" + node.Pool()}
	// A tenth is left for others, so that a pod of the system does not end it all.
	w.request = freeCPU(ctx, node) * 9 / 10 / (colocatedPods + 1)
	object := framework.Must(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{}))
	w.original = framework.Must(node.Exec(ctx, "cat", kubeletConfigFile))
	var config map[string]any
	Expect(yaml.Unmarshal([]byte(w.original), &config)).To(Succeed(), "%s of %s", kubeletConfigFile, node.Name())
	config["systemReserved"] = map[string]string{"cpu": fmt.Sprintf("%dm", object.Status.Capacity.Cpu().MilliValue()-w.request/2)}
	wrong := framework.Must(yaml.Marshal(config))
	w.wrong = string(wrong)
	return w
}

// create creates a Deployment of protected pods, and one of a single pod without
// protection, which shows on each worker that the fault acts.
func (w *colocated) create(ctx context.Context) {
	GinkgoHelper()
	deployments := client.AppsV1().Deployments(w.scene.namespace)
	options := []podOption{selectingNode(w.node), requesting(w.request), patientlyProbed}
	framework.Must(deployments.Create(ctx, newDeployment(w.name, colocatedPods, append(options, protected)...), metav1.CreateOptions{}))
	framework.Must(deployments.Create(ctx, newDeployment(w.name+"-plain", 1, options...), metav1.CreateOptions{}))
}

// patientlyProbed lets a pod respond to its probe late: the reservation leaves next to no
// CPU time to the pods of a busy machine, and that is not what the spec is about.
func patientlyProbed(pod *corev1.PodTemplateSpec) {
	probe := pod.Spec.Containers[0].ReadinessProbe
	probe.PeriodSeconds, probe.TimeoutSeconds, probe.FailureThreshold = 5, 5, 6
}

// reserve writes the wrong configuration, and takes it back at the end of a spec that
// has not.
func (w *colocated) reserve(ctx context.Context) {
	GinkgoHelper()
	DeferCleanup(func(ctx SpecContext) {
		now := framework.Must(w.node.Exec(ctx, "cat", kubeletConfigFile))
		if now != w.original {
			Expect(w.write(ctx, w.original)).To(Succeed())
			restartKubelet(ctx, w.node)
		}
	}, NodeTimeout(cleanTimeout))
	Expect(w.write(ctx, w.wrong)).To(Succeed())
}

func (w *colocated) write(ctx context.Context, config string) error {
	_, err := w.node.ExecInput(ctx, strings.NewReader(config), "cp", "/dev/stdin", kubeletConfigFile)
	if err != nil {
		return fmt.Errorf("write %s of %s: %w", kubeletConfigFile, w.node.Name(), err)
	}
	return nil
}

// awaitAdmission waits until the kubelet has rejected the unprotected pod and
// killed it. A restarted kubelet admits its pods by the allocatable resources that its
// Node object had before, if it reads that in time, and only then writes the new ones
// there. Pods that are spared so meet the reservation at the next restart.
func (w *colocated) awaitAdmission(ctx context.Context) {
	GinkgoHelper()
	restarts, last := 1, time.Now()
	Eventually(ctx, func(g Gomega) {
		gone := framework.Try(ended(ctx, w.unprotected...)).In(g)
		if len(gone) == 0 && time.Since(last) > killTimeout {
			restartKubelet(ctx, w.node)
			restarts, last = restarts+1, time.Now()
		}
		g.Expect(gone).To(ConsistOf(w.unprotected), "unprotected pods that were killed")
	}).WithTimeout(colocatedKill+2*killTimeout).WithPolling(time.Second).Should(Succeed(), "the reservation acts on worker %s", w.node.Name())
	framework.Progress("co-location: the reservation acts on worker %s after %d restarts", w.node.Name(), restarts)
}

// available is how many protected pods the Deployment has that serve.
func (w *colocated) available(ctx context.Context) (int, error) {
	deployment, err := client.AppsV1().Deployments(w.scene.namespace).Get(ctx, w.name, metav1.GetOptions{})
	if err != nil {
		return 0, err
	}
	return int(deployment.Status.AvailableReplicas), nil
}

func (w *colocated) awaitAvailable(ctx context.Context, count int, within time.Duration) {
	GinkgoHelper()
	Eventually(ctx, w.available).WithTimeout(within).WithPolling(time.Second).Should(Equal(count), "available replicas of %s", w.name)
}

// awaitStates waits until the worker's guard has so many pods of the spec in each
// state.
func (w *colocated) awaitStates(ctx context.Context, want map[guard.State]int) {
	GinkgoHelper()
	Eventually(ctx, w.states).WithTimeout(colocatedKill).WithPolling(time.Second).Should(Equal(want), "states in %s of %s", guard.PodsPath, w.node.Name())
}

// states is how many pods of the spec the worker's guard has in each state.
func (w *colocated) states(ctx context.Context) (map[guard.State]int, error) {
	list, err := guardPods(ctx, w.node)
	if err != nil {
		return nil, err
	}
	states := map[guard.State]int{}
	for _, pod := range list.Items {
		if pod.Namespace == w.scene.namespace {
			states[pod.State]++
		}
	}
	return states, nil
}

// awaitRelief waits until no pod is held any more by a kubelet that was restarted with
// the reservation rolled back. For the reason given at awaitAdmission, one restart may
// still reject the pods.
func (w *colocated) awaitRelief(ctx context.Context) {
	GinkgoHelper()
	restarts, last := 1, time.Now()
	Eventually(ctx, func(g Gomega) {
		states := framework.Try(w.states(ctx)).In(g)
		if states[guard.Held] > 0 && time.Since(last) > killTimeout {
			restartKubelet(ctx, w.node)
			restarts, last = restarts+1, time.Now()
		}
		g.Expect(states).To(Equal(map[guard.State]int{guard.Protected: colocatedPods}))
	}).WithTimeout(colocatedKill+2*killTimeout).WithPolling(time.Second).Should(Succeed(), "states in %s of %s with the reservation removed", guard.PodsPath, w.node.Name())
	framework.Progress("co-location: no pod of worker %s is held after %d restarts", w.node.Name(), restarts)
}

// report reports the figures of a worker.
func (w *colocated) report(ctx context.Context) {
	GinkgoHelper()
	killed := framework.Must(ended(ctx, w.protected...))
	available := framework.Must(w.available(ctx))
	found("co-location, %s worker: %d of %d protected pods killed, %d replicas available", w.node.Pool(), len(killed), len(w.protected), available)
}
