package protection

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/controller-runtime/pkg/client"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// pageSize bounds how many protected pods are counted.
const pageSize = 500

// Cluster finds protected pods in the cluster. It is safe for concurrent use.
type Cluster struct{ Metadata metadata.Interface }

// ProtectedPods implements Lister. Those that wait for a node count too: what a node
// runs next follows from the grant.
func (c Cluster) ProtectedPods(ctx context.Context, namespace string) (Protected, error) {
	list, err := c.Metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: guardv1alpha1.ExplicitDeletionLabel + "=" + guardv1alpha1.ExplicitDeletionRequired,
		FieldSelector: "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed),
		Limit:         pageSize,
	})
	if err != nil {
		return Protected{}, err
	}
	protected := Protected{Count: len(list.Items), More: list.Continue != ""}
	if protected.Count > 0 {
		protected.Example = list.Items[0].Name
	}
	return protected, nil
}

// CachedNamespaces reads the labels of namespaces through a client, which should be that of
// a manager that watches their metadata.
type CachedNamespaces struct{ Reader client.Reader }

// Labels implements Namespaces.
func (c CachedNamespaces) Labels(ctx context.Context, name string) (map[string]string, error) {
	namespace := &metav1.PartialObjectMetadata{}
	namespace.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	if err := c.Reader.Get(ctx, client.ObjectKey{Name: name}, namespace); err != nil {
		return nil, err
	}
	return namespace.Labels, nil
}
