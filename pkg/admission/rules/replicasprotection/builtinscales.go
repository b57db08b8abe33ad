package replicasprotection

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// scaledKinds are the kinds of the workloads of Kubernetes with a scale subresource.
var scaledKinds = map[schema.GroupResource]schema.GroupVersionKind{
	{Group: "apps", Resource: "deployments"}:  appsv1.SchemeGroupVersion.WithKind("Deployment"),
	{Group: "apps", Resource: "statefulsets"}: appsv1.SchemeGroupVersion.WithKind("StatefulSet"),
	{Group: "apps", Resource: "replicasets"}:  appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
	{Resource: "replicationcontrollers"}:      corev1.SchemeGroupVersion.WithKind("ReplicationController"),
}

// Scales judges changes of replicas through /scale, whose object has neither labels nor
// annotations of its workload. It reads the workload for each, so the price of a request
// does not grow with the number of labelled workloads. It is safe for concurrent use.
type Scales struct {
	// Live is no cache: a confirmation counts from the moment it is written.
	Live client.Reader
}

// Review judges the request.
func (s Scales) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if !isScale(request) {
		return admission.Allow()
	}
	from, to, err := scaled(request)
	switch {
	case err != nil:
		return admission.Fail("%w", err)
	case from == to:
		return admission.Allow()
	}
	workload, err := scaledWorkload(ctx, s.Live, request)
	if err != nil {
		return admission.Fail("%w", err)
	}
	return decideScale(request, workload, from, to)
}

// isScale reports whether the request is an update of the /scale of a workload that
// scaledWorkload can read.
func isScale(request *admission.Request) bool {
	_, known := scaledKinds[resourceOf(request)]
	return known && request.Operation == admissionv1.Update && request.SubResource == "scale"
}

// resourceOf returns the resource of the request without its version.
func resourceOf(request *admission.Request) schema.GroupResource {
	return schema.GroupResource{Group: request.Resource.Group, Resource: request.Resource.Resource}
}

// scaled returns the replicas in the old and the new object, 0 where there are none: the
// API server sets those of a ReplicaSet, and leaves a 0 out of a Scale.
func scaled(request *admission.Request) (from, to int64, err error) {
	type object struct {
		Spec struct {
			Replicas int64 `json:"replicas"`
		} `json:"spec"`
	}
	var before, after object
	if err := request.DecodeObjects(&before, &after); err != nil {
		return 0, 0, err
	}
	return before.Spec.Replicas, after.Spec.Replicas, nil
}

// scaledWorkload reads the metadata of the workload that a /scale is about. It also carries the
// override.
func scaledWorkload(ctx context.Context, live client.Reader, request *admission.Request) (*metav1.PartialObjectMetadata, error) {
	kind := scaledKinds[resourceOf(request)]
	workload, err := admission.Metadata(ctx, live, kind, request.Key())
	if err != nil {
		return nil, fmt.Errorf("get the %s whose replicas change: %w", kind.Kind, err)
	}
	request.SetParent(workload)
	return workload, nil
}

// decideScale judges a change of replicas through /scale by the labels and annotations of
// its workload.
func decideScale(request *admission.Request, workload *metav1.PartialObjectMetadata, from, to int64) admission.Decision {
	if !protected(workload, workload) {
		return admission.Allow()
	}
	annotation, annotated := workload.Annotations[guardv1alpha1.ConfirmReplicasAnnotation]
	return decide(request, from, to, annotation, annotated)
}
