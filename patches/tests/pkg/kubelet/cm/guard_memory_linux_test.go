package cm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	libcontainercgroups "github.com/opencontainers/cgroups"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	critest "k8s.io/cri-api/pkg/apis/testing"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/kubernetes/pkg/kubelet/cm/cpumanager"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	"k8s.io/kubernetes/pkg/kubelet/guard/guardtest"
	"k8s.io/utils/ptr"
)

// limitedCgroups is a node with one pod in a cgroup of all pods. What the guard reads
// of them is in a folder, so that cgroup v2 is not needed.
func limitedCgroups(t *testing.T, kind guardtest.Kind) (node *guardtest.Node, m CgroupManager, kubepods CgroupName) {
	logger, _ := ktesting.NewTestContext(t)
	root := t.TempDir()
	runtime := critest.NewFakeRuntimeService()
	g, err := guard.New(guard.Dependencies{
		Configuration: guard.DefaultConfiguration(), NodeName: "node",
		Recorder: &record.FakeRecorder{}, Runtime: runtime, HostRoot: root,
	})
	if err != nil {
		t.Fatal(err)
	}
	before := guard.Install(g)
	t.Cleanup(func() { guard.Install(before) })
	node = &guardtest.Node{Guard: g, Runtime: runtime}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "web-uid"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "server"}}}}
	kind.Change(pod)
	node.Run(pod)
	node.Appear(pod)
	if pod.DeletionTimestamp != nil {
		guard.RefuseTermination(pod, false, false, false)
	}

	kubepods = NewCgroupName(RootCgroupName, fmt.Sprintf("guard-test-%d", os.Getpid()), "kubepods")
	subsystems, err := GetCgroupSubsystems()
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	m = NewCgroupManager(logger, subsystems, "cgroupfs")
	path := filepath.Join(root, "/sys/fs/cgroup", kubepods.ToCgroupfs())
	if !libcontainercgroups.IsCgroup2UnifiedMode() {
		path = filepath.Join(root, subsystems.MountPoints["memory"], kubepods.ToCgroupfs())
	}
	for file, content := range map[string]string{
		"memory.max": "max\n", "memory.current": "2147483648\n",
		"memory.stat": "inactive_file 0\n", "podweb-uid/cgroup.events": "populated 1\n",
	} {
		at := filepath.Join(path, file)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return node, m, kubepods
}

// limitedTo has a memory limit that is below what the pods use.
func limitedTo(name CgroupName) *CgroupConfig {
	return &CgroupConfig{Name: name, ResourceParameters: &ResourceConfig{Memory: ptr.To(int64(1 << 30))}}
}

func expectLimitHolds(t *testing.T, node *guardtest.Node, kept bool) {
	t.Helper()
	if kept {
		node.ExpectHolds(t, "web-uid", guard.MemoryLimitLowered)
	} else {
		node.ExpectHolds(t, "web-uid")
	}
}

func TestGuardMemoryLimitUpdated(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node, m, kubepods := limitedCgroups(t, kind)
			// The cgroup itself is not there, so that the rest cannot be written.
			_ = m.Update(logger, limitedTo(kubepods))
			expectLimitHolds(t, node, kind.Kept)
		})
	}
}

func TestGuardMemoryLimitOfCgroupMadeAgain(t *testing.T) {
	for _, kind := range guardtest.Kinds() {
		t.Run(kind.Name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			node, m, kubepods := limitedCgroups(t, kind)
			t.Cleanup(func() {
				for _, name := range []CgroupName{kubepods, kubepods[:1]} {
					_ = m.Destroy(logger, &CgroupConfig{Name: name})
				}
			})
			if err := m.Create(logger, limitedTo(kubepods)); err != nil {
				t.Skipf("no cgroup can be made here: %v", err)
			}
			if kind.Kept {
				config, err := m.GetCgroupConfig(kubepods, v1.ResourceMemory)
				if err != nil {
					t.Fatal(err)
				}
				if *config.Memory == 1<<30 {
					t.Errorf("memory limit %d, want none", *config.Memory)
				}
			}
			expectLimitHolds(t, node, kind.Kept)
		})
	}
}

// refusingCgroups is a cgroup manager that the guard refuses everything.
type refusingCgroups struct {
	CgroupManager
	err error
}

func (c *refusingCgroups) CgroupName(name string) CgroupName { return ParseCgroupfsToCgroupName(name) }

func (c *refusingCgroups) Validate(CgroupName) error { return nil }

func (c *refusingCgroups) Update(klog.Logger, *CgroupConfig) error { return c.err }

// The kubelet does not start when a reserved cgroup cannot have its limits.
func TestGuardReservedCgroupIsTriedAgain(t *testing.T) {
	busy := errors.New("device or resource busy")
	for name, test := range map[string]struct{ err, want error }{
		"refused by the guard is no error": {fmt.Errorf("limit: %w", guard.ErrRefused), nil},
		"an error of the kernel is one":    {busy, busy},
		"no error":                         {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			logger, _ := ktesting.NewTestContext(t)
			guardtest.Install(t)
			cm := &containerManagerImpl{
				cgroupManager: &refusingCgroups{err: test.err},
				cpuManager:    cpumanager.NewFakeManager(logger),
			}
			err := cm.enforceExistingCgroup(logger, "/system", v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Gi")}, false)
			if !errors.Is(err, test.want) || (err == nil) != (test.want == nil) {
				t.Errorf("error %v, want %v", err, test.want)
			}
		})
	}
}
