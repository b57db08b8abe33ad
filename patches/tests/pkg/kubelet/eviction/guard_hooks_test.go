package eviction

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/tools/record"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	kubelettypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/kubernetes/test/utils/ktesting"
	testingclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
)

// newGuardTestManager returns a manager under memory pressure.
func newGuardTestManager(stats map[*v1.Pod]statsapi.PodStats) (*managerImpl, *mockPodKiller) {
	killer := &mockPodKiller{}
	gc := &mockDiskGC{}
	return &managerImpl{
		clock:       testingclock.NewFakeClock(time.Now()),
		killPodFunc: killer.killPodNow,
		imageGC:     gc,
		containerGC: gc,
		config: Config{
			PressureTransitionPeriod: 5 * time.Minute,
			Thresholds: []evictionapi.Threshold{{
				Signal:   evictionapi.SignalMemoryAvailable,
				Operator: evictionapi.OpLessThan,
				Value:    evictionapi.ThresholdValue{Quantity: quantityMustParse("2Gi")},
			}},
		},
		recorder:                     &record.FakeRecorder{},
		summaryProvider:              &fakeSummaryProvider{result: makeMemoryStats("1500Mi", stats)},
		nodeRef:                      &v1.ObjectReference{Kind: "Node", Name: "node", UID: "node"},
		nodeConditionsLastObservedAt: nodeConditionsObservedAt{},
		thresholdsFirstObservedAt:    thresholdsObservedAt{},
	}, killer
}

func TestGuardEviction(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			greedy, greedyStats := makePodWithMemoryStats("greedy", defaultPriority, newResourceList("", "100Mi", ""), newResourceList("", "1Gi", ""), "700Mi")
			// It exceeds its request, too, though by less: one that does not is spared.
			modest, modestStats := makePodWithMemoryStats("modest", defaultPriority, newResourceList("", "1Gi", ""), newResourceList("", "2Gi", ""), "1100Mi")
			kind.Change(greedy)
			node.Run(greedy)
			m, killer := newGuardTestManager(map[*v1.Pod]statsapi.PodStats{greedy: greedyStats, modest: modestStats})

			evicted, err := m.synchronize(ctx, &mockDiskInfoProvider{dedicatedImageFs: ptr.To(false)}, func() []*v1.Pod { return []*v1.Pod{greedy, modest} })

			if err != nil {
				t.Fatalf("synchronize: %v", err)
			}
			// The manager goes on to the next pod of its ranking: pressure on the node
			// must not go unanswered because of a protected pod.
			// Upstream does not evict static and mirror pods, which count as critical.
			want := greedy
			if kind.Kept || kubelettypes.IsCriticalPod(greedy) {
				want = modest
			}
			if killer.pod == nil || killer.pod.Name != want.Name {
				t.Errorf("killed %v, want %s", killer.pod, want.Name)
			}
			if len(evicted) != 1 || evicted[0].Name != want.Name {
				t.Errorf("reported %v as evicted, want %s", evicted, want.Name)
			}
			if kind.Kept {
				node.ExpectHolds(t, greedy.UID, guard.Evicted)
			} else {
				node.ExpectHolds(t, greedy.UID)
			}
		})
	}
}

func TestGuardEvictionWithNobodyElseToEvict(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	only, stats := makePodWithMemoryStats("only", defaultPriority, nil, nil, "700Mi")
	guardtest.Protect(only)
	node.Run(only)
	m, killer := newGuardTestManager(map[*v1.Pod]statsapi.PodStats{only: stats})

	for range 3 {
		evicted, err := m.synchronize(ctx, &mockDiskInfoProvider{dedicatedImageFs: ptr.To(false)}, func() []*v1.Pod { return []*v1.Pod{only} })
		if err != nil || len(evicted) != 0 {
			t.Fatalf("evicted %v, error %v; want neither", evicted, err)
		}
	}

	if killer.pod != nil {
		t.Errorf("killed %s", killer.pod.Name)
	}
	if !m.IsUnderMemoryPressure() {
		t.Error("the node does not report its memory pressure")
	}
	node.ExpectHolds(t, only.UID, guard.Evicted)
}

