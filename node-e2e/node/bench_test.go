package node

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// labelBenchmark marks what measures and does not judge.
const labelBenchmark = "benchmark"

var (
	benchFlag       = flag.String("bench-results", "", "file that receives the measurements in Go's benchmark format; empty skips them")
	benchBlocksFlag = flag.Int("bench-blocks", 12, "blocks of the benchmark: lives of a kubelet, half of them stock. A multiple of 4")
	benchPodsFlag   = flag.Int("bench-pods", 6, "protected pods in a block, and as many unprotected ones")
)

// benchPod bounds one measurement. It is no threshold: what takes longer is broken.
const benchPod = time.Minute

// The guarded kubelet is compared with the stock one on one node in one run. The
// kubelet's binary is swapped between blocks, in the order stock, guarded, guarded,
// stock, so that a drift of the machine hits both alike. Pods come one after the
// other, protected and unprotected in turn. Nothing is asserted about the figures:
// benchstat compares them and says how sure that is.
//
//   - PodStart: from the request that creates the pod until its container's process
//     runs, by the runtime's own record of that moment (nanoseconds). What the API
//     says comes up to a second later, because the kubelet queries the runtime once
//     a second, so that it would hide what the guard adds.
//   - PodRunning: from the same request until the API shows phase Running.
//   - PodStop: from the request that deletes the pod until its process has ended, by
//     the kernel's notice (pidfd). The process ends on SIGTERM at once.
//   - PodGone: from the same request until the object is gone.
//   - KubeletCPU: processor time of the kubelet in a block, per pod.
//   - KubeletMemory: the kubelet's resident memory at the end of a block.
var _ = Describe("The cost of the guard", Label(labelGuarded, labelBenchmark), func() {
	It("is measured against the stock kubelet", func(ctx SpecContext) {
		if *benchFlag == "" {
			Skip("-bench-results names no file (make bench-node)")
		}
		Expect(*benchBlocksFlag%4).To(BeZero(), "-bench-blocks %d: must be a multiple of 4, or one kubelet is measured later than the other", *benchBlocksFlag)
		Expect(os.MkdirAll(filepath.Dir(*benchFlag), 0o755)).To(Succeed())
		file := framework.Must(os.Create(*benchFlag))
		DeferCleanup(file.Close)
		fmt.Fprintf(file, "goos: %s\ngoarch: %s\npkg: kubelet-guard.io/node-e2e\ncores: %d\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
		b := &bench{scene: newScene(ctx), out: file}
		for block := range *benchBlocksFlag {
			b.kubelet = []Variant{Stock, Guarded, Guarded, Stock}[block%4]
			b.block(ctx)
			framework.Progress("benchmark: block %d of %d (%s) done", block+1, *benchBlocksFlag, b.kubelet)
		}
	}, NodeTimeout(time.Hour))
})

// bench writes what it measures as lines of Go's benchmark format.
type bench struct {
	*scene
	out     io.Writer
	kubelet Variant
	pods    int
}

// emit writes one measurement. The sub-benchmark's name says which pod, if any, and
// which kubelet, in the form by which benchstat sorts.
func (b *bench) emit(name, pod string, value float64, unit string) {
	GinkgoHelper()
	if pod != "" {
		name += "/pod=" + pod
	}
	framework.Must(fmt.Fprintf(b.out, "Benchmark%s/kubelet=%s 1 %.0f %s\n", name, b.kubelet, value, unit))
}

// block is one life of a kubelet.
func (b *bench) block(ctx context.Context) {
	GinkgoHelper()
	restartKubelet(ctx, testnode.KubeletChange{Binary: kubeletBinary(b.kubelet)})
	// The first pod pays for what the kubelet does once.
	b.cycle(ctx, "unprotected", false)
	cpu, _ := kubeletUsage(ctx)
	for n := range *benchPodsFlag {
		kinds := []string{"protected", "unprotected"}
		if n%2 == 1 {
			kinds[0], kinds[1] = kinds[1], kinds[0]
		}
		for _, kind := range kinds {
			b.cycle(ctx, kind, true)
		}
	}
	after, memory := kubeletUsage(ctx)
	b.emit("KubeletCPU", "", (after-cpu)*float64(time.Second)/float64(2**benchPodsFlag), "ns/op")
	b.emit("KubeletMemory", "", memory, "resident-bytes")
}

// kubeletUsage reads the kubelet's account of itself: seconds of processor time,
// and bytes of resident memory.
func kubeletUsage(ctx context.Context) (cpu, memory float64) {
	GinkgoHelper()
	metrics := mustReadMetrics(ctx)
	cpu, memory = metrics.Sum("process_cpu_seconds_total"), metrics.Sum("process_resident_memory_bytes")
	Expect(cpu).To(BeNumerically(">", 0), "process_cpu_seconds_total of the kubelet")
	Expect(memory).To(BeNumerically(">", 0), "process_resident_memory_bytes of the kubelet")
	return cpu, memory
}

// cycle creates a pod, waits until it runs, deletes it and waits until it is gone.
func (b *bench) cycle(ctx context.Context, kind string, measured bool) {
	GinkgoHelper()
	ctx, cancel := context.WithTimeout(ctx, benchPod)
	defer cancel()
	b.pods++
	template := b.newPod(fmt.Sprintf("%s-%d", kind, b.pods))
	template.Spec.Containers[0].ReadinessProbe = nil
	if kind == "protected" {
		protected(template)
	}
	watcher, err := client.CoreV1().Pods(b.namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, template.Name).String(),
	})
	Expect(err).NotTo(HaveOccurred(), "watch pod %s", template.Name)
	defer watcher.Stop()

	sleepAtRandom(ctx)
	created := time.Now()
	pod := b.create(ctx, template)
	err = awaitEvent(ctx, watcher, func(event watch.Event) bool {
		object, ok := event.Object.(*corev1.Pod)
		return ok && object.Status.Phase == corev1.PodRunning
	})
	running := time.Since(created)
	Expect(err).NotTo(HaveOccurred(), "await phase Running of pod %s", pod.Name)
	containers := framework.Must(containersOf(ctx, pod.UID))
	Expect(containers).To(HaveKey(workloadContainer), "running containers of pod %s", pod.Name)
	container := containers[workloadContainer]

	ended := awaitExit(container.Process)
	sleepAtRandom(ctx)
	deleted := time.Now()
	Expect(client.CoreV1().Pods(b.namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})).To(Succeed(), "delete pod %s", pod.Name)
	err = awaitEvent(ctx, watcher, func(event watch.Event) bool { return event.Type == watch.Deleted })
	gone := time.Since(deleted)
	Expect(err).NotTo(HaveOccurred(), "await the end of the object of pod %s", pod.Name)
	var end time.Time
	Eventually(ended).WithContext(ctx).Should(Receive(&end), "the process of pod %s (%s) ends", pod.Name, container.Process)
	if !measured {
		return
	}
	b.emit("PodStart", kind, float64(container.StartedAt.Sub(created)), "ns/op")
	b.emit("PodRunning", kind, float64(running), "ns/op")
	b.emit("PodStop", kind, float64(end.Sub(deleted)), "ns/op")
	b.emit("PodGone", kind, float64(gone), "ns/op")
}

