package pods

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Kinds of workloads.
const (
	kindDeployment            = "Deployment"
	kindReplicaSet            = "ReplicaSet"
	kindStatefulSet           = "StatefulSet"
	kindDaemonSet             = "DaemonSet"
	kindReplicationController = "ReplicationController"
)

// removeLostOwners keeps the references to owners that are there, or restored with the object, and
// notes the others in an annotation.
//
// The garbage collector deletes an object whose owners are all gone, within seconds, and on a
// guarded node that is an explicit deletion.
func (c *cluster) removeLostOwners(ctx context.Context, m *metav1.ObjectMeta, restored map[types.UID]bool) error {
	var kept []metav1.OwnerReference
	var lost []string
	for _, owner := range m.OwnerReferences {
		present := restored[owner.UID]
		if !present {
			var err error
			if present, err = c.ownerPresent(ctx, m.Namespace, owner); err != nil {
				return fmt.Errorf("reading %s %s, the owner of %s/%s: %w", owner.Kind, owner.Name, m.Namespace, m.Name, err)
			}
		}
		if present {
			kept = append(kept, owner)
		} else {
			lost = append(lost, owner.Kind+"/"+owner.Name)
		}
	}
	m.OwnerReferences = kept
	if len(lost) > 0 {
		if m.Annotations == nil {
			m.Annotations = map[string]string{}
		}
		m.Annotations[guardv1alpha1.LostOwnerAnnotation] = strings.Join(lost, ",")
	}
	return nil
}

// adopts reports whether the controller has the pod, or would adopt it.
func (c *controller) adopts(pod *corev1.Pod) bool {
	if owner := metav1.GetControllerOf(pod); owner != nil {
		return owner.UID == c.uid
	}
	if pod.Namespace != c.namespace || pod.DeletionTimestamp != nil || !c.selector.Matches(labels.Set(pod.Labels)) {
		return false
	}
	_, isMember := c.ordinal(pod.Name)
	return c.kind != kindStatefulSet || isMember
}

// ordinal returns the number of a pod of the StatefulSet.
func (c *controller) ordinal(pod string) (int, bool) {
	number, ok := strings.CutPrefix(pod, c.name+"-")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(number)
	return n, err == nil
}

// leaveOutSurplus leaves out the pods that a controller would delete at once, because it has as
// many as it wants. On a guarded node that would be an explicit deletion.
func (c *cluster) leaveOutSurplus(decisions []*decision) {
	for _, controller := range c.controllers {
		present, onNode := 0, map[string]int{}
		for i := range c.pods {
			pod := &c.pods[i]
			if active(pod) && controller.adopts(pod) {
				present++
				onNode[pod.Spec.NodeName]++
			}
		}
		var adopted []*decision
		for _, d := range decisions {
			if d.leaveOut == "" && !d.present && controller.adopts(d.pod) {
				adopted = append(adopted, d)
				onNode[d.pod.Spec.NodeName]++
			}
		}
		for _, d := range adopted {
			switch controller.kind {
			case kindDaemonSet:
				if onNode[d.pod.Spec.NodeName] > 1 {
					d.leaveOut = fmt.Sprintf("%s would have more than one pod on the node, and would delete the others", controller)
				}
			case kindStatefulSet:
				if ordinal, _ := controller.ordinal(d.pod.Name); ordinal < controller.start || ordinal >= controller.start+controller.replicas {
					d.leaveOut = fmt.Sprintf("%s has %d replicas, and would delete it; scale it up first", controller, controller.replicas)
				}
			default:
				if present+len(adopted) > controller.replicas {
					d.leaveOut = fmt.Sprintf("%s has %d of %d replicas, would have %d more, and would delete the surplus; scale its workload to %d first",
						controller, present, controller.replicas, len(adopted), present+len(adopted))
				}
			}
		}
	}
}

// active reports whether a pod counts as a replica.
func active(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && pod.Status.Phase != corev1.PodFailed && pod.Status.Phase != corev1.PodSucceeded
}

// Workload is what adopts pods when it is applied again.
type Workload struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Pods is how many of the pods were its own.
	Pods int `json:"pods"`
}

// workloadOf returns the kind and name of what is to be applied again: the lost controller, or the
// Deployment behind it.
func workloadOf(pod *corev1.Pod, owner *metav1.OwnerReference) (kind, name string) {
	if hash := pod.Labels["pod-template-hash"]; owner.Kind == kindReplicaSet && hash != "" {
		if deployment, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
			return kindDeployment, deployment
		}
	}
	return owner.Kind, owner.Name
}
