package poddeletion

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Identities of controllers, as they are with --use-service-account-credentials of the
// controller manager.
const (
	controllerPrefix    = "system:serviceaccount:kube-system:"
	daemonSetController = controllerPrefix + "daemon-set-controller"
	podGarbageCollector = controllerPrefix + "pod-garbage-collector"
)

// Controllers are the accounts of the controllers that run workloads, by the kind that owns
// their pods.
type Controllers map[schema.GroupKind]string

// ParseControllers reads controllers that a cluster's administrator names: kinds such as
// "StatefulSet.apps.kruise.io" with the user name of their controller. Errors name the kind.
func ParseControllers(named map[string]string) (Controllers, error) {
	controllers := Controllers{}
	for _, kind := range slices.Sorted(maps.Keys(named)) {
		parsed, user := schema.ParseGroupKind(kind), named[kind]
		_, builtIn := workloadControllers[parsed]
		switch {
		case parsed.Kind == "" || parsed.Group == "" || user == "":
			return nil, fmt.Errorf("%q=%q is not a kind with its group and a user, such as StatefulSet.apps.kruise.io=system:serviceaccount:kruise-system:kruise-manager", kind, user)
		case builtIn:
			return nil, fmt.Errorf("%q is a kind of Kubernetes' own, whose controller is known", kind)
		}
		controllers[parsed] = user
	}
	return controllers, nil
}

// of returns the account of the controller of the pod's workload, or "" when it is not known.
func (c Controllers) of(pod *corev1.Pod) string {
	return c[ownerKind(pod)]
}

// ownerKind returns the kind that controls the pod, an empty one when none does.
func ownerKind(pod *corev1.Pod) schema.GroupKind {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return schema.GroupKind{}
	}
	return schema.FromAPIVersionAndKind(owner.APIVersion, owner.Kind).GroupKind()
}

// workloadControllers are those of Kubernetes itself. What they delete follows from the spec of the
// workload: a roll-out, a scale-down or a suspension, held to rules of its own
// (Replicas, OperationWindow). Budgets do not limit these upstream
// either. A budget that wants two healthy pods would keep a workload from ever
// reaching 0 pods, which is what has to be done before it may be deleted.
//
// The garbage collector is not among them: that the owner is gone does not mean that
// the pods should go.
var workloadControllers = Controllers{
	{Group: "apps", Kind: "ReplicaSet"}:  controllerPrefix + "replicaset-controller",
	{Kind: "ReplicationController"}:      controllerPrefix + "replication-controller",
	{Group: "apps", Kind: "StatefulSet"}: controllerPrefix + "statefulset-controller",
	{Group: "apps", Kind: "DaemonSet"}:   daemonSetController,
	{Group: "batch", Kind: "Job"}:        controllerPrefix + "job-controller",
}

// isItsController reports whether the user is the controller of the pod's workload.
func isItsController(username string, pod *corev1.Pod) bool {
	controller := controllerOf(pod)
	return controller != "" && controller == username
}

// controllerOf returns the identity of the controller of the pod's workload, or "" when
// none of workloadControllers runs it.
func controllerOf(pod *corev1.Pod) string { return workloadControllers.of(pod) }
