// Package guardtest helps the tests of the hooks: it installs a guard over a fake
// container runtime for the time of one test, and has the kinds of pods that
// every hook must distinguish. Only tests import it.
package guardtest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	critest "k8s.io/cri-api/pkg/apis/testing"
	"k8s.io/kubernetes/pkg/kubelet/guard"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/ptr"
)

// Node is a guard that is installed for one test, and what it works with.
type Node struct {
	// Guard is the installed guard.
	Guard *guard.Guard
	// Runtime is the container runtime that the guard queries. It is empty at first.
	Runtime *critest.FakeRuntimeService
}

// Install installs a guard with the default configuration, changed by change, and
// puts the one before it back when the test ends. Tests that use it cannot run in
// parallel with each other.
func Install(t testing.TB, change ...func(*guard.Configuration)) *Node {
	t.Helper()
	return InstallWith(t, func(d *guard.Dependencies) {
		for _, f := range change {
			f(d.Configuration)
		}
	})
}

// InstallWith is Install for tests that change more than the configuration. Without
// ProcDir the kernel is not queried, so that a container in an unknown state counts as
// one that runs; see ProcDir.
func InstallWith(t testing.TB, change func(*guard.Dependencies)) *Node {
	t.Helper()
	runtime := critest.NewFakeRuntimeService()
	dependencies := guard.Dependencies{
		Configuration: guard.DefaultConfiguration(),
		NodeName:      "node",
		// Nobody reads the events, and a full recorder would block.
		Recorder: &record.FakeRecorder{},
		Runtime:  runtime,
	}
	change(&dependencies)
	g, err := guard.New(dependencies)
	if err != nil {
		t.Fatalf("new guard: %v", err)
	}
	before := guard.Install(g)
	t.Cleanup(func() { guard.Install(before) })
	return &Node{Guard: g, Runtime: runtime}
}

// StateDir returns a folder for the guard's files, which goes when the test has ended and
// the guard writes no more: T.TempDir fails a test whose last file is still being written.
func StateDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "guard-state-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if err := os.RemoveAll(dir); err == nil || time.Now().After(end) {
				return
			}
		}
	})
	return dir
}

