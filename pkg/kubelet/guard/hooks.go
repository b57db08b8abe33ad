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

// This file is what the patched kubelet calls: one function per question, over
// the one Guard of the process. With none installed every function answers as
// the stock kubelet would act.

var (
	installed  atomic.Pointer[Guard]
	configPath string
	register   sync.Once
)

// AddFlags adds --guard-config.
func AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&configPath, "guard-config", configPath, "Path of the "+ConfigKind+" file of the kubelet guard. Empty: the defaults (mode Enforce, pods labelled "+ExplicitDeletionLabel+"="+ExplicitDeletionRequired+"). A kubelet that cannot read the file does not start.")
}

// Start reads the configuration, installs the Guard of the process and returns
// the CRI client that the kubelet is to use from now on. It must be called
// before the pod sources are made. An error means that the kubelet must not
// start.
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

// Install makes g the Guard of the process; nil removes it. It returns the one
// before, so that a test can put it back.
func Install(g *Guard) *Guard { return installed.Swap(g) }

// Run keeps the books of the installed Guard until the context ends. See
// Guard.Run.
func Run(ctx context.Context, sync func(uid types.UID, released bool)) {
	if g := installed.Load(); g != nil {
		g.Run(ctx, sync)
	}
}

// Refuse reports whether the kubelet must not do to the pod what the cause says.
// detail is shown to people; it may be empty.
func Refuse(pod *v1.Pod, cause Cause, detail string) bool {
	g := installed.Load()
	return g != nil && g.Refuse(pod, cause, detail)
}

// RefuseUID is Refuse for callers that know the pod's UID only.
func RefuseUID(uid types.UID, cause Cause, detail string) bool {
	g := installed.Load()
	return g != nil && g.RefuseUID(uid, cause, detail)
}

// RefuseTermination: see Guard.RefuseTermination.
func RefuseTermination(pod *v1.Pod, runtimeOnly, kill, evict bool) bool {
	g := installed.Load()
	return g != nil && g.RefuseTermination(pod, runtimeOnly, kill, evict)
}

// RefuseSandboxChange: see Guard.RefuseSandboxChange.
func RefuseSandboxChange(pod *v1.Pod, containers int) bool {
	g := installed.Load()
	return g != nil && g.RefuseSandboxChange(pod, containers)
}

// RefuseContainerChange: see Guard.RefuseContainerChange.
func RefuseContainerChange(pod *v1.Pod, container *v1.Container, containerID string) bool {
	g := installed.Load()
	return g != nil && g.RefuseContainerChange(pod, container, containerID)
}

// Protects: see Guard.Protects.
func Protects(pod *v1.Pod) bool {
	g := installed.Load()
	return g != nil && g.Protects(pod)
}

// RefuseUnknownState: see Guard.RefuseUnknownState.
func RefuseUnknownState(pod *v1.Pod, name, containerID string) bool {
	g := installed.Load()
	return g != nil && g.RefuseUnknownState(pod, name, containerID)
}

// RefuseUnknownStateUID: see Guard.RefuseUnknownStateUID.
func RefuseUnknownStateUID(uid types.UID, name, containerID string) bool {
	g := installed.Load()
	return g != nil && g.RefuseUnknownStateUID(uid, name, containerID)
}

// CheckStart: see Guard.CheckStart.
func CheckStart(pod *v1.Pod, started bool) error {
	if g := installed.Load(); g != nil {
		return g.CheckStart(pod, started)
	}
	return nil
}

// OthersInAdmission: see Guard.OthersInAdmission.
func OthersInAdmission(pod *v1.Pod, others []*v1.Pod) []*v1.Pod {
	if g := installed.Load(); g != nil {
		return g.OthersInAdmission(pod, others)
	}
	return others
}

// RunsAlready: see Guard.RunsAlready.
func RunsAlready(pod *v1.Pod) bool {
	g := installed.Load()
	return g != nil && g.RunsAlready(pod)
}

// SparesNeighbour: see Guard.SparesNeighbour.
func SparesNeighbour(pod *v1.Pod, before []*v1.Pod, starved v1.ResourceName, stats func(*v1.Pod) (statsapi.PodStats, bool)) bool {
	g := installed.Load()
	return g != nil && g.SparesNeighbour(pod, before, starved, stats)
}

// RefuseCgroupRemoval: see Guard.RefuseCgroupRemoval.
func RefuseCgroupRemoval(cgroup []string) bool {
	g := installed.Load()
	return g != nil && g.RefuseCgroupRemoval(cgroup)
}

// CheckKill: see Guard.CheckKill.
func CheckKill(pod *v1.Pod) error {
	if g := installed.Load(); g != nil {
		return g.CheckKill(pod)
	}
	return nil
}

// AllowCompletion: see Guard.AllowCompletion.
func AllowCompletion(uid types.UID) {
	if g := installed.Load(); g != nil {
		g.AllowCompletion(uid)
	}
}

