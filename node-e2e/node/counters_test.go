package node

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/criproxy"
)

// labelCounters marks what counts calls, requests and writes.
const labelCounters = "counters"

var (
	countersFlag      = flag.String("counters", "", "page that receives the table of counters between its markers; empty skips them")
	countersPodsFlag  = flag.Int("counters-pods", 5, "lives of each kind that are counted with each kubelet")
	countersBenchFlag = flag.String("counters-bench", "", "output of go test -bench -benchmem for the guard package, for a line of the table; empty leaves it out")
)

const (
	// steady is how long nothing happens to the pods, and the node's own rates are
	// taken.
	steady = 30 * time.Second
	// settle is longer than two relists of the kubelet, so that what a step of a life
	// causes is over before the next one.
	settle = 4 * time.Second
	// collection covers the kubelet's garbage collection, which comes once a minute
	// and removes the sandbox of a pod that is gone.
	collection = 3 * time.Minute

	// moreRuntimeCalls is the contract's bound for a protected pod: whether it is
	// alive may be queried at its deletion and again.
	moreRuntimeCalls = 2
	// A write takes two fsyncs, of the file and of its folder. maxWrites bounds the
	// writes of a protected pod's life without holds: one before its first container
	// starts, and one for the evidence. In between, what changed in its object is
	// written at most maxWritesPerMinute times: here the containers of its status, when
	// they run and when one was restarted.
	maxWrites          = 2
	maxWritesPerMinute = 1
)

// The life of a pod is counted with both kubelets, on one node, in one run: a proxy of
// the CRI counts the calls to the runtime, the audit log of the API server the
// requests of the node's user, strace the fsyncs, and inotify what is written to the
// state directory. Nothing here is a measurement of time.
//
// With each kubelet live some pods with the guard's label and as many without it. All
// are created, run for a while, have their container restarted by their liveness probe,
// are deleted, and are over when the kubelet has removed their sandbox. The stock
// kubelet does not know the label, so all of its lives say what is usual.
//
// What the kubelet does to a pod (start, stop, remove) is the same number in each life.
// What it asks and reports follows its relist, once a second: whether sandbox and
// container are seen in one or in two is chance. So there a life is more than usual
// only when it is beyond all lives of the stock kubelet, in the median.
var _ = Describe("The counters of a pod's life", Label(labelGuarded, labelCounters, labelControlPlane), func() {
	It("are those of the stock kubelet for an unprotected pod, and bounded for a protected one", func(ctx SpecContext) {
		if *countersFlag == "" {
			Skip("-counters names no page (make counters)")
		}
		s := newScene(ctx)
		proxy := newRuntimeProxy(ctx)
		var blocks []*countedBlock
		for _, kubelet := range []Variant{Stock, Guarded} {
			blocks = append(blocks, countBlock(ctx, s, proxy, kubelet))
		}
		table := newCountersTable(blocks[0], blocks[1])
		if *countersBenchFlag != "" {
			table.decisions = readDecisions(string(framework.Must(os.ReadFile(*countersBenchFlag))))
			Expect(table.decisions).NotTo(BeEmpty(), "benchmarks of decisions in %s", *countersBenchFlag)
		}
		text := table.markdown()
		framework.Progress("%s", text)
		Expect(writeCounters(*countersFlag, text)).To(Succeed(), "-counters")
		Expect(table.violations()).To(BeEmpty(), "what the guarded kubelet does beyond the invariants")
	}, NodeTimeout(20*time.Minute))
})

// countedBlock is what was counted in one life of a kubelet.
type countedBlock struct {
	version string
	lives   []*countedLife
	// node has what is about no pod in particular, from the time in which nothing
	// happens.
	node counts
	// lived is how long it took from the creation of the first pod until the last one
	// was deleted.
	lived time.Duration
	// shared has what was written or synced for no known pod.
	shared counts
}

// countedLife is one pod.
type countedLife struct {
	name     string
	uid      types.UID
	labelled bool
	counts   counts
}