// ProcDir returns a directory like /proc of a node on which a process runs in each of
// the given cgroups, and one in none of a pod.
func ProcDir(t testing.TB, cgroups ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i, cgroup := range append([]string{"/init.scope"}, cgroups...) {
		process := filepath.Join(dir, strconv.Itoa(i+1))
		if err := os.Mkdir(process, 0o755); err != nil {
			t.Fatal(err)
		}
		files := map[string]string{
			"cgroup": "0::" + cgroup + "\n",
			// The state is the third field, the number of threads the twentieth.
			"stat": strconv.Itoa(i+1) + " (server) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 0\n",
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(process, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

// Run puts a ready sandbox of the pod in the runtime, and a running container for
// each container of its spec. The ID of a container is its name.
func (n *Node) Run(pod *v1.Pod) {
	n.Runtime.Lock()
	defer n.Runtime.Unlock()
	sandboxID := "sandbox-" + string(pod.UID)
	labels := map[string]string{
		"io.kubernetes.pod.uid":       string(pod.UID),
		"io.kubernetes.pod.name":      pod.Name,
		"io.kubernetes.pod.namespace": pod.Namespace,
	}
	sandbox := &critest.FakePodSandbox{PodSandboxStatus: runtimeapi.PodSandboxStatus{
		Id:          sandboxID,
		Metadata:    &runtimeapi.PodSandboxMetadata{Uid: string(pod.UID), Name: pod.Name, Namespace: pod.Namespace},
		State:       runtimeapi.PodSandboxState_SANDBOX_READY,
		Labels:      map[string]string{},
		Annotations: pod.Annotations,
	}}
	for k, v := range pod.Labels {
		sandbox.Labels[k] = v
	}
	for k, v := range labels {
		sandbox.Labels[k] = v
	}
	n.Runtime.Sandboxes[sandboxID] = sandbox
	for _, c := range pod.Spec.Containers {
		own := maps.Clone(labels)
		own["io.kubernetes.container.name"] = c.Name
		n.Runtime.Containers[c.Name] = &critest.FakeContainer{
			ContainerStatus: runtimeapi.ContainerStatus{
				Id:       c.Name,
				Metadata: &runtimeapi.ContainerMetadata{Name: c.Name},
				State:    runtimeapi.ContainerState_CONTAINER_RUNNING,
				Image:    &runtimeapi.ImageSpec{Image: c.Image, UserSpecifiedImage: c.Image},
				Labels:   own,
			},
			SandboxID: sandboxID,
		}
	}
}

// Exit lets all containers of the runtime exit and its sandboxes stop.
func (n *Node) Exit() {
	n.Runtime.Lock()
	defer n.Runtime.Unlock()
	for _, c := range n.Runtime.Containers {
		c.State = runtimeapi.ContainerState_CONTAINER_EXITED
	}
	for _, s := range n.Runtime.Sandboxes {
		s.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
}

// Holds returns the causes for which the pod is held, sorted; nil when it is not.
func (n *Node) Holds(uid types.UID) []guard.Cause {
	list := n.Guard.Pods()
	i := slices.IndexFunc(list.Items, func(p guard.PodState) bool { return p.UID == uid })
	if i < 0 {
		return nil
	}
	var causes []guard.Cause
	for _, h := range list.Items[i].Holds {
		causes = append(causes, h.Cause)
	}
	return causes
}

// ExpectHolds fails the test unless the pod is held for exactly these causes.
func (n *Node) ExpectHolds(t testing.TB, uid types.UID, want ...guard.Cause) {
	t.Helper()
	if got := n.Holds(uid); !slices.Equal(got, want) {
		t.Errorf("pod %s: held for %v, want %v", uid, got, want)
	}
}

// Protect labels the pod, as an object of the API source.
func Protect(pod *v1.Pod) {
	setLabel(pod)
	setAnnotation(pod, kubetypes.ConfigSourceAnnotationKey, kubetypes.ApiserverSource)
}

// Kind is a kind of pod that hooks must distinguish.
type Kind struct {
	// Name describes the pod.
	Name string
	// Change makes an ordinary pod one of this kind.
	Change func(*v1.Pod)
	// Kept: a hook keeps such a pod running. The others take the stock path.
	Kept bool
}

// Kinds returns the kinds. The first is the protected pod.
func Kinds() []Kind {
	return []Kind{
		{Name: "protected pod is kept", Change: Protect, Kept: true},
		{Name: "protected pod whose deletion was requested is stopped", Change: func(pod *v1.Pod) { Protect(pod); Delete(pod) }},
		{Name: "pod without the label takes the stock path", Change: func(pod *v1.Pod) {
			setAnnotation(pod, kubetypes.ConfigSourceAnnotationKey, kubetypes.ApiserverSource)
		}},
		{Name: "static pod with the label takes the stock path", Change: func(pod *v1.Pod) {
			setLabel(pod)
			setAnnotation(pod, kubetypes.ConfigSourceAnnotationKey, kubetypes.FileSource)
		}},
		{Name: "mirror pod with the label takes the stock path", Change: func(pod *v1.Pod) {
			Protect(pod)
			setAnnotation(pod, kubetypes.ConfigMirrorAnnotationKey, "hash")
		}},
	}
}

// Delete gives the pod a deletionTimestamp, as a deletion through the API does.
func Delete(pod *v1.Pod) {
	now := metav1.NewTime(time.Now())
	pod.DeletionTimestamp = &now
	if pod.DeletionGracePeriodSeconds == nil {
		pod.DeletionGracePeriodSeconds = ptr.To(int64(30))
	}
}

// AskDeletion shows the guard an explicit deletion of the pod.
func (n *Node) AskDeletion(pod *v1.Pod) {
	Delete(pod)
	n.Appear(pod)
	n.Guard.RefuseTermination(pod, false, false, false)
}

// NewPod returns a pod with one container.
func NewPod() *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "web-uid"},
		Spec:       v1.PodSpec{RestartPolicy: v1.RestartPolicyAlways, Containers: []v1.Container{{Name: "server", Image: "server:1"}}},
	}
}

// RunOrphan runs a pod of the kind that the kubelet has no object of. A pod whose
// deletion was requested has had one.
func (n *Node) RunOrphan(kind Kind, pod *v1.Pod) {
	kind.Change(pod)
	n.Run(pod)
	if pod.DeletionTimestamp != nil {
		n.AskDeletion(pod)
	}
}

func setLabel(pod *v1.Pod) {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[guard.ExplicitDeletionLabel] = guard.ExplicitDeletionRequired
}

func setAnnotation(pod *v1.Pod, key, value string) {
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[key] = value
}

// Vanish runs the pod, shows its object to the guard and takes it away again, and fails
// the test unless the pod is held for that. Appear shows the object again.
func (n *Node) Vanish(t testing.TB, pod *v1.Pod) {
	t.Helper()
	Protect(pod)
	n.Run(pod)
	n.Appear(pod)
	n.Guard.ObserveSource(kubetypes.ApiserverSource, nil)
	if !n.Guard.HoldVanished(kubetypes.ApiserverSource, pod) {
		t.Fatalf("pod %s is not held", pod.UID)
	}
}

// Appear shows the guard a message with just this pod, of the pod's source: what comes
// from the API is of the API, whatever its annotations are. It returns what the guard
// makes of it.
func (n *Node) Appear(pod *v1.Pod) []*v1.Pod {
	source := kubetypes.ApiserverSource
	if pod.Annotations[kubetypes.ConfigSourceAnnotationKey] == kubetypes.FileSource {
		source = kubetypes.FileSource
	}
	return n.Guard.ObserveSource(source, []*v1.Pod{pod})
}
