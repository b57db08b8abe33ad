package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func newGuardTestPod(uid types.UID) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "db-0", Namespace: "shop", UID: uid}}
}

// A held pod and its successor, a StatefulSet's for example, have one name.
func TestGuardSuccessorStaysReachableWhenTheHeldPodIsRemoved(t *testing.T) {
	m := NewBasicPodManager()
	held, successor := newGuardTestPod("held"), newGuardTestPod("successor")
	m.AddPod(held)
	m.AddPod(successor)

	m.RemovePod(held)

	if found, ok := m.GetPodByName("shop", "db-0"); !ok || found.UID != successor.UID {
		t.Errorf("by name: %v, %v; want the successor", found, ok)
	}
	if _, ok := m.GetPodByUID(held.UID); ok {
		t.Error("the removed pod is still there by UID")
	}
	if _, ok := m.GetPodByUID(successor.UID); !ok {
		t.Error("the successor is gone by UID")
	}
}

func TestGuardPodIsRemovedByName(t *testing.T) {
	m := NewBasicPodManager()
	pod := newGuardTestPod("only")
	m.AddPod(pod)

	m.RemovePod(pod)

	if found, ok := m.GetPodByName("shop", "db-0"); ok {
		t.Errorf("found %v by name after it was removed", found)
	}
}

// The successor comes and goes while the pod is held: logs and exec go by name.
func TestGuardHeldPodStaysReachableWhenTheSuccessorIsRemoved(t *testing.T) {
	m := NewBasicPodManager()
	held, successor := newGuardTestPod("held"), newGuardTestPod("successor")
	m.AddPod(held)
	m.AddPod(successor)

	m.RemovePod(successor)

	if _, ok := m.GetPodByUID(held.UID); !ok {
		t.Fatal("the held pod is gone by UID")
	}
	if found, ok := m.GetPodByName("shop", "db-0"); !ok || found.UID != held.UID {
		t.Errorf("by name: %v, %v; want the held pod", found, ok)
	}
}
