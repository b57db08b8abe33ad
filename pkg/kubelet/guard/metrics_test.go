package guard

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Alerts need series that exist before anything happens.
func TestAllSeriesExistAtZeroFromTheStart(t *testing.T) {
	for _, mode := range []Mode{Enforce, Audit, Off} {
		t.Run(string(mode), func(t *testing.T) {
			want := map[string]float64{
				"protected_pods{}":                                          0,
				"oldest_hold_seconds{}":                                     0,
				"unconfirmed_pods{}":                                        0,
				"waiting_pods{}":                                            0,
				"errors_total{operation=Processes}":                         0,
				"decision_duration_seconds{}":                               0,
				"allowed_kills_total{cause=ExplicitDeletion}":               0,
				"errors_total{operation=Runtime}":                           0,
				"errors_total{operation=StateDirectory}":                    0,
				"errors_total{operation=PodDeletion}":                       0,
				"errors_total{operation=HTTP}":                              0,
				"info{mode=" + string(mode) + ",version=" + Version() + "}": 1,
			}
			for _, cause := range causes {
				for _, name := range []string{"refused_kills_total", "audited_kills_total", "allowed_kills_total", "held_pods"} {
					want[name+"{cause="+string(cause)+"}"] = 0
				}
			}
			assert.Equal(t, want, gather(t, newFixture(t, inMode(mode)).Guard))
		})
	}
}

func TestNothingAddsASeries(t *testing.T) {
	f := newFixture(t, allowing(NodeShutdown))
	before := gather(t, f.Guard)
	for _, name := range []string{"a", "b"} {
		pod := protectedPod(name)
		f.running(pod)
		for _, cause := range causes {
			f.attempt(pod, cause)
		}
		f.observe(deleted(pod))
		f.attempt(pod, Evicted)
		f.AllowCompletion(pod.UID)
	}
	after := gather(t, f.Guard)
	assert.Len(t, after, len(before))
	for name := range before {
		assert.Contains(t, after, name)
	}
}

func TestGaugesFollowTheRecords(t *testing.T) {
	f := newFixture(t)
	a, b, c := protectedPod("a"), protectedPod("b"), protectedPod("c")
	f.running(a, b, c, plainPod("d"))
	assert.Equal(t, map[string]float64{"protected_pods{}": 3}, f.series())

	require.True(t, f.Refuse(a, Evicted, ""))
	require.True(t, f.Refuse(a, AdmissionRejected, ""))
	f.clock.Step(confirmInterval)
	require.True(t, f.Refuse(b, Evicted, ""))
	assert.Equal(t, map[string]float64{
		"protected_pods{}": 3, "oldest_hold_seconds{}": confirmInterval.Seconds(),
		"held_pods{cause=Evicted}": 2, "held_pods{cause=AdmissionRejected}": 1,
		"refused_kills_total{cause=Evicted}": 2, "refused_kills_total{cause=AdmissionRejected}": 1,
	}, f.series())

	f.observe(deleted(a))
	assert.False(t, f.Refuse(a, Evicted, ""))
	assert.False(t, f.Refuse(a, Preempted, ""))
	assert.Equal(t, map[string]float64{
		"protected_pods{}": 2, "held_pods{cause=Evicted}": 1,
		"refused_kills_total{cause=Evicted}": 2, "refused_kills_total{cause=AdmissionRejected}": 1,
		"allowed_kills_total{cause=ExplicitDeletion}": 1,
	}, f.series(), "a terminating pod is neither protected nor held")

	assert.Equal(t, 5.0, gather(t, f.Guard)["decision_duration_seconds{}"])
	f.Refuse(plainPod("d"), Evicted, "")
	assert.Equal(t, 5.0, gather(t, f.Guard)["decision_duration_seconds{}"], "unprotected pods are not measured")
}

func TestProtectedPodsCountsOrphans(t *testing.T) {
	f := newFixture(t)
	pod := protectedPod("p")
	f.runtime.run(pod, runtimeapi.ContainerState_CONTAINER_RUNNING)
	require.True(t, f.RefuseUID(pod.UID, OrphanedRuntimePod, ""))
	assert.Equal(t, map[string]float64{
		"protected_pods{}": 1, "held_pods{cause=OrphanedRuntimePod}": 1, "refused_kills_total{cause=OrphanedRuntimePod}": 1,
	}, f.series())
}

func TestCausesIsACopy(t *testing.T) {
	Causes()[0] = "changed"
	assert.Equal(t, AdmissionRejected, Causes()[0])
	assert.Len(t, Causes(), 21)
}
