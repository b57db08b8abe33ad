package framework

import (
	"context"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/node-e2e/images"
)

// Periods that hold for pods on every node.
const (
	// GracePeriod is short because the workload ends on SIGTERM at once; a deletion
	// that takes this long was not passed on to the process.
	GracePeriod = 5 * time.Second
	// APILag covers a status or an event on its way to the API; the kubelet syncs
	// statuses at least every 10 s.
	APILag = 20 * time.Second
	// KillTimeout is how long a stock kubelet may take to kill what it kills. It needs 2 s
	// on an idle machine; housekeeping and resyncs run every 2 and 10 s.
	KillTimeout = 30 * time.Second
	// HoldPeriod is how long a pod must have been kept, from the moment on when others
	// under the same fault were dead: three times the 2 s within which each of the kubelet's
	// loops runs (housekeeping 2 s, PLEG 1 s, config sources 1 s), so that a kill that is
	// merely late is seen.
	HoldPeriod = 6 * time.Second
)

// The workload of all pods.
const (
	WorkloadContainer = "workload"
	WorkloadPort      = 8080
)

// NewContainer returns a container that serves HTTP and is ready as soon as it responds.
func NewContainer(name string, port int32) corev1.Container {
	return corev1.Container{
		Name:            name,
		Image:           images.Workload,
		ImagePullPolicy: corev1.PullNever,
		Ports:           []corev1.ContainerPort{{ContainerPort: port}},
		ReadinessProbe: &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(port)}},
			PeriodSeconds: 1,
		},
	}
}

// DeletePods deletes the pods of a namespace and expects that none is left. It is for
// Eventually.
func DeletePods(g gomega.Gomega, ctx context.Context, client kubernetes.Interface, namespace string) {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	g.Expect(err).NotTo(gomega.HaveOccurred())
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			err := client.CoreV1().Pods(namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](1)})
			g.Expect(ctrlclient.IgnoreNotFound(err)).To(gomega.Succeed())
		}
	}
	g.Expect(pods.Items).To(gomega.BeEmpty(), "pods of the namespace %s", namespace)
}

// DeleteNamespace deletes a namespace in which nothing runs any more, so it does not wait
// for the namespace controller.
func DeleteNamespace(ctx context.Context, client kubernetes.Interface, namespace string) {
	ginkgo.GinkgoHelper()
	gomega.Expect(ctrlclient.IgnoreNotFound(client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}))).To(gomega.Succeed())
}
