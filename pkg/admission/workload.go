package admission

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// deploymentControllers are the names under which the deployment controller may act: its own
// account, or that of a controller manager that has none for each controller.
var deploymentControllers = map[string]bool{
	"system:serviceaccount:kube-system:deployment-controller": true,
	"system:kube-controller-manager":                          true,
}

// DeploymentOf returns the name of the Deployment that controls the ReplicaSet, "" when
// none does.
func DeploymentOf(replicaSet *metav1.PartialObjectMetadata) string {
	owner := metav1.GetControllerOfNoCopy(replicaSet)
	if owner == nil || owner.Kind != "Deployment" || !strings.HasPrefix(owner.APIVersion, "apps/") {
		return ""
	}
	return owner.Name
}

// FollowsDeployment reports whether the request is the deployment controller's work on a
// ReplicaSet of a Deployment, which the old object is. What the controller does follows from
// the Deployment; any other owner reference proves nothing, since anyone can write one.
func (r *Request) FollowsDeployment() (bool, error) {
	if r.Resource.Group != "apps" || r.Resource.Resource != "replicasets" || r.SubResource != "" || !deploymentControllers[r.UserInfo.Username] {
		return false, nil
	}
	old, err := r.OldMeta()
	if err != nil || old == nil {
		return false, err
	}
	return DeploymentOf(old) != "", nil
}