// sleepAtRandom waits for up to two periods of the kubelet's relist. Whether a pod is
// deleted right after one or right before makes a second, and would be the same for all
// pods of a block otherwise.
func sleepAtRandom(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(rand.N(2 * time.Second)):
	}
}

// awaitEvent waits for the first event that fits. It does not stop the watch.
func awaitEvent(ctx context.Context, watcher watch.Interface, fits func(watch.Event) bool) error {
	var last watch.EventType
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; the last event was %q", context.Cause(ctx), last)
		case event, open := <-watcher.ResultChan():
			if !open {
				return fmt.Errorf("the watch ended; the last event was %q", last)
			}
			if fits(event) {
				return nil
			}
			last = event.Type
		}
	}
}

// awaitExit returns the moment at which a process ends, once it has.
func awaitExit(process testnode.Process) <-chan time.Time {
	GinkgoHelper()
	fd := framework.Must(unix.PidfdOpen(process.PID, 0))
	Expect(process.Alive()).To(BeTrue(), "%s still is the process that was started", process)
	ended := make(chan time.Time, 1)
	go func() {
		defer unix.Close(fd)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(poll, -1); n > 0 {
				ended <- time.Now()
				return
			} else if err != nil && err != unix.EINTR {
				return
			}
		}
	}()
	return ended
}

