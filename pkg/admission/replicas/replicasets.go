package replicas

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Workloads reads the metadata of workloads.
type Workloads interface {
	Get(ctx context.Context, kind schema.GroupVersionKind, key types.NamespacedName) (*metav1.PartialObjectMetadata, error)
}

// replicaSetKind is the kind of the objects that ReplicaSets reads.
var replicaSetKind = schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "ReplicaSet"}

// ReplicaSets judges changes of ReplicaSets, of which their /scale does not show the labels
// and owners.
type ReplicaSets struct {
	// Workloads are read for each /scale, so they should not be a cache.
	Workloads Workloads
	// WithDeployment holds a ReplicaSet of a Deployment to that one: only the deployment
	// controller may change its spec. Without it, only a ReplicaSet that is itself labelled
	// kubelet-guard.io/replicas-protection is held.
	WithDeployment bool
}

var _ admission.Rule = ReplicaSets{}

// Name implements admission.Rule.
func (ReplicaSets) Name() admission.RuleName { return admission.Replicas }

// Review implements admission.Rule.
func (r ReplicaSets) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Operation != admissionv1.Update || request.Resource.Group != "apps" || request.Resource.Resource != "replicasets" {
		return admission.Allow()
	}
	// What is read of either object; a Scale has no more.
	type scaled struct {
		Spec map[string]any `json:"spec"`
	}
	var before, after scaled
	if err := request.DecodeOldObject(&before); err != nil {
		return admission.Fail("%w", err)
	}
	if err := request.DecodeObject(&after); err != nil {
		return admission.Fail("%w", err)
	}
	if equality.Semantic.DeepEqual(before.Spec, after.Spec) {
		return admission.Allow()
	}
	replicaSet, err := r.replicaSet(ctx, request)
	if err != nil {
		return admission.Fail("%w", err)
	}
	if replicaSet == nil {
		return admission.Allow()
	}
	if follows, err := request.FollowsDeployment(); err != nil {
		return admission.Fail("%w", err)
	} else if follows {
		return admission.Allow()
	}
	from, to := replicasOf(before.Spec), replicasOf(after.Spec)
	if deployment := admission.DeploymentOf(replicaSet); deployment != "" && r.WithDeployment {
		return refuseOwned(request, deployment, from, to)
	}
	if request.SubResource != "scale" || !protected(replicaSet, replicaSet) {
		return admission.Allow() // an update of a labelled ReplicaSet is judged by Rule
	}
	annotation, annotated := replicaSet.Annotations[guardv1alpha1.ConfirmReplicasAnnotation]
	return decide(request, from, to, annotation, annotated)
}

// replicaSet returns the metadata of the ReplicaSet before the change, nil when the request
// is about a subresource that does not change its spec.
func (r ReplicaSets) replicaSet(ctx context.Context, request *admission.Request) (*metav1.PartialObjectMetadata, error) {
	switch request.SubResource {
	case "":
		return request.OldMeta()
	case "scale":
		replicaSet, err := r.Workloads.Get(ctx, replicaSetKind, request.Key())
		if err != nil {
			return nil, fmt.Errorf("get the ReplicaSet whose replicas change: %w", err)
		}
		request.SetParent(replicaSet)
		return replicaSet, nil
	}
	return nil, nil
}

// replicasOf reads the number of a spec, 0 where there is none: the API server sets a
// ReplicaSet's.
func replicasOf(spec map[string]any) int64 {
	number, _ := spec["replicas"].(float64)
	return int64(number)
}

func refuseOwned(request *admission.Request, deployment string, from, to int64) admission.Decision {
	next := fmt.Sprintf("Change the Deployment instead: kubectl edit deployments.apps %s%s", deployment, request.NamespaceFlag())
	if from != to {
		next = fmt.Sprintf("Scale the Deployment instead: kubectl scale deployments.apps %s%s --replicas=%d", deployment, request.NamespaceFlag(), to)
	}
	return admission.Refuse(admission.ReasonOwnedByDeployment,
		fmt.Sprintf("%s was not changed: it belongs to Deployment %s, and in this namespace only the deployment controller changes it", request.Target(), deployment), next)
}
