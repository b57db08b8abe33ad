package node

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// labelLoad marks what measures the load that held pods put on the API server.
const labelLoad = "load"

var (
	loadFlag       = flag.String("load-results", "", "file that receives the table of requests to the API server; empty skips the measurement")
	loadPodsFlag   = flag.Int("load-pods", 110, "protected pods that are held")
	loadWindowFlag = flag.Duration("load-window", 2*time.Minute, "how long the requests of one row are counted")
	loadLaterFlag  = flag.Duration("load-later", 20*time.Minute, "how long after the beginning the second count is made; the events of a hundred pods take that long")
)

// loadPodStart bounds the start of all pods of the measurement on a loaded machine.
const loadPodStart = 15 * time.Minute

// What is counted are the kubelet's own requests, by its own account
// (rest_client_requests_total): whatever it asks, refused or not. A watch that stays is
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
