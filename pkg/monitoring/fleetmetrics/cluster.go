package fleetmetrics

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/paging"
)

// Cluster is a Lister that watches the pods with the protection label, and reads nodes
// and budgets from caches. It is a manager.Runnable. Every replica runs it: a gauge that
// moves from one leader to the next has gaps, and a gap resets an alert that waits.
type Cluster struct {
	core    kubernetes.Interface
	nodes   client.Reader
	budgets Budgets
	pods    *pods
}

// NewCluster returns a Cluster that has not started. The reader of nodes is a cache that
// keeps the versions of the kubelets.
func NewCluster(core kubernetes.Interface, nodes client.Reader, budgets Budgets) *Cluster {
	return &Cluster{core: core, nodes: nodes, budgets: budgets, pods: newPods()}
}

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (*Cluster) NeedLeaderElection() bool { return false }

// Start watches until the context ends.
func (c *Cluster) Start(ctx context.Context) error {
	source := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{ListWithContextFunc: c.list, WatchFuncWithContext: c.watch}, c.core)
	cache.NewReflectorWithOptions(source, &corev1.Pod{}, c.pods, cache.ReflectorOptions{Name: "protected pods"}).RunWithContext(ctx)
	return nil
}

// list lists the pods, for a server that does not stream lists.
func (c *Cluster) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	options.LabelSelector = admission.ProtectedPods.String()
	return paging.List(ctx, options, func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return c.core.CoreV1().Pods(metav1.NamespaceAll).List(ctx, options)
	}, func(object runtime.Object) (runtime.Object, error) { return sightingIn(object) })
}

// watch watches the pods. A server that streams lists starts with those that there are.
func (c *Cluster) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.LabelSelector = admission.ProtectedPods.String()
	return c.core.CoreV1().Pods(metav1.NamespaceAll).Watch(ctx, options)
}

// readTimeout bounds how long a read of the metrics waits for the cache of nodes.
const readTimeout = time.Second

// Nodes implements Lister.
func (c *Cluster) Nodes(visit func(name, kubeletVersion string)) error {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	var list corev1.NodeList
	if err := c.nodes.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	for i := range list.Items {
		visit(list.Items[i].Name, list.Items[i].Status.NodeInfo.KubeletVersion)
	}
	return nil
}

// ProtectedPods implements Lister.
func (c *Cluster) ProtectedPods(visit func(node string, pods int)) error { return c.pods.byNode(visit) }

// WithoutBudget implements Lister.
func (c *Cluster) WithoutBudget() (int, error) { return c.pods.withoutBudget(c.budgets) }

// ProtectedNodes calls visit with the name of each node that protected pods are bound to.
func (c *Cluster) ProtectedNodes(visit func(node string)) error {
	return c.pods.byNode(func(node string, _ int) { visit(node) })
}
