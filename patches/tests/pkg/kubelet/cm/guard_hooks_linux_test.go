package cm

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
)

// oneProcessCgroups is a cgroup manager whose only cgroup has one process.
type oneProcessCgroups struct {
	CgroupManager
	pid       int
	destroyed int
}

func (c *oneProcessCgroups) Pids(klog.Logger, CgroupName) []int { return []int{c.pid} }

func (c *oneProcessCgroups) Destroy(klog.Logger, *CgroupConfig) error {
	c.destroyed++
	return nil
}

func TestGuardPodCgroupDestruction(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node := guardtest.Install(t)
			pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "web-uid"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "server"}}}}
			kind.Change(pod)
			node.Run(pod)
			// The guard has seen the object, as it has in a running kubelet.
			node.Appear(pod)
			if pod.DeletionTimestamp != nil {
				guard.RefuseTermination(pod, false, false, false)
			}
			// A real process: the manager kills with a signal.
			process := exec.Command("sleep", "60")
			if err := process.Start(); err != nil {
				t.Fatal(err)
			}
			exited := make(chan struct{})
			go func() {
				defer close(exited)
				_ = process.Wait()
			}()
			t.Cleanup(func() {
				_ = process.Process.Kill()
				<-exited
			})
			cgroups := &oneProcessCgroups{pid: process.Process.Pid}
			m := &podContainerManagerImpl{cgroupManager: cgroups}

			err := m.Destroy(logger, NewCgroupName(RootCgroupName, "burstable", GetPodCgroupNameSuffix(pod.UID)))

			if kind.Kept {
				if !errors.Is(err, guard.ErrRefused) {
					t.Errorf("error %v, want one that wraps %q", err, guard.ErrRefused)
				}
				select {
				case <-exited:
					t.Error("the process was killed")
				case <-time.After(50 * time.Millisecond):
				}
				node.ExpectHolds(t, pod.UID, guard.CgroupCleanup)
			} else {
				if err != nil {
					t.Errorf("error %v, want none", err)
				}
				select {
				case <-exited:
				case <-time.After(10 * time.Second):
					t.Error("the process was not killed within 10 s")
				}
				node.ExpectHolds(t, pod.UID)
			}
			if got := cgroups.destroyed == 0; got != kind.Kept {
				t.Errorf("cgroup removed %d times, want kept: %v", cgroups.destroyed, kind.Kept)
			}
		})
	}
}
