package protection

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// pageSize bounds how many protected pods are counted.
const pageSize = 500

// Cluster finds protected pods in the cluster. It is safe for concurrent use.
type Cluster struct{ Metadata metadata.Interface }

// ProtectedPods implements Lister. Those that wait for a node count too: what a node
// runs next follows from the grant.
func (c Cluster) ProtectedPods(ctx context.Context, namespace string) (admission.Found, error) {
	list, err := c.Metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: guardv1alpha1.ExplicitDeletionLabel + "=" + guardv1alpha1.ExplicitDeletionRequired,
		FieldSelector: "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed),
		Limit:         pageSize,
	})
	if err != nil {
		return admission.Found{}, err
	}
	return admission.FoundIn(list), nil
}
