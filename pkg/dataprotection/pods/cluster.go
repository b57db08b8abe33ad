package pods

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/ptr"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// cluster is what the API server has, as far as it decides which pods come back.
type cluster struct {
	nodes map[string]*corev1.Node
	// namespaces that are not terminating.
	namespaces map[string]bool
	// pods, claims and controllers are those of the namespaces of the pods in question.
	pods        []corev1.Pod
	claims      map[types.NamespacedName]*corev1.PersistentVolumeClaim
	volumes     map[string]*corev1.PersistentVolume
	controllers []*controller
	// records has the UIDs of PodDeletion records.
	records map[types.UID]bool
	// ownerPresent is restore.API.OwnerPresent.
	ownerPresent func(ctx context.Context, namespace string, owner metav1.OwnerReference) (bool, error)
}

// controller is a workload that adopts pods and deletes those that are too many.
type controller struct {
	kind, namespace, name string
	uid                   types.UID
	selector              labels.Selector
	// replicas and, of a StatefulSet, the first ordinal. A DaemonSet has one pod per node.
	replicas, start int
}

// String is how messages name the controller.
func (c *controller) String() string { return c.kind + " " + c.name }

// readCluster reads what decides about pods of the namespaces.
func readCluster(ctx context.Context, client kubernetes.Interface, metadataClient metadata.Interface, namespaces map[string]bool) (*cluster, error) {
	c := &cluster{
		nodes: map[string]*corev1.Node{}, namespaces: map[string]bool{}, records: map[types.UID]bool{},
		claims: map[types.NamespacedName]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{},
	}
	all := metav1.ListOptions{}
	nodes, err := client.CoreV1().Nodes().List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	for i := range nodes.Items {
		c.nodes[nodes.Items[i].Name] = &nodes.Items[i]
	}
	volumes, err := client.CoreV1().PersistentVolumes().List(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("listing volumes: %w", err)
	}
	for i := range volumes.Items {
		c.volumes[volumes.Items[i].Name] = &volumes.Items[i]
	}
	// Without the definition, as in an empty etcd, there are no records.
	records, err := metadataClient.Resource(guardv1alpha1.GroupVersion.WithResource("poddeletions")).List(ctx, all)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("listing PodDeletion records: %w", err)
	}
	if err == nil {
		for i := range records.Items {
			c.records[types.UID(records.Items[i].Name)] = true
		}
	}
	for namespace := range namespaces {
		if err := c.readNamespace(ctx, client, namespace); err != nil {
			return nil, fmt.Errorf("namespace %s: %w", namespace, err)
		}
	}
	return c, nil
}

func (c *cluster) readNamespace(ctx context.Context, client kubernetes.Interface, name string) error {
	namespace, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	c.namespaces[name] = namespace.DeletionTimestamp == nil
	all := metav1.ListOptions{}
	pods, err := client.CoreV1().Pods(name).List(ctx, all)
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	c.pods = append(c.pods, pods.Items...)
	claims, err := client.CoreV1().PersistentVolumeClaims(name).List(ctx, all)
	if err != nil {
		return fmt.Errorf("listing claims: %w", err)
	}
	for i := range claims.Items {
		c.claims[types.NamespacedName{Namespace: name, Name: claims.Items[i].Name}] = &claims.Items[i]
	}
	return c.readControllers(ctx, client, name)
}

// readControllers reads the kinds that adopt pods by a selector that outlives them. That of a Job
// is its UID.
func (c *cluster) readControllers(ctx context.Context, client kubernetes.Interface, namespace string) error {
	all := metav1.ListOptions{}
	add := func(kind string, m metav1.ObjectMeta, selector *metav1.LabelSelector, replicas *int32, start int) error {
		parsed, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			return fmt.Errorf("%s %s: %w", kind, m.Name, err)
		}
		c.controllers = append(c.controllers, &controller{
			kind: kind, namespace: namespace, name: m.Name, uid: m.UID, selector: parsed, replicas: int(ptr.Deref(replicas, 1)), start: start,
		})
		return nil
	}
	replicaSets, err := client.AppsV1().ReplicaSets(namespace).List(ctx, all)
	if err != nil {
		return fmt.Errorf("listing ReplicaSets: %w", err)
	}
	for _, o := range replicaSets.Items {
		if err := add(kindReplicaSet, o.ObjectMeta, o.Spec.Selector, o.Spec.Replicas, 0); err != nil {
			return err
		}
	}
	statefulSets, err := client.AppsV1().StatefulSets(namespace).List(ctx, all)
	if err != nil {
		return fmt.Errorf("listing StatefulSets: %w", err)
	}
	for _, o := range statefulSets.Items {
		start := int(ptr.Deref(o.Spec.Ordinals, appsv1.StatefulSetOrdinals{}).Start)
		if err := add(kindStatefulSet, o.ObjectMeta, o.Spec.Selector, o.Spec.Replicas, start); err != nil {
			return err
		}
	}
	daemonSets, err := client.AppsV1().DaemonSets(namespace).List(ctx, all)
	if err != nil {
		return fmt.Errorf("listing DaemonSets: %w", err)
	}
	for _, o := range daemonSets.Items {
		if err := add(kindDaemonSet, o.ObjectMeta, o.Spec.Selector, nil, 0); err != nil {
			return err
		}
	}
	controllers, err := client.CoreV1().ReplicationControllers(namespace).List(ctx, all)
	if err != nil {
		return fmt.Errorf("listing ReplicationControllers: %w", err)
	}
	for _, o := range controllers.Items {
		if err := add(kindReplicationController, o.ObjectMeta, metav1.SetAsLabelSelector(o.Spec.Selector), o.Spec.Replicas, 0); err != nil {
			return err
		}
	}
	return nil
}
