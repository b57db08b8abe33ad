package guard

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/spf13/pflag"
	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/klog/v2"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The hooks: what the patched kubelet calls. Each is the method of its name on the one
// Guard of the process, which is documented there; the comment here has its place in the
// kubelet.

var (
	installed  atomic.Pointer[Guard]
	configPath string
	register   sync.Once

	// stock is the Guard of a process that has installed none, as upstream's own unit
	// tests. In mode Off the kubelet behaves as stock.
	stock = &Guard{config: &Configuration{Mode: Off}}
)

// current returns the Guard of the process.
func current() *Guard {
	if g := installed.Load(); g != nil {
		return g
	}
	return stock
}

// AddFlags adds --guard-config.
func AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&configPath, "guard-config", configPath, "Path of the "+ConfigKind+" file of the kubelet guard. Empty: the defaults (mode Enforce, pods labelled "+ExplicitDeletionLabel+"="+ExplicitDeletionRequired+"). A kubelet that cannot read the file does not start.")
}

// Start reads the configuration, installs the Guard of the process and returns the CRI
// client that the kubelet must use. It must be called before the pod sources are created.
// After an error the kubelet must not start.
func Start(rootDir string, nodeName types.NodeName, client kubernetes.Interface, recorder record.EventRecorder, runtime internalapi.RuntimeService) (internalapi.RuntimeService, error) {
	config, err := LoadConfiguration(configPath)
	if err != nil {
		return nil, err
	}
	dependencies := Dependencies{Configuration: config, RootDir: rootDir, NodeName: nodeName, Recorder: recorder, Runtime: runtime, ProcDir: "/proc"}
	if client != nil {
		dependencies.Deletions = NewDeletions(client.CoreV1().RESTClient())
		dependencies.Events = client.CoreV1()
	}
	g, err := New(dependencies)
	if err != nil {
		return nil, fmt.Errorf("--guard-config: %w", err)
	}
	register.Do(func() { err = g.metrics.register() })
	if err != nil {
		return nil, fmt.Errorf("register the metrics of the guard: %w", err)
	}
	Install(g)
	klog.InfoS("Kubelet guard is on", "mode", config.Mode, "version", Version(), "podSelector", g.selector.String(), "allowedCauses", config.AllowedCauses, "stateDir", g.stateDir, "config", configPath)
	return g.RuntimeService(runtime), nil
}

// Install makes g the Guard of the process; nil removes it. It returns the previous one,
// so that a test can restore it.
func Install(g *Guard) *Guard { return installed.Swap(g) }

// Run is a goroutine of the kubelet.
func Run(ctx context.Context, sync func(uid types.UID, released bool)) {
	if g := installed.Load(); g != nil {
		g.Run(ctx, sync)
	}
}

// Handler returns the handler for PodsPath, or nil when no Guard is installed.
func Handler() http.Handler {
	if g := installed.Load(); g != nil {
		return g
	}
	return nil
}

// SetNodeCondition is among the setters of the node status.
func SetNodeCondition(_ context.Context, node *v1.Node) error {
	if g := installed.Load(); g != nil {
		g.SetNodeCondition(node)
	}
	return nil
}

// RunsAlready comes before a critical pod is rejected that no preemption can make room for.
func RunsAlready(pod *v1.Pod) bool {
	g := installed.Load()
	return g != nil && g.RunsAlready(pod)
}

// Refuse comes before the kubelet stops a pod: admission, eviction, SyncPod.
func Refuse(pod *v1.Pod, cause Cause, detail string) bool {
	return current().Refuse(pod, cause, detail)
}

// RefuseUID is Refuse where the kubelet knows the UID only: clean-ups, volumes, resources.
func RefuseUID(uid types.UID, cause Cause, detail string) bool {
	return current().RefuseUID(uid, cause, detail)
}

// RefuseTermination comes before a pod worker makes its pod terminating.
func RefuseTermination(pod *v1.Pod, runtimeOnly, kill, evict bool) bool {
	return current().RefuseTermination(pod, runtimeOnly, kill, evict)
}

// RefuseSandboxChange comes before computePodActions replaces the sandbox.
func RefuseSandboxChange(pod *v1.Pod, containers int) bool {
	return current().RefuseSandboxChange(pod, containers)
}

// RefuseContainerChange comes before computePodActions replaces a container whose hash
// differs.
func RefuseContainerChange(pod *v1.Pod, container *v1.Container, containerID string) bool {
	return current().RefuseContainerChange(pod, container, containerID)
}

// RefuseUnknownState comes before computePodActions kills a container in state UNKNOWN.
func RefuseUnknownState(pod *v1.Pod, name, containerID string) bool {
	return current().RefuseUnknownState(pod, name, containerID)
}

// RefuseUnknownStateUID comes before the garbage collection removes a container in state
// UNKNOWN.
func RefuseUnknownStateUID(uid types.UID, name, containerID string) bool {
	return current().RefuseUnknownStateUID(uid, name, containerID)
}

// RefuseCgroupRemoval comes before the removal of a pod's cgroup.
func RefuseCgroupRemoval(cgroup []string) bool { return current().RefuseCgroupRemoval(cgroup) }

// CheckKill comes before the preStop hooks of a pod that is killed.
func CheckKill(pod *v1.Pod) error { return current().CheckKill(pod) }

// CheckStart comes before SyncPod creates anything of a pod.
func CheckStart(pod *v1.Pod, started bool) error { return current().CheckStart(pod, started) }

