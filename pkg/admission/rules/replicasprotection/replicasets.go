package replicasprotection

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
)

// ReplicaSets holds the ReplicaSets of Deployments to these: only the deployment controller
// may change their spec, also through /scale. A /scale of another one is judged as by Scales.
type ReplicaSets struct {
	// Live is read for each /scale, and is no cache.
	Live client.Reader
}

// Review judges the request.
func (r ReplicaSets) Review(ctx context.Context, request *admission.Request) admission.Decision {
	if request.Operation != admissionv1.Update || resourceOf(request) != appsv1.Resource("replicasets") {
		return admission.Allow()
	}
	var before, after struct {
		Spec map[string]any `json:"spec"`
	}
	if err := request.DecodeObjects(&before, &after); err != nil {
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
	from, to, err := scaled(request)
	if err != nil {
		return admission.Fail("%w", err)
	}
	if deployment := admission.DeploymentOf(replicaSet); deployment != "" {
		return refuseOwned(request, deployment, from, to)
	}
	if isScale(request) {
		return decideScale(request, replicaSet, from, to)
	}
	return admission.Allow() // an update of a labelled ReplicaSet is judged by Rule
}

// replicaSet returns the metadata of the ReplicaSet before the change, nil when the request
// is about a subresource that does not change its spec.
func (r ReplicaSets) replicaSet(ctx context.Context, request *admission.Request) (*metav1.PartialObjectMetadata, error) {
	switch {
	case request.SubResource == "":
		return request.OldMeta()
	case isScale(request):
		return scaledWorkload(ctx, r.Live, request)
	}
	return nil, nil
}

func refuseOwned(request *admission.Request, deployment string, from, to int64) admission.Decision {
	next := fmt.Sprintf("Change the Deployment instead: kubectl edit deployments.apps %s%s", deployment, request.NamespaceFlag())
	if from != to {
		next = fmt.Sprintf("Scale the Deployment instead: kubectl scale deployments.apps %s%s --replicas=%d", deployment, request.NamespaceFlag(), to)
	}
	return admission.Refuse(admission.ReasonOwnedByDeployment,
		fmt.Sprintf("%s was not changed: it belongs to Deployment %s, and in this namespace only the deployment controller changes it", request.Target(), deployment), next)
}
