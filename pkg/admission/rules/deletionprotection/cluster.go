package deletionprotection

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/paging"
)

// Cluster finds dependents at the API server. It is safe for concurrent use.
type Cluster struct {
	Metadata metadata.Interface
	Core     kubernetes.Interface
}

// Pods implements Dependents. It reads one page: whether there are any is what counts.
func (c Cluster) Pods(ctx context.Context, namespace string) (admission.Found, error) {
	list, err := admission.ListUnfinishedPods(ctx, c.Metadata, namespace, "")
	if err != nil {
		return admission.Found{}, err
	}
	return admission.FoundIn(list), nil
}

// Instances implements Dependents. It reads the metadata of one object; the API
// server returns how many more there are.
func (c Cluster) Instances(ctx context.Context, resource schema.GroupVersionResource, selector string) (admission.Found, error) {
	list, err := c.Metadata.Resource(resource).List(ctx, metav1.ListOptions{LabelSelector: selector, Limit: 1})
	if err != nil {
		return admission.Found{}, err
	}
	found := admission.FoundIn(list)
	if found.Count > 0 {
		if namespace := list.Items[0].Namespace; namespace != "" {
			found.Example = namespace + "/" + found.Example
		}
	}
	if list.RemainingItemCount != nil {
		found.Count, found.More = found.Count+int(*list.RemainingItemCount), false
	}
	return found, nil
}

// BoundClaims implements Dependents.
func (c Cluster) BoundClaims(ctx context.Context, namespace string) (admission.Found, error) {
	return find(ctx, c.Core.CoreV1().PersistentVolumeClaims(namespace).List, metav1.ListOptions{}, func(page *corev1.PersistentVolumeClaimList) (names []string) {
		for i := range page.Items {
			if page.Items[i].Status.Phase == corev1.ClaimBound {
				names = append(names, page.Items[i].Name)
			}
		}
		return names
	})
}

// ClaimUsers implements Dependents.
func (c Cluster) ClaimUsers(ctx context.Context, namespace, claim string) (admission.Found, error) {
	options := metav1.ListOptions{FieldSelector: admission.UnfinishedPods}
	return find(ctx, c.Core.CoreV1().Pods(namespace).List, options, func(page *corev1.PodList) (names []string) {
		for i := range page.Items {
			if mounts(&page.Items[i], claim) {
				names = append(names, page.Items[i].Name)
			}
		}
		return names
	})
}

func mounts(pod *corev1.Pod, claim string) bool {
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		switch {
		case volume.PersistentVolumeClaim != nil && volume.PersistentVolumeClaim.ClaimName == claim,
			// The claim of a generic ephemeral volume has this name.
			volume.Ephemeral != nil && pod.Name+"-"+volume.Name == claim:
			return true
		}
	}
	return false
}

// ReadyEndpoints implements Dependents.
func (c Cluster) ReadyEndpoints(ctx context.Context, namespace, service string) (admission.Found, error) {
	options := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service}
	return find(ctx, c.Core.DiscoveryV1().EndpointSlices(namespace).List, options, func(page *discoveryv1.EndpointSliceList) (names []string) {
		for i := range page.Items {
			for _, endpoint := range page.Items[i].Endpoints {
				// Unknown counts as ready, as it does for those who send the traffic.
				if ready := endpoint.Conditions.Ready; ready == nil || *ready {
					names = append(names, endpointName(endpoint))
				}
			}
		}
		return names
	})
}

func endpointName(endpoint discoveryv1.Endpoint) string {
	switch {
	case endpoint.TargetRef != nil:
		return endpoint.TargetRef.Name
	case len(endpoint.Addresses) > 0:
		return endpoint.Addresses[0]
	}
	return "unnamed"
}

// find reads pages until one has something, or all when none has.
func find[L metav1.ListInterface](ctx context.Context, list func(context.Context, metav1.ListOptions) (L, error), options metav1.ListOptions, names func(L) []string) (found admission.Found, err error) {
	_, err = paging.Each(ctx, options, list, func(page L) bool {
		if names := names(page); len(names) > 0 {
			found = admission.Found{Count: len(names), More: page.GetContinue() != "", Example: names[0]}
		}
		return found.Count == 0
	})
	return found, err
}