// countBlock starts a kubelet and counts.
func countBlock(ctx context.Context, s *scene, proxy *criproxy.Proxy, kubelet Variant) *countedBlock {
	GinkgoHelper()
	framework.Progress("counters: the %s kubelet", kubelet)
	trace := newSyncTrace()
	restartKubelet(ctx, throughProxy(proxy, testnode.KubeletChange{
		Binary: trace.kubelet(kubeletBinary(kubelet)),
		// The rotation of logs reads the status of each container every 10 s, so that
		// a longer life would have more calls.
		Configure: func(config *kubeletconfig.KubeletConfiguration) {
			config.ContainerLogMonitorInterval = &metav1.Duration{Duration: time.Hour}
		},
	}))
	// What the node's status says may still be the version before.
	version, err := exec.CommandContext(ctx, kubeletBinary(kubelet), "--version").Output()
	Expect(err).NotTo(HaveOccurred(), "ask the %s kubelet for its version", kubelet)
	b := &countedBlock{version: strings.TrimPrefix(strings.TrimSpace(string(version)), "Kubernetes "), node: counts{}, shared: counts{}}

	// The first pod pays for what the kubelet does once.
	s.countLives(ctx, b, proxy, 0, fmt.Sprintf("%s-first", kubelet))
	b.lives = nil
	writes := watchWrites(filepath.Join(provider.Node().KubeletDir(), "guard"))
	begin := time.Now()
	proxy.Reset()
	steadyFrom, steadyTo := s.countLives(ctx, b, proxy, *countersPodsFlag, string(kubelet))

	of := map[types.UID]*countedLife{}
	for _, life := range b.lives {
		of[life.uid] = life
	}
	// The time of each call explains differences.
	var timeline strings.Builder
	for _, call := range proxy.Calls() {
		if life := of[types.UID(call.PodUID)]; life != nil {
			fmt.Fprintln(&timeline, call.Start.Format("15:04:05.000"), life.name, runtimeRow(call), call.ContainerID, call.Code)
			life.counts.add(groupRuntime, runtimeRow(call))
		} else if call.WholeNode() && call.Start.After(steadyFrom) && call.Start.Before(steadyTo) {
			b.node.add(groupRuntime, runtimeRow(call))
		}
	}
	Expect(os.WriteFile(filepath.Join(artifactsDir(), fmt.Sprintf("counters-%s.txt", kubelet)), []byte(timeline.String()), 0o644)).To(Succeed())
	for _, request := range readAudit(begin) {
		row := apiRow(request)
		if life := request.life(b.lives, s.namespace); life != nil {
			life.counts.add(groupAPI, row)
		} else if at := request.RequestReceivedTimestamp.Time; at.After(steadyFrom) && at.Before(steadyTo) {
			b.node.add(groupAPI, row)
		}
	}
	for _, name := range writes.stop() {
		if life := lifeIn(b.lives, name); life != nil {
			life.counts.add(groupState, rowWrites)
		} else {
			b.shared.add(groupState, rowWrites+": "+name)
		}
	}
	for _, path := range trace.synced() {
		switch life := lifeIn(b.lives, path); {
		case strings.Contains(path, "/kubelet/guard") && life != nil:
			life.counts.add(groupState, rowSyncs)
		case strings.Contains(path, "/kubelet/guard"):
			b.shared.add(groupState, rowSyncs)
		default:
			b.shared.add(groupKubelet, rowSyncs)
		}
	}
	return b
}

// countLives has pods of both kinds live side by side, 0 of each for one without the
// label only, and returns the time in which nothing happened.
func (s *scene) countLives(ctx context.Context, b *countedBlock, proxy *criproxy.Proxy, each int, prefix string) (steadyFrom, steadyTo time.Time) {
	GinkgoHelper()
	first := each == 0
	created := time.Now()
	for n := range max(2*each, 1) {
		labelled := n%2 == 1
		template := s.newPod(fmt.Sprintf("%s-%d", prefix, n), func(pod *corev1.Pod) {
			// Ready as soon as it runs, and one failure of one probe: how many there are
			// would be chance. It comes long after the start, and waits long, so that no
			// slow machine fails it.
			pod.Spec.Containers[0].ReadinessProbe = nil
			pod.Spec.Containers[0].LivenessProbe = &corev1.Probe{
				ProbeHandler: httpGet("/healthz", workloadPort), InitialDelaySeconds: 15, PeriodSeconds: 1, TimeoutSeconds: 15, FailureThreshold: 1,
			}
			if labelled {
				protected(pod)
			}
		})
		pod := s.create(ctx, template)
		b.lives = append(b.lives, &countedLife{name: pod.Name, uid: pod.UID, labelled: labelled, counts: counts{}})
	}
	for _, life := range b.lives {
		s.awaitServing(ctx, life.name, life.uid)
	}
	if !first {
		pause(ctx, settle)
		steadyFrom = time.Now()
		pause(ctx, steady)
		steadyTo = time.Now()
		for _, life := range b.lives {
			s.request(ctx, life.name, "/fail", map[string]string{"on": "true"})
		}
		for _, life := range b.lives {
			s.awaitRestarts(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: life.name}}, 1)
			s.awaitServing(ctx, life.name, life.uid)
		}
		pause(ctx, settle)
	}
	for _, life := range b.lives {
		Expect(client.CoreV1().Pods(s.namespace).Delete(ctx, life.name, metav1.DeleteOptions{})).To(Succeed(), "delete pod %s", life.name)
	}
	b.lived = time.Since(created)
	for _, life := range b.lives {
		s.awaitGone(ctx, &subject{name: life.name, namespace: s.namespace, uid: life.uid}, collection)
	}
	if !first {
		Eventually(func(g Gomega) {
			removed := map[string]bool{}
			for _, call := range proxy.Calls() {
				if call.Method == "RemovePodSandbox" && !call.Running {
					removed[call.PodUID] = true
				}
			}
			for _, life := range b.lives {
				g.Expect(removed).To(HaveKey(string(life.uid)), "sandboxes that the kubelet has removed")
			}
		}).WithContext(ctx).WithTimeout(collection).Should(Succeed())
		pause(ctx, settle)
	}
	return steadyFrom, steadyTo
}

func pause(ctx context.Context, d time.Duration) {
	GinkgoHelper()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		Fail("interrupted: " + context.Cause(ctx).Error())
	}
}

// lifeIn returns the life whose UID is in a path.
func lifeIn(lives []*countedLife, path string) *countedLife {
	for _, life := range lives {
		if strings.Contains(path, string(life.uid)) {
			return life
		}
	}
	return nil
}

// runtimeRow names a call, and for lists by what.
func runtimeRow(call criproxy.Call) string {
	switch {
	case !call.Filtered:
		return call.Method
	case call.ContainerID != "":
		return call.Method + " by container"
	case call.SandboxID != "":
		return call.Method + " by sandbox"
	case call.PodUID != "":
		return call.Method + " by pod"
	}
	return call.Method + " by state"
}