// Limits of local storage evict a pod without any pressure on the node.
func TestGuardEvictionBecauseOfALocalStorageLimit(t *testing.T) {
	limit := resource.MustParse("1Gi")
	volumes := []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			ctx := ktesting.Init(t)
			node := guardtest.Install(t)
			pod, stats := makePodWithDiskStats("greedy", defaultPriority, nil, nil, "", "", "2Gi", volumes)
			kind.Change(pod)
			node.Run(pod)
			m, killer := newGuardTestManager(nil)
			m.localStorageCapacityIsolation = true
			m.summaryProvider = &fakeSummaryProvider{result: makeDiskStats(diskStats{rootFsAvailableBytes: "20Gi", imageFsAvailableBytes: "20Gi", podStats: map[*v1.Pod]statsapi.PodStats{pod: stats}})}

			if _, err := m.synchronize(ctx, &mockDiskInfoProvider{dedicatedImageFs: ptr.To(false)}, func() []*v1.Pod { return []*v1.Pod{pod} }); err != nil {
				t.Fatalf("synchronize: %v", err)
			}

			// Upstream does not evict static and mirror pods here either.
			if want := !kind.Kept && !kubelettypes.IsCriticalPod(pod); (killer.pod != nil) != want {
				t.Errorf("killed %v, want the pod killed: %v", killer.pod, want)
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.Evicted)
			} else {
				node.ExpectHolds(t, pod.UID)
			}
		})
	}
}

// A pod that may not be evicted and that uses more than it has requested does not cost
// its neighbours their lives, one every ten seconds.
func TestGuardEvictionOfNeighbours(t *testing.T) {
	neighbours := []struct {
		name, uses string
		// spared: it uses no more than the 1Gi that it has requested.
		spared bool
	}{
		{name: "within its request", uses: "900Mi", spared: true},
		{name: "above its request", uses: "1100Mi"},
	}
	for _, neighbour := range neighbours {
		for _, kind := range guardtest.Kinds() {
			t.Run(neighbour.name+"/"+kind.Name, func(t *testing.T) {
				ctx := ktesting.Init(t)
				node := guardtest.Install(t)
				culprit, culpritStats := makePodWithMemoryStats("culprit", defaultPriority, newResourceList("", "100Mi", ""), newResourceList("", "2Gi", ""), "1700Mi")
				modest, modestStats := makePodWithMemoryStats("modest", defaultPriority, newResourceList("", "1Gi", ""), newResourceList("", "2Gi", ""), neighbour.uses)
				kind.Change(culprit)
				node.Run(culprit)
				m, killer := newGuardTestManager(map[*v1.Pod]statsapi.PodStats{culprit: culpritStats, modest: modestStats})

				if _, err := m.synchronize(ctx, &mockDiskInfoProvider{dedicatedImageFs: ptr.To(false)}, func() []*v1.Pod { return []*v1.Pod{modest, culprit} }); err != nil {
					t.Fatalf("synchronize: %v", err)
				}

				// Upstream does not evict static and mirror pods and goes on to the next.
				want := "culprit"
				switch {
				case kind.Kept && neighbour.spared:
					want = ""
				case kind.Kept, kubelettypes.IsCriticalPod(culprit):
					want = "modest"
				}
				got := ""
				if killer.pod != nil {
					got = killer.pod.Name
				}
				if got != want {
					t.Errorf("killed %q, want %q", got, want)
				}
				if kind.Kept {
					node.ExpectHolds(t, culprit.UID, guard.Evicted)
				} else {
					node.ExpectHolds(t, culprit.UID)
				}
			})
		}
	}
}

// A neighbour that ranks before the protected pod, as one of lower priority, is
// evicted as without the guard.
func TestGuardEvictionOfAPodThatRanksBeforeTheProtectedOne(t *testing.T) {
	ctx := ktesting.Init(t)
	node := guardtest.Install(t)
	greedy, greedyStats := makePodWithMemoryStats("greedy", defaultPriority, newResourceList("", "100Mi", ""), newResourceList("", "2Gi", ""), "700Mi")
	first, firstStats := makePodWithMemoryStats("first", lowPriority, newResourceList("", "100Mi", ""), newResourceList("", "2Gi", ""), "1700Mi")
	guardtest.Protect(greedy)
	node.Run(greedy)
	m, killer := newGuardTestManager(map[*v1.Pod]statsapi.PodStats{greedy: greedyStats, first: firstStats})

	if _, err := m.synchronize(ctx, &mockDiskInfoProvider{dedicatedImageFs: ptr.To(false)}, func() []*v1.Pod { return []*v1.Pod{greedy, first} }); err != nil {
		t.Fatalf("synchronize: %v", err)
	}

	if killer.pod == nil || killer.pod.Name != first.Name {
		t.Errorf("killed %v, want %s", killer.pod, first.Name)
	}
	node.ExpectHolds(t, greedy.UID)
}