// Protects is for the few places where a protected pod is treated differently without an
// attempt to stop it.
func Protects(pod *v1.Pod) bool { return current().Protects(pod) }

// FilterStoppable filters the pods of a node shutdown and the victims of a preemption.
func FilterStoppable(pods []*v1.Pod, cause Cause, detail string) []*v1.Pod {
	return current().FilterStoppable(pods, cause, detail)
}

// FilterUnprotected filters the candidates of a preemption.
func FilterUnprotected(pods []*v1.Pod, cause Cause) []*v1.Pod {
	return current().FilterUnprotected(pods, cause)
}

// OthersInAdmission filters the pods whose resources count in admission.
func OthersInAdmission(pod *v1.Pod, others []*v1.Pod) []*v1.Pod {
	return current().OthersInAdmission(pod, others)
}

// SparesNeighbour comes before the eviction manager evicts a pod.
func SparesNeighbour(pod *v1.Pod, before []*v1.Pod, starved v1.ResourceName, stats func(*v1.Pod) (statsapi.PodStats, bool)) bool {
	return current().SparesNeighbour(pod, before, starved, stats)
}

// AllowCompletion follows the natural end of a pod, in the pod workers.
func AllowCompletion(uid types.UID) { current().AllowCompletion(uid) }

// AllowStop comes before a declared stop of a container.
func AllowStop(pod *v1.Pod, containerID string) { current().AllowStop(pod, containerID) }

// AllowRestart comes before a restart of the whole pod.
func AllowRestart(pod *v1.Pod) { current().AllowRestart(pod) }

// WatchSource wraps the ListerWatcher of the API source.
func WatchSource(lw cache.ListerWatcher) cache.ListerWatcher { return current().WatchSource(lw) }

// ObserveSource comes before the pods of a config source are merged.
func ObserveSource(source string, pods []*v1.Pod) []*v1.Pod {
	return current().ObserveSource(source, pods)
}

// HoldVanished comes before the merge removes a pod that its source no longer has.
func HoldVanished(source string, pod *v1.Pod) bool { return current().HoldVanished(source, pod) }

// Vanished comes before requests about a pod that need its object in the API.
func Vanished(uid types.UID) bool { return current().Vanished(uid) }

// OnlyVanished comes before a list or watch of a secret or config map.
func OnlyVanished(references map[types.UID]int) bool { return current().OnlyVanished(references) }

// RequestToken wraps the request of a service account token.
func RequestToken(get TokenGetter, name, namespace string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return current().RequestToken(get, name, namespace, request)
}

// MountContext bounds the wait of SyncPod for the volumes of a pod.
func MountContext(ctx context.Context, uid types.UID) (context.Context, context.CancelFunc) {
	return current().MountContext(ctx, uid)
}

// SaveVolume follows a read of a claim and its volume.
func SaveVolume(pod *v1.Pod, claim *v1.PersistentVolumeClaim, volume *v1.PersistentVolume) {
	current().SaveVolume(pod, claim, volume)
}

// SavedClaim follows a failed read of a claim.
func SavedClaim(pod *v1.Pod, name string, claim *v1.PersistentVolumeClaim, err error) *v1.PersistentVolumeClaim {
	return current().SavedClaim(pod, name, claim, err)
}

// SavedVolume follows a failed read of a volume.
func SavedVolume(pod *v1.Pod, claim types.UID, err error) *v1.PersistentVolume {
	return current().SavedVolume(pod, claim, err)
}

// CorrectPhase follows the computation of a pod's phase.
func CorrectPhase(pod *v1.Pod, status *v1.PodStatus) { current().CorrectPhase(pod, status) }

// CompletePodStatus follows the generation of a pod's status.
func CompletePodStatus(pod *v1.Pod, old, status *v1.PodStatus) {
	current().CompletePodStatus(pod, old, status)
}

// SetCgroupResources wraps the write of the resources of a cgroup.
func SetCgroupResources(cgroup []string, path string, memory *int64, set func() error) error {
	return current().SetCgroupResources(cgroup, path, memory, set)
}

// UpdateReserved wraps the update of a reserved cgroup.
func UpdateReserved(update func() error) error { return current().UpdateReserved(update) }

// EventRecorder wraps the recorder of the kubelet.
func EventRecorder(recorder record.EventRecorder) record.EventRecorderLogger {
	return current().EventRecorder(recorder)
}

// HookCauses has the causes of the hooks that do not take one, for the proof that each
// hook has a test (guard-build prove).
var HookCauses = map[string][]Cause{
	"Start":                 {RuntimeStop},
	"RefuseTermination":     {TerminalPhaseReported, Evicted, PodVanished},
	"RefuseSandboxChange":   {SandboxChanged},
	"RefuseContainerChange": {ContainerHashChanged},
	"RefuseUnknownState":    {ContainerStateUnknown},
	"RefuseUnknownStateUID": {ContainerStateUnknown},
	"RefuseCgroupRemoval":   {CgroupCleanup},
	"CheckKill":             {RuntimeStop},
	"CheckStart":            {ContainerStateUnknown},
	"WatchSource":           {PodVanished},
	"ObserveSource":         {TerminalPhaseReported, RestartReported, ObjectRolledBack},
	"HoldVanished":          {PodVanished},
	"CorrectPhase":          {ContainerStateUnknown},
	"SetCgroupResources":    {MemoryLimitLowered},
	"UpdateReserved":        {MemoryLimitLowered},
}
