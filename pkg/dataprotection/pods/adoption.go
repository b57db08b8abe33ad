package pods

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Adoption counts what became of restored pods that had lost their owners.
type Adoption struct {
	// Restored have the annotation with the lost owner, Adopted of them have a controller.
	Restored int `json:"restored"`
	Adopted  int `json:"adopted"`
	// New pods appeared since the watch started, of the controllers that adopted: a copy of what
	// runs.
	New int `json:"new"`
	// Deleted are restored pods that are gone, or terminate, since the watch started.
	Deleted int `json:"deleted"`
	// Waiting are the names of restored pods without a controller.
	Waiting []string `json:"waiting,omitempty"`
}

// Done reports whether each restored pod that is there has a controller.
func (a Adoption) Done() bool { return a.Adopted == a.Restored }

// AdoptionWatch compares the pods of a cluster with what was there at its start.
type AdoptionWatch struct {
	client kubernetes.Interface
	// before are all pods at the start, restored those of them that guard-etcd restored.
	before, restored map[types.UID]bool
}

// StartAdoptionWatch remembers which pods there are. Restored pods that appear later count as well.
func StartAdoptionWatch(ctx context.Context, client kubernetes.Interface) (*AdoptionWatch, error) {
	w := &AdoptionWatch{client: client, before: map[types.UID]bool{}, restored: map[types.UID]bool{}}
	pods, err := w.list(ctx)
	if err != nil {
		return nil, err
	}
	for i := range pods {
		w.before[pods[i].UID] = true
	}
	return w, nil
}

func (w *AdoptionWatch) list(ctx context.Context) ([]corev1.Pod, error) {
	list, err := w.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	return list.Items, nil
}

// Count returns what has happened so far.
func (w *AdoptionWatch) Count(ctx context.Context) (Adoption, error) {
	pods, err := w.list(ctx)
	if err != nil {
		return Adoption{}, err
	}
	var a Adoption
	adopters, there := map[types.UID]bool{}, map[types.UID]bool{}
	for i := range pods {
		pod := &pods[i]
		if pod.Annotations[guardv1alpha1.LostOwnerAnnotation] == "" || pod.DeletionTimestamp != nil {
			continue
		}
		a.Restored++
		w.restored[pod.UID], there[pod.UID] = true, true
		if controller := metav1.GetControllerOf(pod); controller != nil {
			a.Adopted++
			adopters[controller.UID] = true
		} else {
			a.Waiting = append(a.Waiting, pod.Namespace+"/"+pod.Name)
		}
	}
	for uid := range w.restored {
		if !there[uid] {
			a.Deleted++
		}
	}
	for i := range pods {
		pod := &pods[i]
		controller := metav1.GetControllerOf(pod)
		if controller != nil && adopters[controller.UID] && !w.before[pod.UID] && !w.restored[pod.UID] {
			a.New++
		}
	}
	return a, nil
}
