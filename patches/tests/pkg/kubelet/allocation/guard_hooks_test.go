package allocation

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
)

// recordingAdmitHandler records that it is called, as a resource manager would
// take note of the pod's CPUs.
type recordingAdmitHandler struct {
	asked int
	admit bool
}

func (h *recordingAdmitHandler) judge(*lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	h.asked++
	return lifecycle.PodAdmitResult{Admit: h.admit, Reason: "NodeAffinity", Message: "the label is gone"}
}

func newGuardTestPod() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "web-uid"},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "server", Image: "server:1"}}},
	}
}

func newGuardTestManager(t *testing.T) (m Manager, rejecting, next *recordingAdmitHandler) {
	rejecting, next = &recordingAdmitHandler{}, &recordingAdmitHandler{admit: true}
	m = makeAllocationManager(t, &containertest.FakeRuntime{}, nil, &cm.NodeConfig{})
	m.AddPodAdmitHandlers(lifecycle.PodAdmitHandlers{rejecting, next})
	return m, rejecting, next
}

func TestGuardAdmissionRejection(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			node := guardtest.Install(t)
			pod := newGuardTestPod()
			kind.Change(pod)
			node.Run(pod)
			m, rejecting, next := newGuardTestManager(t)

			admitted, reason, message := addPod(t, m, nil, pod)

			if admitted != kind.Kept {
				t.Errorf("admitted: %v, want %v", admitted, kind.Kept)
			}
			if !admitted && (reason != "NodeAffinity" || message != "the label is gone") {
				t.Errorf("rejected with %q, %q: not what the handler said", reason, message)
			}
			if rejecting.asked != 1 {
				t.Errorf("the rejecting handler was called %d times, want once", rejecting.asked)
			}
			if (next.asked == 1) != kind.Kept {
				t.Errorf("the handler behind the rejecting one was called %d times; it must be called for kept pods only", next.asked)
			}
			if _, allocated := m.GetContainerResourceAllocation(pod.UID, "server"); allocated != kind.Kept {
				t.Errorf("resources allocated: %v, want %v", allocated, kind.Kept)
			}
			if kind.Kept {
				node.ExpectHolds(t, pod.UID, guard.AdmissionRejected)
			} else {
				node.ExpectHolds(t, pod.UID)
			}
		})
	}
}

func TestGuardAdmissionRejectionOfPodThatDoesNotRun(t *testing.T) {
	node := guardtest.Install(t)
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	m, _, next := newGuardTestManager(t)

	// After a reboot nothing runs: there is nothing to keep.
	if admitted, _, _ := addPod(t, m, nil, pod); admitted {
		t.Error("admitted although a handler rejects the pod and none of it runs")
	}
	if next.asked != 0 {
		t.Error("the handler behind the rejecting one was called")
	}
	node.ExpectHolds(t, pod.UID)
}

func TestGuardAdmissionRejectionIsOverruledForEveryHandler(t *testing.T) {
	node := guardtest.Install(t)
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	m, _, _ := newGuardTestManager(t)
	second := &recordingAdmitHandler{}
	m.AddPodAdmitHandlers(lifecycle.PodAdmitHandlers{second})

	if admitted, reason, _ := addPod(t, m, nil, pod); !admitted {
		t.Errorf("rejected (%s) by the second of two rejecting handlers", reason)
	}
	if second.asked != 1 {
		t.Errorf("the last handler was called %d times, want once", second.asked)
	}
}

func TestGuardAdmissionRejectionOfResizeStands(t *testing.T) {
	node := guardtest.Install(t)
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	m, _, next := newGuardTestManager(t)

	if err := setAllocated(t, m, pod); err != nil {
		t.Fatal(err)
	}
	resized := pod.DeepCopy()
	resized.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}
	if admitted, _, _ := admitResize(t, m.(*manager), resized); admitted {
		t.Error("a resize that a handler rejects was admitted")
	}
	if next.asked != 0 {
		t.Error("the handler behind the rejecting one was called for the resize")
	}
	node.ExpectHolds(t, pod.UID)
}

func TestGuardAdmissionAuditModeRejects(t *testing.T) {
	node := guardtest.Install(t, func(c *guard.Configuration) { c.Mode = guard.Audit })
	pod := newGuardTestPod()
	guardtest.Protect(pod)
	node.Run(pod)
	m, _, _ := newGuardTestManager(t)

	if admitted, _, _ := addPod(t, m, nil, pod); admitted {
		t.Error("mode Audit changed the outcome of admission")
	}
	if list := node.Guard.Pods(); len(list.Items) != 1 || len(list.Items[0].Audited) != 1 || list.Items[0].Audited[0].Cause != guard.AdmissionRejected {
		t.Errorf("audited: %+v, want one attempt with cause %s", list.Items, guard.AdmissionRejected)
	}
}

// countingAdmitHandler records the pods that count next to the one to admit, and
// rejects none.
type countingAdmitHandler struct{ others []*v1.Pod }

func (h *countingAdmitHandler) judge(attrs *lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	h.others = attrs.OtherPods
	return lifecycle.PodAdmitResult{Admit: true}
}

// A pod that is kept in spite of its rejection takes no room from one that ran next to
// it, and leaves none to one that has not started.
func TestGuardAdmissionNextToARejectedPod(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		for _, runs := range []bool{true, false} {
			t.Run(kind.Name+map[bool]string{true: "/neighbour runs", false: "/neighbour has not started"}[runs], func(t *testing.T) {
				node := guardtest.Install(t)
				pod := newGuardTestPod()
				kind.Change(pod)
				node.Run(pod)
				m, _, _ := newGuardTestManager(t)
				// As after a restart; since 1.37 only pods with an allocation count.
				if err := setAllocated(t, m, pod); err != nil {
					t.Fatal(err)
				}
				addPod(t, m, nil, pod)
				neighbour := newGuardTestPod()
				neighbour.Name, neighbour.UID = "neighbour", "neighbour-uid"
				if runs {
					neighbour.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "server", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
				}
				counting := &countingAdmitHandler{}
				m.(*manager).admitHandlers = lifecycle.PodAdmitHandlers{counting}
				active := []*v1.Pod{pod}

				if admitted, reason, _ := addPod(t, m, active, neighbour); !admitted {
					t.Errorf("the neighbour is rejected: %s", reason)
				}

				want := 1
				if kind.Kept && runs {
					want = 0
				}
				if len(counting.others) != want {
					t.Errorf("%d other pods count, want %d", len(counting.others), want)
				}
				if len(active) != 1 || active[0] != pod {
					t.Error("the caller's list of pods was changed")
				}
			})
		}
	}
}
