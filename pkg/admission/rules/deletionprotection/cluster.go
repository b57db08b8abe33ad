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
)

// pageSize of lists whose items have to be read.
const pageSize = 500

// unfinishedPods excludes pods that run no containers any more.
const unfinishedPods = "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)

// Cluster finds dependents at the API server. It is safe for concurrent use.
type Cluster struct {
	Metadata metadata.Interface
	Core     kubernetes.Interface
}

// Pods implements Dependents. It reads one page: whether there are any is what counts.
func (c Cluster) Pods(ctx context.Context, namespace string) (admission.Found, error) {
	list, err := c.Metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(namespace).
		List(ctx, metav1.ListOptions{FieldSelector: unfinishedPods, Limit: pageSize})
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
	return collect(func(options metav1.ListOptions) (string, []string, error) {
		list, err := c.Core.CoreV1().PersistentVolumeClaims(namespace).List(ctx, options)
		if err != nil {
			return "", nil, err
		}
		var names []string
		for i := range list.Items {
			if list.Items[i].Status.Phase == corev1.ClaimBound {
				names = append(names, list.Items[i].Name)
			}
		}
		return list.Continue, names, nil
	})
}

// ClaimUsers implements Dependents.
func (c Cluster) ClaimUsers(ctx context.Context, namespace, claim string) (admission.Found, error) {
	return collect(func(options metav1.ListOptions) (string, []string, error) {
		options.FieldSelector = unfinishedPods
		list, err := c.Core.CoreV1().Pods(namespace).List(ctx, options)
		if err != nil {
			return "", nil, err
		}
		var names []string
		for i := range list.Items {
			if mounts(&list.Items[i], claim) {
				names = append(names, list.Items[i].Name)
			}
		}
		return list.Continue, names, nil
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
	return collect(func(options metav1.ListOptions) (string, []string, error) {
		options.LabelSelector = discoveryv1.LabelServiceName + "=" + service
		list, err := c.Core.DiscoveryV1().EndpointSlices(namespace).List(ctx, options)
		if err != nil {
			return "", nil, err
		}
		var names []string
		for i := range list.Items {
			for _, endpoint := range list.Items[i].Endpoints {
				// Unknown counts as ready, as it does for those who send the traffic.
				if ready := endpoint.Conditions.Ready; ready == nil || *ready {
					names = append(names, endpointName(endpoint))
				}
			}
		}
		return list.Continue, names, nil
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

// collect reads pages until one has something, or all when none has.
func collect(page func(metav1.ListOptions) (next string, names []string, err error)) (admission.Found, error) {
	options := metav1.ListOptions{Limit: pageSize}
	for {
		next, names, err := page(options)
		switch {
		case err != nil:
			return admission.Found{}, err
		case len(names) > 0:
			return admission.Found{Count: len(names), More: next != "", Example: names[0]}, nil
		case next == "":
			return admission.Found{}, nil
		}
		options.Continue = next
	}
}
