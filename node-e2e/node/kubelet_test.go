package node

import (
	"context"
	"fmt"
	"io"
	"os"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
)

// kubeletChanged reports whether the running spec has taken the kubelet out of its
// normal state, and so whether a clean-up will restore it.
var kubeletChanged bool

// unchanged starts the kubelet in its normal configuration.
var unchanged testnode.KubeletChange

// stopKubelet stops the kubelet; the spec's end starts it again at the latest.
func stopKubelet(ctx context.Context) {
	GinkgoHelper()
	endKubelet(ctx, provider.Node().Kubelet().Stop)
}

// killKubelet is stopKubelet without a chance for the kubelet to do anything.
func killKubelet(ctx context.Context) {
	GinkgoHelper()
	endKubelet(ctx, provider.Node().Kubelet().Kill)
}

func endKubelet(ctx context.Context, end func(context.Context) error) {
	GinkgoHelper()
	if !kubeletChanged {
		kubeletChanged = true
		DeferCleanup(func(ctx SpecContext) {
			kubeletChanged = false
			normalKubelet(ctx)
		}, NodeTimeout(2*kubeletStart))
	}
	keepCounters(ctx)
	Expect(end(ctx)).To(Succeed(), "stop the kubelet")
}

// startKubelet starts a stopped kubelet and waits until it is healthy.
func startKubelet(ctx context.Context, change testnode.KubeletChange) {
	GinkgoHelper()
	ctx, cancel := context.WithTimeout(ctx, kubeletStart)
	defer cancel()
	Expect(provider.Node().Kubelet().Start(ctx, change)).To(Succeed(), "start the kubelet; its log is %s", provider.Node().Kubelet().LogPath())
}

func restartKubelet(ctx context.Context, change testnode.KubeletChange) {
	GinkgoHelper()
	stopKubelet(ctx)
	startKubelet(ctx, change)
}

// restartLeaving restarts the kubelet with a change that leaves so much of a resource to
// pods, and shows that in the node's status at once. The kubelet admits its pods by what
// the API says of its node. Whether its own new figure is there by then is a race that
// it wins on one node and loses, until its next start, on another.
func restartLeaving(ctx context.Context, name corev1.ResourceName, left int64, change testnode.KubeletChange) {
	GinkgoHelper()
	stopKubelet(ctx)
	showAllocatable(ctx, name, left)
	startKubelet(ctx, change)
}

// usualAllocatable is what the node's status says without showAllocatable, if the
// running spec has changed that.
var usualAllocatable corev1.ResourceList

// shownResources are those of which specs change what is left to pods.
var shownResources = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourcePods}

// amount is a quantity in the unit of showAllocatable.
func amount(name corev1.ResourceName, quantity resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return quantity.MilliValue()
	}
	return quantity.Value()
}

// showAllocatable writes into the node's status what is left to pods of a resource: of
// CPU, thousandths of a core.
func showAllocatable(ctx context.Context, name corev1.ResourceName, left int64) {
	GinkgoHelper()
	node := framework.Must(client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{}))
	if usualAllocatable == nil {
		usualAllocatable = node.Status.Allocatable
	}
	quantity := fmt.Sprint(left)
	if name == corev1.ResourceCPU {
		quantity += "m"
	}
	patch := fmt.Sprintf(`{"status":{"allocatable":{%q:%q}}}`, name, quantity)
	framework.Must(client.CoreV1().Nodes().Patch(ctx, provider.Node().Name(), types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"))
}

// normalKubelet restarts the kubelet in its normal configuration, also from within
// a clean-up.
func normalKubelet(ctx context.Context) {
	GinkgoHelper()
	keepCounters(ctx)
	Expect(provider.Node().Kubelet().Stop(ctx)).To(Succeed(), "stop the kubelet")
	for _, name := range shownResources {
		if usual, changed := usualAllocatable[name]; changed {
			showAllocatable(ctx, name, amount(name, usual))
		}
	}
	startKubelet(ctx, unchanged)
	if usualAllocatable == nil {
		return
	}
	// Before that, the next spec's pods would be rejected.
	Eventually(func(g Gomega) {
		node := framework.Try(client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{})).In(g)
		for _, name := range shownResources {
			left, usual := node.Status.Allocatable[name], usualAllocatable[name]
			g.Expect(left.Cmp(usual)).To(BeZero(), "%s: %s of usually %s", name, &left, &usual)
		}
	}).WithContext(ctx).WithTimeout(apiLag).Should(Succeed(), "the node's status has again what is left to pods")
	usualAllocatable = nil
}

// stopAPIServer stops the API server; the returned function, or the spec's end,
// starts it again.
func stopAPIServer(ctx context.Context) (start func(context.Context)) {
	GinkgoHelper()
	down := true
	start = func(ctx context.Context) {
		if down {
			Expect(provider.Node().APIServer().Start(ctx)).To(Succeed(), "start the API server")
			down = false
		}
	}
	DeferCleanup(start)
	Expect(provider.Node().APIServer().Stop(ctx)).To(Succeed(), "stop the API server")
	return start
}

// kubeletLog returns a function that returns what the kubelet has logged since.
func kubeletLog() (since func() string) {
	GinkgoHelper()
	path := provider.Node().Kubelet().LogPath()
	before := framework.Must(os.Stat(path))
	return func() string {
		GinkgoHelper()
		log := framework.Must(os.Open(path))
		defer log.Close()
		return string(framework.Must(io.ReadAll(io.NewSectionReader(log, before.Size(), 1<<30))))
	}
}

// nodeMilliCPU is the node's capacity in thousandths of a core. Specs request
// shares of it, so that they mean the same on every machine.
func nodeMilliCPU(ctx context.Context) int64 {
	GinkgoHelper()
	return nodeCapacity(ctx).Cpu().MilliValue()
}

func nodeCapacity(ctx context.Context) *corev1.ResourceList {
	GinkgoHelper()
	return &framework.Must(client.CoreV1().Nodes().Get(ctx, provider.Node().Name(), metav1.GetOptions{})).Status.Capacity
}

func cpuAndMemory(milliCPU int64) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(milliCPU, resource.DecimalSI),
		corev1.ResourceMemory: resource.MustParse("16Mi"),
	}
}