// AllowStop: see Guard.AllowStop.
func AllowStop(pod *v1.Pod, containerID string) {
	if g := installed.Load(); g != nil {
		g.AllowStop(pod, containerID)
	}
}

// AllowRestart: see Guard.AllowRestart.
func AllowRestart(pod *v1.Pod) {
	if g := installed.Load(); g != nil {
		g.AllowRestart(pod)
	}
}

// Stoppable: see Guard.Stoppable.
func Stoppable(pods []*v1.Pod, cause Cause, detail string) []*v1.Pod {
	if g := installed.Load(); g != nil {
		return g.Stoppable(pods, cause, detail)
	}
	return pods
}

// Unguarded: see Guard.Unguarded.
func Unguarded(pods []*v1.Pod, cause Cause) []*v1.Pod {
	if g := installed.Load(); g != nil {
		return g.Unguarded(pods, cause)
	}
	return pods
}

// WatchSource: see Guard.WatchSource.
func WatchSource(lw cache.ListerWatcher) cache.ListerWatcher {
	if g := installed.Load(); g != nil {
		return g.WatchSource(lw)
	}
	return lw
}

// ObserveSource: see Guard.ObserveSource.
func ObserveSource(source string, pods []*v1.Pod) []*v1.Pod {
	if g := installed.Load(); g != nil {
		return g.ObserveSource(source, pods)
	}
	return pods
}

// HoldVanished: see Guard.HoldVanished.
func HoldVanished(source string, pod *v1.Pod) bool {
	g := installed.Load()
	return g != nil && g.HoldVanished(source, pod)
}

// CorrectPhase: see Guard.CorrectPhase.
func CorrectPhase(pod *v1.Pod, status *v1.PodStatus) {
	if g := installed.Load(); g != nil {
		g.CorrectPhase(pod, status)
	}
}

// Vanished: see Guard.Vanished.
func Vanished(uid types.UID) bool {
	g := installed.Load()
	return g != nil && g.Vanished(uid)
}

// SaveVolume: see Guard.SaveVolume.
func SaveVolume(pod *v1.Pod, claim *v1.PersistentVolumeClaim, volume *v1.PersistentVolume) {
	if g := installed.Load(); g != nil {
		g.SaveVolume(pod, claim, volume)
	}
}

// SavedClaim: see Guard.SavedClaim.
func SavedClaim(pod *v1.Pod, name string, claim *v1.PersistentVolumeClaim, err error) *v1.PersistentVolumeClaim {
	if g := installed.Load(); g != nil {
		return g.SavedClaim(pod, name, claim, err)
	}
	return nil
}

// SavedVolume: see Guard.SavedVolume.
func SavedVolume(pod *v1.Pod, claim types.UID, err error) *v1.PersistentVolume {
	if g := installed.Load(); g != nil {
		return g.SavedVolume(pod, claim, err)
	}
	return nil
}

// MountContext: see Guard.MountContext.
func MountContext(ctx context.Context, uid types.UID) (context.Context, context.CancelFunc) {
	if g := installed.Load(); g != nil {
		return g.MountContext(ctx, uid)
	}
	return ctx, func() {}
}

// CompletePodStatus: see Guard.CompletePodStatus.
func CompletePodStatus(pod *v1.Pod, old, status *v1.PodStatus) {
	if g := installed.Load(); g != nil {
		g.CompletePodStatus(pod, old, status)
	}
}

// SetNodeCondition: see Guard.SetNodeCondition.
func SetNodeCondition(_ context.Context, node *v1.Node) error {
	if g := installed.Load(); g != nil {
		g.SetNodeCondition(node)
	}
	return nil
}

// Handler returns the handler for PodsPath, or nil when no Guard is installed.
func Handler() http.Handler {
	if g := installed.Load(); g != nil {
		return g
	}
	return nil
}

// OnlyVanished: see Guard.OnlyVanished.
func OnlyVanished(references map[types.UID]int) bool {
	g := installed.Load()
	return g != nil && g.OnlyVanished(references)
}

// RequestToken: see Guard.RequestToken.
func RequestToken(get TokenGetter, name, namespace string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	if g := installed.Load(); g != nil {
		return g.RequestToken(get, name, namespace, request)
	}
	return get(name, namespace, request)
}

// SetCgroupResources: see Guard.SetCgroupResources.
func SetCgroupResources(cgroup []string, path string, memory *int64, set func() error) error {
	if g := installed.Load(); g != nil {
		return g.SetCgroupResources(cgroup, path, memory, set)
	}
	return set()
}

// UpdateReserved: see Guard.UpdateReserved.
func UpdateReserved(update func() error) error {
	if g := installed.Load(); g != nil {
		return g.UpdateReserved(update)
	}
	return update()
}

// EventRecorder: see Guard.EventRecorder.
func EventRecorder(recorder record.EventRecorderLogger) record.EventRecorderLogger {
	if g := installed.Load(); g != nil {
		return g.EventRecorder(recorder)
	}
	return recorder
}
