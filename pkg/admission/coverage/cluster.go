package coverage

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Cluster is a Lister that watches the pods with the protection label and reads the
// nodes from a cache. It is a manager.Runnable. Every replica runs it: a gauge that
// moves from one leader to the next has gaps, and a gap resets an alert that waits.
type Cluster struct {
	nodes client.Reader
	pods  cache.SharedIndexInformer
}

// NewCluster returns a Cluster that has not started. The reader of nodes is a cache that
// keeps the versions of the kubelets.
func NewCluster(core kubernetes.Interface, nodes client.Reader) (*Cluster, error) {
	selector := labels.Set{guardv1alpha1.ExplicitDeletionLabel: guardv1alpha1.ExplicitDeletionRequired}.String()
	factory := informers.NewSharedInformerFactoryWithOptions(core, 0, informers.WithTweakListOptions(func(options *metav1.ListOptions) {
		options.LabelSelector = selector
	}))
	c := &Cluster{nodes: nodes, pods: factory.Core().V1().Pods().Informer()}
	return c, c.pods.SetTransform(shrink)
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Cluster) NeedLeaderElection() bool { return false }

// Start watches until the context ends.
func (c *Cluster) Start(ctx context.Context) error {
	c.pods.RunWithContext(ctx)
	return nil
}

// readTimeout bounds how long a read of the metrics waits for the cache of nodes.
const readTimeout = time.Second

var errNotFilled = errors.New("the cache of protected pods is not filled yet")

// Nodes implements Lister.
func (c *Cluster) Nodes(visit func(name, kubeletVersion string)) error {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	var list corev1.NodeList
	if err := c.nodes.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return err
	}
	for i := range list.Items {
		visit(list.Items[i].Name, list.Items[i].Status.NodeInfo.KubeletVersion)
	}
	return nil
}

// ProtectedPods implements Lister.
func (c *Cluster) ProtectedPods(visit func(node string)) error {
	if !c.pods.HasSynced() {
		return errNotFilled
	}
	for _, object := range c.pods.GetStore().List() {
		if pod, ok := object.(*corev1.Pod); ok && runs(pod) {
			visit(pod.Spec.NodeName)
		}
	}
	return nil
}

// ProtectedNodes implements nodes.ProtectedNodes.
func (c *Cluster) ProtectedNodes(visit func(node string)) error {
	seen := map[string]bool{}
	return c.ProtectedPods(func(node string) {
		if !seen[node] {
			seen[node] = true
			visit(node)
		}
	})
}

// shrink drops what is not counted: all labelled pods of the cluster are in memory.
func shrink(object any) (any, error) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion},
		Spec:       corev1.PodSpec{NodeName: pod.Spec.NodeName},
		Status:     corev1.PodStatus{Phase: pod.Status.Phase},
	}, nil
}