// labelLoad marks what measures the load that held pods put on the API server.
const labelLoad = "load"

var (
	loadFlag       = flag.String("load-results", "", "file that receives the table of requests to the API server; empty skips the measurement")
	loadPodsFlag   = flag.Int("load-pods", 110, "protected pods that are held")
	loadWindowFlag = flag.Duration("load-window", 2*time.Minute, "how long the requests of one row are counted")
	loadLaterFlag  = flag.Duration("load-later", 20*time.Minute, "how long after the start the second count is made; the events of a hundred pods take that long")
)

// loadPodStart bounds the start of all pods of the measurement on a loaded machine.
const loadPodStart = 15 * time.Minute

// What is counted are the kubelet's own requests, by its own account
// (rest_client_requests_total): whatever it requests, refused or not. A watch that stays is
// one request. Each pod has a secret and a config map of its own, in a volume and in its
// environment, and a token, which a kubelet requests again and again.
var _ = Describe("The load of held pods on the API server", Label(labelGuarded, labelLoad), func() {
	It("is measured against the stock kubelet without them", func(ctx SpecContext) {
		if *loadFlag == "" {
			Skip("-load-results names no file (make load-node)")
		}
		applyManifests(ctx)
		Expect(os.MkdirAll(filepath.Dir(*loadFlag), 0o755)).To(Succeed())
		file := framework.Must(os.Create(*loadFlag))
		DeferCleanup(file.Close)
		tolerate(framework.DeletionLookups)
		// The runtime has to stop a hundred pods at once in the end.
		tolerate(runtimeQuestions)
		l := &load{scene: newScene(ctx), out: file}
		fmt.Fprintf(file, "%d protected pods, rows of %s, \"later\" is after %s, requests per minute:\n\n", *loadPodsFlag, *loadWindowFlag, *loadLaterFlag)
		fmt.Fprintln(file, "| | all | GET | POST | PATCH, PUT | refused (4xx) |\n|---|---|---|---|---|---|")
		change := testnode.KubeletChange{Configure: func(c *kubeletconfig.KubeletConfiguration) { c.MaxPods = int32(*loadPodsFlag + 20) }}

		stock := change
		stock.Binary = kubeletBinary(Stock)
		restartKubelet(ctx, stock)
		l.count(ctx, "stock, no pods", time.Minute)
		restartKubelet(ctx, change)
		l.runMany(ctx)
		l.count(ctx, "guarded, all of them run", time.Minute)

		lost := time.Now()
		for _, pod := range l.pods {
			l.loseKey(ctx, pod)
		}
		DeferCleanup(l.releaseAll, NodeTimeout(loadPodStart))
		l.awaitAllHeld(ctx)
		l.count(ctx, "held, at once", 0)
		l.count(ctx, "held, later", time.Until(lost.Add(*loadLaterFlag)))
		restartKubelet(ctx, change)
		l.awaitAllHeld(ctx)
		l.count(ctx, "after a restart of the kubelet, at once", 0)
		l.count(ctx, "after a restart of the kubelet, later", *loadLaterFlag)
	}, NodeTimeout(2*time.Hour))
})

type load struct {
	*scene
	out  io.Writer
	pods []*subject
}

