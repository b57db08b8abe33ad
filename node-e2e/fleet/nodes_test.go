package fleet

import (
	"context"
	"fmt"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/cluster/kind"
	"kubelet-guard.io/node-e2e/cluster/testnode"
	"kubelet-guard.io/node-e2e/framework"
)

const (
	// nodeReady covers a kubelet that has to come back with a back-off, and the node
	// controller that looks every 5 s.
	nodeReady = 90 * time.Second
	// nodeLost covers the 50 s after which the node controller calls a silent node
	// unreachable, and its rounds.
	nodeLost = 90 * time.Second
)

// awaitReady waits until nodes are Ready and have none of the taints that the node
// controller sets.
func awaitReady(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		for _, node := range nodes {
			object := framework.Try(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})).In(g)
			g.Expect(testnode.NodeReady(object)).To(BeTrue(), "condition Ready of node %s: %v", node.Name(), object.Status.Conditions)
			for _, taint := range object.Spec.Taints {
				g.Expect(taint.Key).NotTo(BeElementOf(corev1.TaintNodeUnreachable, corev1.TaintNodeNotReady), "taint of node %s", node.Name())
			}
		}
	}).WithTimeout(nodeReady).Should(Succeed(), "the nodes are Ready")
}

// awaitUnreachable waits until the node controller has given up a node.
func awaitUnreachable(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		for _, node := range nodes {
			g.Expect(framework.Try(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})).In(g).Spec.Taints).To(ContainElement(And(
				HaveField("Key", corev1.TaintNodeUnreachable), HaveField("Effect", corev1.TaintEffectNoExecute))), "taints of node %s", node.Name())
		}
	}).WithTimeout(nodeLost).Should(Succeed(), "the nodes are unreachable")
}

// disconnect disconnects nodes from the network, and reconnects them at the end of the spec
// if that has not happened before.
func disconnect(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	DeferCleanup(func(ctx SpecContext) { reconnect(ctx, nodes...) }, NodeTimeout(cleanTimeout))
	Expect(inParallel(nodes, func(n *kind.Node) error { return n.Disconnect(ctx) })).To(Succeed(), "disconnect the nodes from the network")
}

// reconnect connects nodes with the network again and waits until they are Ready. It may be
// called again.
func reconnect(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	Expect(inParallel(nodes, func(n *kind.Node) error { return n.Reconnect(ctx) })).To(Succeed(), "reconnect the nodes")
	awaitReady(ctx, nodes...)
}

// pause freezes everything on nodes, and lets them go on at the end of the spec if
// that has not happened before.
func pause(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	DeferCleanup(func(ctx SpecContext) {
		// One that runs already is no reason to fail here: awaitReady finds out.
		_ = inParallel(nodes, func(n *kind.Node) error { return n.Unpause(ctx) })
		awaitReady(ctx, nodes...)
	}, NodeTimeout(cleanTimeout))
	Expect(inParallel(nodes, func(n *kind.Node) error { return n.Pause(ctx) })).To(Succeed(), "freeze the nodes")
}

// unpause lets nodes go on and waits until they are Ready.
func unpause(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	Expect(inParallel(nodes, func(n *kind.Node) error { return n.Unpause(ctx) })).To(Succeed(), "let the nodes go on")
	awaitReady(ctx, nodes...)
}

// stopKubelet stops the kubelets of nodes, and starts them at the end of the spec.
func stopKubelet(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	DeferCleanup(func(ctx SpecContext) { startKubelet(ctx, nodes...) }, NodeTimeout(cleanTimeout))
	Expect(inParallel(nodes, func(n *kind.Node) error {
		return framework.ErrorOf(n.Exec(ctx, "systemctl", "stop", "kubelet"))
	})).To(Succeed(), "stop the kubelets")
}

// startKubelet starts the kubelets of nodes and waits until they are Ready.
func startKubelet(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	Expect(inParallel(nodes, func(n *kind.Node) error {
		return framework.ErrorOf(n.Exec(ctx, "systemctl", "start", "kubelet"))
	})).To(Succeed(), "start the kubelets")
	awaitReady(ctx, nodes...)
}

// restartKubelet restarts the kubelets of nodes and waits until they are Ready.
func restartKubelet(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	Expect(inParallel(nodes, func(n *kind.Node) error { return n.RestartKubelet(ctx) })).To(Succeed(), "restart the kubelets")
	awaitReady(ctx, nodes...)
}

// setCordon cordons or uncordons nodes, by kubectl.
func setCordon(ctx context.Context, on bool, nodes ...*kind.Node) {
	GinkgoHelper()
	verb := "uncordon"
	if on {
		verb = "cordon"
		DeferCleanup(func(ctx SpecContext) { setCordon(ctx, false, nodes...) }, NodeTimeout(cleanTimeout))
	}
	kubectl(ctx, append([]string{verb}, namesOf(nodes)...)...)
}

func namesOf(nodes []*kind.Node) []string {
	names := make([]string, len(nodes))
	for i, node := range nodes {
		names[i] = node.Name()
	}
	return names
}

// labelNode sets a label of a node, or removes it when the value is empty.
func labelNode(ctx context.Context, node *kind.Node, key, value string) {
	GinkgoHelper()
	text := "null"
	if value != "" {
		text = fmt.Sprintf("%q", value)
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, key, text)
	framework.Must(client.CoreV1().Nodes().Patch(ctx, node.Name(), types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
}

// deleteNodeObjects deletes the objects of nodes. At the end of the spec, nodes that
// have none are registered again, with the labels that they had.
func deleteNodeObjects(ctx context.Context, nodes ...*kind.Node) {
	GinkgoHelper()
	for _, node := range nodes {
		before := framework.Must(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			_, err := client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				restartKubelet(ctx, node)
			}
			for key, value := range before.Labels {
				if strings.HasPrefix(key, "e2e.") {
					continue // a spec's own
				}
				labelNode(ctx, node, key, value)
			}
		}, NodeTimeout(cleanTimeout))
		Expect(client.CoreV1().Nodes().Delete(ctx, node.Name(), metav1.DeleteOptions{})).To(Succeed(), "delete node %s", node.Name())
	}
}

// freeCPU is what a node has left for pods, in thousandths of a core.
func freeCPU(ctx context.Context, node *kind.Node) int64 {
	GinkgoHelper()
	object := framework.Must(client.CoreV1().Nodes().Get(ctx, node.Name(), metav1.GetOptions{}))
	pods := framework.Must(client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node.Name()}))
	free := object.Status.Allocatable.Cpu().MilliValue()
	for _, pod := range pods.Items {
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, container := range pod.Spec.Containers {
			free -= container.Resources.Requests.Cpu().MilliValue()
		}
	}
	return free
}
