package guard

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"
)

// alreadyRunning returns a pod whose container runs by its object.
func alreadyRunning(pod *v1.Pod) *v1.Pod {
	pod.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "app", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
	return pod
}

func TestOthersInAdmission(t *testing.T) {
	f := newFixture(t)
	rejected, evicted, plain := protectedPod("rejected"), protectedPod("evicted"), plainPod("plain")
	f.running(rejected, evicted, plain)
	others := []*v1.Pod{rejected, evicted, plain}
	assert.Equal(t, others, f.OthersInAdmission(alreadyRunning(plainPod("young")), others), "nobody was rejected")
	require.True(t, f.Refuse(rejected, AdmissionRejected, "OutOfcpu"))
	require.True(t, f.Refuse(evicted, Evicted, "memory"))
	assert.Equal(t, []*v1.Pod{evicted, plain}, f.OthersInAdmission(alreadyRunning(plainPod("young")), others))
	assert.Equal(t, others, f.OthersInAdmission(plainPod("new"), others), "room that is in use is not given to a pod that has not started")
	assert.Equal(t, []*v1.Pod{rejected, evicted, plain}, others, "the kubelet's list is not changed")
}

func TestSparesNeighbour(t *testing.T) {
	usage := map[string]uint64{}
	stats := func(pod *v1.Pod) (statsapi.PodStats, bool) {
		used, ok := usage[pod.Name]
		return statsapi.PodStats{
			Memory:           &statsapi.MemoryStats{WorkingSetBytes: ptr.To(used)},
			EphemeralStorage: &statsapi.FsStats{UsedBytes: ptr.To(used)},
		}, ok
	}
	requesting := func(pod *v1.Pod, bytes int64) *v1.Pod {
		pod.Spec.Containers[0].Resources.Requests = v1.ResourceList{
			v1.ResourceMemory: *resource.NewQuantity(bytes, resource.BinarySI), v1.ResourceEphemeralStorage: *resource.NewQuantity(bytes, resource.BinarySI),
		}
		return pod
	}
	f := newFixture(t)
	culprit, modest := requesting(protectedPod("culprit"), 100), requesting(protectedPod("modest"), 100)
	neighbour, other := requesting(plainPod("neighbour"), 100), plainPod("besteffort")
	f.running(culprit, modest, neighbour, other)
	usage["culprit"], usage["modest"], usage["neighbour"], usage["besteffort"] = 900, 50, 100, 1
	for _, starved := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		assert.False(t, f.SparesNeighbour(neighbour, []*v1.Pod{culprit}, starved, stats), "before it was refused")
	}
	require.True(t, f.Refuse(culprit, Evicted, "memory"))
	require.True(t, f.Refuse(modest, Evicted, "memory"))
	for _, starved := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		assert.True(t, f.SparesNeighbour(neighbour, []*v1.Pod{culprit}, starved, stats), starved)
		assert.False(t, f.SparesNeighbour(neighbour, []*v1.Pod{modest}, starved, stats), "the pressure is not of its making")
		assert.False(t, f.SparesNeighbour(other, []*v1.Pod{culprit}, starved, stats), "it uses more than it has requested")
		assert.False(t, f.SparesNeighbour(neighbour, nil, starved, stats), "nobody ranks before it")
	}
	assert.False(t, f.SparesNeighbour(neighbour, []*v1.Pod{culprit}, "pids", stats), "nobody requests process IDs")
	assert.False(t, newFixture(t, inMode(Audit)).SparesNeighbour(neighbour, []*v1.Pod{culprit}, v1.ResourceMemory, stats), "Audit changes nothing")
	delete(usage, "neighbour")
	assert.False(t, f.SparesNeighbour(neighbour, []*v1.Pod{culprit}, v1.ResourceMemory, stats), "nobody knows what it uses")
}
