package guard

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// Storage rollback: an older object of a pod.
//
// After a restore of the API's storage a pod may have an object from before its
// newest image, or from before its label. That is no declaration: the guard knows a
// newer object, from this kubelet's life or from the pod's file. So the kubelet
// continues with the newer spec and labels until a client changes the restored object,
// which is a declaration like any other. Its status and its deletion are taken from the
// API at once.
//
// The same holds for a kubelet that has just started and lists from an API server whose
// cache lags behind.

// newerObjectLocked returns the object that the kubelet is to work with when the API
// shows pod: pod itself, or a copy of it with the spec and labels of a newer object.
func (g *Guard) newerObjectLocked(r *podRecord, pod *v1.Pod) (*v1.Pod, string) {
	switch {
	case g.config.Mode != Enforce, r == nil, r.saved == nil, pod.DeletionTimestamp != nil, g.allowedCauses[ObjectRolledBack]:
		r.forgetOlder()
		return pod, ""
	case r.older != nil && pod.ResourceVersion != r.older.ResourceVersion && !sameDeclaration(pod, r.older):
		// A client has changed the restored object.
		r.forgetOlder()
		return pod, ""
	case r.older == nil && !isOlder(pod.ResourceVersion, r.saved.ResourceVersion):
		return pod, ""
	}
	if r.older == nil {
		r.older = pod.DeepCopy()
	}
	if sameDeclaration(pod, r.saved) {
		return pod, ""
	}
	newer := pod.DeepCopy()
	saved := r.saved.DeepCopy()
	newer.Spec, newer.Labels = saved.Spec, saved.Labels
	return newer, changedImages(&pod.Spec, &saved.Spec)
}

func (r *podRecord) forgetOlder() {
	if r != nil {
		r.older = nil
	}
}

// isOlder reports whether a resource version is older than another. It is false for
// versions that cannot be compared.
func isOlder(version, than string) bool {
	order, err := resourceversion.CompareResourceVersion(version, than)
	return err == nil && order < 0
}

// sameDeclaration compares what a pod's author declares.
func sameDeclaration(a, b *v1.Pod) bool {
	return equality.Semantic.DeepEqual(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Spec, b.Spec)
}

// changedImages names the containers whose image in the API differs from the one
// that runs; empty when there is none.
func changedImages(shown, runs *v1.PodSpec) string {
	images := map[string]string{}
	containers := func(spec *v1.PodSpec) []v1.Container { return slices.Concat(spec.InitContainers, spec.Containers) }
	for _, c := range containers(runs) {
		images[c.Name] = c.Image
	}
	var changed []string
	for _, c := range containers(shown) {
		if image, ok := images[c.Name]; ok && image != c.Image {
			changed = append(changed, fmt.Sprintf("container %s runs %s, the API shows %s", c.Name, image, c.Image))
		}
	}
	return strings.Join(changed, ", ")
}