// runMany runs the pods and waits until the API shows all of them as running.
func (l *load) runMany(ctx context.Context) {
	GinkgoHelper()
	for n := range *loadPodsFlag {
		name := fmt.Sprintf("held-%03d", n)
		meta := metav1.ObjectMeta{Name: name}
		framework.Must(client.CoreV1().Secrets(l.namespace).Create(ctx, &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"KEY": "value"}}, metav1.CreateOptions{}))
		framework.Must(client.CoreV1().ConfigMaps(l.namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"SETTING": "value"}}, metav1.CreateOptions{}))
		template := l.newPod(name, protected)
		container := &template.Spec.Containers[0]
		container.ReadinessProbe = nil
		container.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}}
		container.VolumeMounts = []corev1.VolumeMount{{Name: "settings", MountPath: "/settings"}}
		template.Spec.Volumes = []corev1.Volume{{Name: "settings", VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}},
		}}}
		pod := l.create(ctx, template)
		l.pods = append(l.pods, &subject{name: pod.Name, namespace: pod.Namespace, uid: pod.UID})
	}
	Eventually(func(g Gomega) {
		list := framework.Try(client.CoreV1().Pods(l.namespace).List(ctx, metav1.ListOptions{FieldSelector: "status.phase=Running"})).In(g)
		g.Expect(list.Items).To(HaveLen(len(l.pods)), "running pods")
	}).WithContext(ctx).WithTimeout(loadPodStart).WithPolling(2*time.Second).Should(Succeed(), "all pods run")
}

// releaseAll ends the pods, for which the clean-up of a scene has not the time.
func (l *load) releaseAll(ctx SpecContext) {
	for _, pod := range l.pods {
		Expect(writeRelease(pod.uid)).To(Succeed(), "write the release file of pod %s", pod)
	}
	Eventually(func(g Gomega) {
		for _, c := range framework.Try(provider.Node().Runtime().Containers(ctx)).In(g) {
			g.Expect(c.PodNamespace).NotTo(Equal(l.namespace), "container %s of pod %s still runs", c.Name, c.PodName)
		}
		// A kubelet that starts while a hundred cgroups of ended containers are there takes
		// seconds for each (cAdvisor).
		g.Expect(framework.Try(readGuardPods(ctx)).In(g).Items).To(BeEmpty(), "pods that the guard has not forgotten")
	}).WithContext(ctx).WithPolling(2 * time.Second).WithTimeout(loadPodStart).Should(Succeed())
}

func (l *load) awaitAllHeld(ctx context.Context) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		list := framework.Try(readGuardPods(ctx)).In(g)
		held := slices.DeleteFunc(list.Items, func(pod guard.PodState) bool { return pod.State != guard.Held || pod.ObjectPresent })
		g.Expect(held).To(HaveLen(len(l.pods)), "held pods")
	}).WithContext(ctx).WithTimeout(5*time.Minute).WithPolling(2*time.Second).Should(Succeed(), "all pods are held")
}

// count writes a row about the requests of one window, after a while.
func (l *load) count(ctx context.Context, what string, after time.Duration) {
	GinkgoHelper()
	sleep := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	sleep(after)
	before, start := requestsOfKubelet(ctx), time.Now()
	sleep(*loadWindowFlag)
	minutes := time.Since(start).Minutes()
	later := requestsOfKubelet(ctx)
	var cells []string
	for _, match := range []func(method, code string) bool{
		func(string, string) bool { return true },
		func(method, _ string) bool { return method == "GET" },
		func(method, _ string) bool { return method == "POST" },
		func(method, _ string) bool { return method == "PATCH" || method == "PUT" },
		func(_, code string) bool { return strings.HasPrefix(code, "4") },
	} {
		n := 0.0
		for key, value := range later {
			if match(key.method, key.code) {
				n += value - before[key]
			}
		}
		cells = append(cells, fmt.Sprintf("%.1f", n/minutes))
	}
	line := fmt.Sprintf("| %s | %s |\n", what, strings.Join(cells, " | "))
	framework.Progress("load: %s", strings.TrimSpace(line))
	framework.Must(io.WriteString(l.out, line))
}

// request is a kind of request.
type request struct{ method, code string }

// requestsOfKubelet reads how many requests the kubelet has made to the API server.
func requestsOfKubelet(ctx context.Context) map[request]float64 {
	GinkgoHelper()
	found := map[request]float64{}
	for _, metric := range mustReadMetrics(ctx)["rest_client_requests_total"].GetMetric() {
		var key request
		for _, label := range metric.GetLabel() {
			switch label.GetName() {
			case "method":
				key.method = label.GetValue()
			case "code":
				key.code = label.GetValue()
			}
		}
		found[key] += metric.GetCounter().GetValue()
	}
	Expect(found).NotTo(BeEmpty(), "rest_client_requests_total of the kubelet")
	return found
}
