package guard

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Neighbours of kept pods.
//
// A pod that is kept keeps its resources, which other pods then lack. The rules here
// bound what that costs pods without the label; docs/operations.md has the figures.

// OthersInAdmission returns the pods whose resources count when a pod is admitted.
// After a restart with less room the stock kubelet rejects an older pod and admits a
// younger one into the room that remains. A protected pod that is kept in spite of its
// rejection must not take that room from a pod that ran next to it: it is left out for
// pods that run already, so that they are admitted as by the stock kubelet. It counts
// for pods that have not started, because its resources are in use.
func (g *Guard) OthersInAdmission(pod *v1.Pod, others []*v1.Pod) []*v1.Pod {
	if !g.RunsAlready(pod) {
		return others
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	rejected := func(other *v1.Pod) bool {
		r := g.records[other.UID]
		return r != nil && r.holds[AdmissionRejected] != nil
	}
	if !slices.ContainsFunc(others, rejected) {
		return others
	}
	return slices.DeleteFunc(slices.Clone(others), rejected)
}

// RunsAlready reports whether a container of the pod runs by its API object: it was
// started before this kubelet. For a protected pod the object may be wrong; for others
// the stock kubelet trusts it, too.
func (g *Guard) RunsAlready(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Status.ContainerStatuses, func(c v1.ContainerStatus) bool { return c.State.Running != nil })
}

// SparesNeighbour reports whether a pod is not to be evicted for lack of a resource,
// given the pods that rank before it: it uses no more than it has requested, and a
// protected pod that may not be evicted uses more than it has requested, so that
// evicting the pod would not end the pressure. Without this the neighbours of such a pod
// would be evicted one after the other. Only memory and ephemeral storage can be
// requested.
func (g *Guard) SparesNeighbour(pod *v1.Pod, before []*v1.Pod, starved v1.ResourceName, stats func(*v1.Pod) (statsapi.PodStats, bool)) bool {
	if !g.enforces(Evicted) || len(before) == 0 || exceedsRequest(pod, starved, stats) {
		return false
	}
	culprit := func(other *v1.Pod) bool {
		if !g.Protects(other) || !exceedsRequest(other, starved, stats) {
			return false
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		r := g.records[other.UID]
		return r != nil && r.holds[Evicted] != nil
	}
	return slices.ContainsFunc(before, culprit)
}

// exceedsRequest reports whether the pod uses more of the resource than it requests.
// A pod with unknown usage counts as one that does, as in the kubelet's ranking
// (pkg/kubelet/eviction/helpers.go).
func exceedsRequest(pod *v1.Pod, starved v1.ResourceName, stats func(*v1.Pod) (statsapi.PodStats, bool)) bool {
	s, found := stats(pod)
	if !found {
		return true
	}
	var used *uint64
	switch starved {
	case v1.ResourceMemory:
		if s.Memory != nil {
			used = s.Memory.WorkingSetBytes
		}
	case v1.ResourceEphemeralStorage:
		if s.EphemeralStorage != nil {
			used = s.EphemeralStorage.UsedBytes
		}
	}
	if used == nil {
		return true
	}
	request := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})[starved]
	return resource.NewQuantity(int64(*used), resource.BinarySI).Cmp(request) > 0
}
