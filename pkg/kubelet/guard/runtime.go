package guard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// Labels that the kubelet writes on sandboxes and containers; upstream defines
// them in k8s.io/kubelet/pkg/types and pkg/kubelet/kuberuntime/labels.go.
const (
	kubeletLabelPrefix = "io.kubernetes."
	podUIDLabel        = "io.kubernetes.pod.uid"
	podNameLabel       = "io.kubernetes.pod.name"
	podNamespaceLabel  = "io.kubernetes.pod.namespace"
	containerNameLabel = "io.kubernetes.container.name"
)

// queryTimeout bounds one query of the runtime. Some run under locks of the kubelet.
// After a timeout the pod counts as alive.
const queryTimeout = 2 * time.Second

// errRuntimeBackoff: see Guard.queryRuntime.
var errRuntimeBackoff = errors.New("not queried: the runtime timed out a moment ago")

// queryRuntime runs a query of the runtime. After a timeout there are no more queries
// for confirmInterval: with many pods on the node, the kubelet would stall.
func (g *Guard) queryRuntime(query func(context.Context) error) error {
	g.mu.Lock()
	backoff := g.clock.Now().Before(g.runtimeBackoffUntil)
	g.mu.Unlock()
	if backoff {
		return errRuntimeBackoff
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	err := query(ctx)
	if err != nil && ctx.Err() != nil {
		g.mu.Lock()
		g.runtimeBackoffUntil = g.clock.Now().Add(confirmInterval)
		g.mu.Unlock()
	}
	return err
}

// alive reports whether a container of the pod runs, or, unless runningOnly, whether a
// sandbox of it is up, by the runtime. When the runtime does not know the pod at all,
// the kernel decides: a runtime that was replaced, or that lost its records, leaves
// processes behind. An error counts as yes.
func (g *Guard) alive(r *podRecord, runningOnly bool) bool {
	if g.runtime == nil {
		return true
	}
	var running, up bool
	err := g.queryRuntime(func(ctx context.Context) error {
		containers, err := g.containersOf(ctx, r.uid)
		if err != nil {
			return err
		}
		running = slices.ContainsFunc(containers, g.mayRun)
		up = running
		if running || runningOnly && len(containers) > 0 {
			return nil
		}
		sandboxes, err := g.sandboxesOf(ctx, r.uid)
		if err != nil {
			return err
		}
		up = slices.ContainsFunc(sandboxes, func(s *runtimeapi.PodSandbox) bool {
			return s.State == runtimeapi.PodSandboxState_SANDBOX_READY
		})
		if len(containers)+len(sandboxes) == 0 {
			running = g.hasProcesses(r.uid)
			up = running
		}
		return nil
	})
	if err != nil {
		g.runtimeFailed(err, "podUID", r.uid)
		return true
	}
	now := g.clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if running {
		r.runningAt = now
	}
	if up {
		r.aliveAt = now
	}
	if runningOnly {
		return running
	}
	return up
}

// containersOf and sandboxesOf list what the runtime has of a pod, in any state.
func (g *Guard) containersOf(ctx context.Context, uid types.UID) ([]*runtimeapi.Container, error) {
	containers, err := g.runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: map[string]string{podUIDLabel: string(uid)}})
	return slices.DeleteFunc(containers, func(c *runtimeapi.Container) bool { return c.Labels[podUIDLabel] != string(uid) }), err
}

func (g *Guard) sandboxesOf(ctx context.Context, uid types.UID) ([]*runtimeapi.PodSandbox, error) {
	sandboxes, err := g.runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{podUIDLabel: string(uid)}})
	return slices.DeleteFunc(sandboxes, func(s *runtimeapi.PodSandbox) bool { return s.Labels[podUIDLabel] != string(uid) }), err
}

// mayRun reports whether a stop would stop something of the container. One in an
// unknown state may run; the kernel knows.
func (g *Guard) mayRun(c *runtimeapi.Container) bool {
	switch c.State {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return true
	case runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		return g.containerHasProcesses(types.UID(c.Labels[podUIDLabel]), c.Id)
	}
	return false
}

// containerHasProcesses queries the kernel; unknown counts as yes.
func (g *Guard) containerHasProcesses(uid types.UID, containerID string) bool {
	if g.kernel == nil {
		return true
	}
	runs, err := g.kernel.containerHasProcesses(uid, containerID)
	if err != nil {
		g.kernelFailed(err, uid)
	}
	return runs || err != nil
}

// hasProcesses queries the kernel about a pod that the runtime does not know; unknown
// counts as yes.
func (g *Guard) hasProcesses(uid types.UID) bool {
	if g.kernel == nil {
		return false
	}
	runs, err := g.kernel.podHasProcesses(uid)
	if err != nil {
		g.kernelFailed(err, uid)
	}
	return runs || err != nil
}

func (g *Guard) kernelFailed(err error, uid types.UID) {
	g.metrics.errors.WithLabelValues(opProcesses).Inc()
	klog.ErrorS(err, "Cannot determine which processes run; the pod counts as running", "podUID", uid)
}

func (g *Guard) runtimeFailed(err error, keysAndValues ...any) {
	if errors.Is(err, errRuntimeBackoff) {
		return
	}
	g.metrics.errors.WithLabelValues(opRuntime).Inc()
	klog.ErrorS(err, "A query of the container runtime failed; the pod counts as running", keysAndValues...)
}

// awaitRuntime returns when the runtime responds. Until then nothing on this node can
// be stopped or started, so waiting costs nothing.
func (g *Guard) awaitRuntime() {
	if g.runtime == nil {
		return
	}
	for attempt := 0; ; attempt++ {
		ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
		_, err := g.runtime.Version(ctx, "")
		cancel()
		if err == nil {
			return
		}
		if attempt%10 == 0 {
			klog.InfoS("Waiting for the container runtime, to find out whether pods that are reported as ended still run", "err", err)
		}
		g.clock.Sleep(time.Second)
	}
}

// sandboxPod returns the pod as its newest sandbox describes it, or nil when there is
// no sandbox. It queries the runtime only without a recent list of the kubelet.
func (g *Guard) sandboxPod(uid types.UID) (*v1.Pod, error) {
	if g.runtime == nil {
		return nil, nil
	}
	if pod, known := g.inventory.pod(uid, g.clock.Now(), confirmInterval); known {
		return pod, nil
	}
	var sandboxes []*runtimeapi.PodSandbox
	err := g.queryRuntime(func(ctx context.Context) (err error) {
		sandboxes, err = g.sandboxesOf(ctx, uid)
		return err
	})
	if err != nil || len(sandboxes) == 0 {
		return nil, err
	}
	newest := slices.MaxFunc(sandboxes, func(a, b *runtimeapi.PodSandbox) int { return cmp.Compare(a.CreatedAt, b.CreatedAt) })
	return podOfSandbox(uid, newest.Labels, newest.Annotations), nil
}

// RefuseContainerChange reports whether a running container is to be kept
// although the hash that the kubelet recorded for it differs from the hash of
// its spec. Only name and image go into that hash (pickFieldsToHash in
// pkg/kubelet/container/helpers.go), so the container changed only when its spec
// names another image than the kubelet requested when it created it. The runtime
// lists that one (ImageSpec.UserSpecifiedImage); the image in the status of a
// container is what the runtime calls it today. With a runtime that does not keep it,
// or does not respond, the container keeps running.
func (g *Guard) RefuseContainerChange(pod *v1.Pod, container *v1.Container, containerID string) bool {
	r := g.recordOf(pod)
	if r == nil {
		return false
	}
	g.mu.Lock()
	verdict := Decide(g.factsLocked(r, ContainerHashChanged))
	g.mu.Unlock()
	if verdict == Refused || verdict == AllowedByAudit {
		if requested := g.requestedImage(containerID); requested != "" && requested != container.Image {
			return false
		}
	}
	return g.refuse(r, ContainerHashChanged,
		fmt.Sprintf("the recorded hash of container %s differs, but its image does not", container.Name), isAlive)
}

// requestedImage returns the image that the kubelet requested when it created the
// container, or "" when that is unknown.
func (g *Guard) requestedImage(containerID string) string {
	if g.runtime == nil {
		return ""
	}
	var containers []*runtimeapi.Container
	err := g.queryRuntime(func(ctx context.Context) (err error) {
		containers, err = g.runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{Id: containerID})
		return err
	})
	if err != nil {
		g.runtimeFailed(err, "containerID", containerID)
	}
	for _, c := range containers {
		if c.Id == containerID {
			return c.GetImage().GetUserSpecifiedImage()
		}
	}
	return ""
}

// isAlive and isDead are for callers that know whether the attempt would stop
// something.
func isAlive() bool { return true }
func isDead() bool  { return false }

// RefuseUnknownState reports whether a container whose state the runtime does not
// know is to be kept, because processes of it run. A dead one takes the stock path, so
// that it is started again.
func (g *Guard) RefuseUnknownState(pod *v1.Pod, name, containerID string) bool {
	r := g.recordOf(pod)
	return r != nil && g.refuseUnknownState(r, name, containerID)
}

// RefuseUnknownStateUID is RefuseUnknownState for callers that know the pod's UID
// only.
func (g *Guard) RefuseUnknownStateUID(uid types.UID, name, containerID string) bool {
	r, err := g.recordByUID(uid)
	if err != nil {
		return g.enforces(ContainerStateUnknown)
	}
	return r != nil && g.refuseUnknownState(r, name, containerID)
}

func (g *Guard) refuseUnknownState(r *podRecord, name, containerID string) bool {
	return g.refuse(r, ContainerStateUnknown, "the state of container "+name+" is unknown", func() bool {
		return g.containerHasProcesses(r.uid, containerID)
	})
}

// refuseRestartOfAll reports whether the API object is wrong that all containers of
// the pod are being restarted: all of them run, and none has exited. The kubelet
// trusts the condition and would kill them without a grace period
// (ShouldAllContainersRestart in pkg/kubelet/container/helpers.go).
func (g *Guard) refuseRestartOfAll(r *podRecord, pod *v1.Pod) bool {
	return g.refuse(r, RestartReported, "the API object says that all containers are being restarted", func() bool {
		newest, err := g.newestContainers(r.uid)
		if err != nil {
			return true
		}
		for _, c := range pod.Spec.Containers {
			if made := newest[c.Name]; made == nil || !g.mayRun(made) {
				return false
			}
		}
		return true
	})
}

// newestContainers returns the newest container of each name that the runtime has of
// a pod.
func (g *Guard) newestContainers(uid types.UID) (map[string]*runtimeapi.Container, error) {
	newest := map[string]*runtimeapi.Container{}
	if g.runtime == nil {
		return newest, errRuntimeBackoff
	}
	err := g.queryRuntime(func(ctx context.Context) error {
		containers, err := g.containersOf(ctx, uid)
		for _, c := range containers {
			name := c.Labels[containerNameLabel]
			if known := newest[name]; known == nil || c.CreatedAt > known.CreatedAt {
				newest[name] = c
			}
		}
		return err
	})
	if err != nil {
		g.runtimeFailed(err, "podUID", uid)
	}
	return newest, err
}

// RefuseSandboxChange reports whether the pod's sandbox is to be kept although
// the kubelet would make a new one: something still runs in it. containers is how
// many containers of the pod the kubelet knows, in any state; the runtime is queried
// about them.
func (g *Guard) RefuseSandboxChange(pod *v1.Pod, containers int) bool {
	r := g.recordOf(pod)
	if r == nil {
		return false
	}
	var alive func() bool
	if containers == 0 {
		alive = isDead
	}
	return g.refuse(r, SandboxChanged, "its sandbox is gone or changed while its containers run", alive)
}

// IsInitContainer reports whether the pod has an init container of this name; sidecars are
// init containers, too. In a kept sandbox these count as active also when they have exited.
func IsInitContainer(pod *v1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c v1.Container) bool { return c.Name == name })
}

// RefuseCgroupRemoval reports whether a pod's cgroup is to be kept. The name is
// that of upstream's cm.CgroupName, whose last element is "pod<UID>".
func (g *Guard) RefuseCgroupRemoval(cgroup []string) bool {
	if len(cgroup) == 0 {
		return false
	}
	uid, ok := strings.CutPrefix(cgroup[len(cgroup)-1], "pod")
	return ok && g.RefuseUID(types.UID(uid), CgroupCleanup, "its cgroup was about to be removed, and its processes killed")
}

// ErrRefused is wrapped by every error with which the guard refuses a call.
var ErrRefused = errors.New("refused by the kubelet guard: the pod is protected and its deletion was not requested")

// CheckKill returns an error wrapping ErrRefused when the pod may not be killed.
// It comes before the preStop hooks of the containers, and after the hooks with a
// cause of their own: what it refuses is a path that the guard does not know.
func (g *Guard) CheckKill(pod *v1.Pod) error {
	const detail = "the kubelet was about to kill it on a path that the guard does not know; please report this as a bug"
	refused := false
	if _, fromSource := pod.Annotations[sourceAnnotation]; fromSource {
		refused = g.Refuse(pod, RuntimeStop, detail)
	} else {
		// Constructed from what the runtime knows: no labels.
		refused = g.RefuseUID(pod.UID, RuntimeStop, detail)
	}
	if refused {
		return fmt.Errorf("kill pod %s: %w", klog.KObj(pod), ErrRefused)
	}
	return nil
}

// RuntimeService returns the CRI client with the last line of defence in front
// of the four calls that stop something. From the calls that pass through it the guard
// also knows which pod each container and sandbox belongs to.
func (g *Guard) RuntimeService(service internalapi.RuntimeService) internalapi.RuntimeService {
	if g.config.Mode == Off || service == nil {
		return service
	}
	return &runtimeGuard{RuntimeService: service, guard: g}
}

// runtimeGuard is the CRI client of Guard.RuntimeService.
type runtimeGuard struct {
	internalapi.RuntimeService
	guard *Guard
}

// StopContainer stops a container unless the guard refuses.
func (s *runtimeGuard) StopContainer(ctx context.Context, containerID string, timeout int64) error {
	if err := s.guard.checkContainer("StopContainer", containerID); err != nil {
		return err
	}
	return s.RuntimeService.StopContainer(ctx, containerID, timeout)
}

// RemoveContainer removes a container unless the guard refuses.
func (s *runtimeGuard) RemoveContainer(ctx context.Context, containerID string) error {
	if err := s.guard.checkContainer("RemoveContainer", containerID); err != nil {
		return err
	}
	err := s.RuntimeService.RemoveContainer(ctx, containerID)
	if err == nil {
		s.guard.mu.Lock()
		delete(s.guard.stops, containerID)
		s.guard.mu.Unlock()
	}
	return err
}

// StopPodSandbox stops a sandbox unless the guard refuses.
func (s *runtimeGuard) StopPodSandbox(ctx context.Context, sandboxID string) error {
	if err := s.guard.checkSandbox("StopPodSandbox", sandboxID); err != nil {
		return err
	}
	err := s.RuntimeService.StopPodSandbox(ctx, sandboxID)
	if err == nil {
		s.guard.noteStopped(sandboxID)
	}
	return err
}

// RemovePodSandbox removes a sandbox unless the guard refuses.
func (s *runtimeGuard) RemovePodSandbox(ctx context.Context, sandboxID string) error {
	if err := s.guard.checkSandbox("RemovePodSandbox", sandboxID); err != nil {
		return err
	}
	return s.RuntimeService.RemovePodSandbox(ctx, sandboxID)
}

// RunPodSandbox waits until the pod is saved, and starts a new life of it: what runs in
// the new sandbox is protected, whatever was exempt before.
func (s *runtimeGuard) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if r := s.guard.startLife(types.UID(config.GetMetadata().GetUid())); r != nil {
		s.guard.mu.Lock()
		r.exemption.restart = false
		s.guard.mu.Unlock()
		s.guard.awaitSaved(ctx, r)
	}
	id, err := s.RuntimeService.RunPodSandbox(ctx, config, handler)
	if err == nil {
		s.guard.inventory.addSandbox(id, config, s.guard.clock.Now())
	}
	return id, err
}

// CreateContainer starts a new life of the pod, like RunPodSandbox, when its sandbox has
// outlived the previous one, and notes the pod of the container.
func (s *runtimeGuard) CreateContainer(ctx context.Context, podSandboxID string, config *runtimeapi.ContainerConfig, sandboxConfig *runtimeapi.PodSandboxConfig) (string, error) {
	s.guard.startLife(types.UID(sandboxConfig.GetMetadata().GetUid()))
	id, err := s.RuntimeService.CreateContainer(ctx, podSandboxID, config, sandboxConfig)
	if err == nil {
		s.guard.inventory.addContainer(id, types.UID(sandboxConfig.GetMetadata().GetUid()))
	}
	return id, err
}

// ListContainers notes the pods of the containers.
func (s *runtimeGuard) ListContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	containers, err := s.RuntimeService.ListContainers(ctx, filter)
	if err == nil && filter.GetId() == "" && filter.GetPodSandboxId() == "" && filter.GetState() == nil && len(filter.GetLabelSelector()) == 0 {
		s.guard.inventory.listedContainers(containers)
	}
	return containers, err
}

// ListPodSandbox notes the pods of the sandboxes.
func (s *runtimeGuard) ListPodSandbox(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	before := s.guard.clock.Now()
	sandboxes, err := s.RuntimeService.ListPodSandbox(ctx, filter)
	if err == nil && filter.GetId() == "" && filter.GetState() == nil && len(filter.GetLabelSelector()) == 0 {
		s.guard.inventory.listedSandboxes(sandboxes, before)
	}
	return sandboxes, err
}

// noteStopped records that a pod with evidence was stopped: its life is over.
func (g *Guard) noteStopped(sandboxID string) {
	uid, known := g.inventory.ofSandbox(sandboxID)
	if !known {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.records[uid]; r != nil && r.evidence != nil {
		r.evidenceOver = true
	}
}

// startLife returns the record of a pod that gets a new sandbox or container. Evidence
// and exemptions belong to one life of the pod: one that starts again from an object
// without a deletionTimestamp, as after a storage rollback, was not deleted. Evidence
// that arrived while the pod was being started is kept.
func (g *Guard) startLife(uid types.UID) *podRecord {
	g.mu.Lock()
	delete(g.dead, uid)
	r := g.records[uid]
	if r == nil {
		g.mu.Unlock()
		return nil
	}
	var over *Evidence
	if r.present && r.pod != nil && r.pod.DeletionTimestamp == nil {
		if r.evidence == nil || r.evidenceOver {
			r.exemption.end = ""
		}
		if r.evidenceOver {
			over, r.evidence, r.evidenceOver, r.allowed = r.evidence, nil, false, map[Cause]bool{}
			g.forgetEvidenceLocked(r)
		}
	}
	g.mu.Unlock()
	if over != nil {
		klog.InfoS("A pod that was deleted starts again from an object without a deletion; it is protected again", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "evidence", over.Kind)
	}
	return r
}

// checkContainer is the last line of defence for one container. It ignores a container
// that the runtime does not know, or that does not run. It queries the runtime only
// about containers of protected pods that nothing allows to be stopped.
func (g *Guard) checkContainer(call, containerID string) error {
	g.mu.Lock()
	_, declared := g.stops[containerID]
	g.mu.Unlock()
	if declared {
		return nil
	}
	find := func() (*runtimeapi.Container, error) {
		containers, err := g.listForStop(&runtimeapi.ContainerFilter{Id: containerID})
		i := slices.IndexFunc(containers, func(c *runtimeapi.Container) bool { return c.Id == containerID })
		if err != nil || i < 0 {
			return nil, err
		}
		return containers[i], nil
	}
	uid, known := g.inventory.ofContainer(containerID)
	if !known {
		c, err := find()
		if err != nil {
			return g.refuseUnknownOwner(call, "container", err)
		}
		if c == nil {
			return nil
		}
		uid = types.UID(c.Labels[podUIDLabel])
	}
	return g.checkStop(call, uid, func() bool {
		c, err := find()
		return err != nil || c != nil && g.mayRun(c)
	})
}

// checkSandbox is checkContainer for all containers of a sandbox whose stop was not
// declared.
func (g *Guard) checkSandbox(call, sandboxID string) error {
	list := func() ([]*runtimeapi.Container, error) {
		containers, err := g.listForStop(&runtimeapi.ContainerFilter{PodSandboxId: sandboxID})
		return slices.DeleteFunc(containers, func(c *runtimeapi.Container) bool { return c.PodSandboxId != sandboxID }), err
	}
	uid, known := g.inventory.ofSandbox(sandboxID)
	if !known {
		containers, err := list()
		if err != nil {
			return g.refuseUnknownOwner(call, "sandbox", err)
		}
		if len(containers) == 0 {
			return nil
		}
		uid = types.UID(containers[0].Labels[podUIDLabel])
	}
	return g.checkStop(call, uid, func() bool {
		containers, err := list()
		return err != nil || slices.ContainsFunc(containers, func(c *runtimeapi.Container) bool {
			g.mu.Lock()
			_, declared := g.stops[c.Id]
			g.mu.Unlock()
			return !declared && g.mayRun(c)
		})
	})
}

// listForStop lists what a stop would stop.
func (g *Guard) listForStop(filter *runtimeapi.ContainerFilter) (containers []*runtimeapi.Container, err error) {
	err = g.queryRuntime(func(ctx context.Context) (err error) {
		containers, err = g.runtime.ListContainers(ctx, filter)
		return err
	})
	if err != nil {
		g.runtimeFailed(err, "containerID", filter.GetId(), "sandboxID", filter.GetPodSandboxId())
	}
	return containers, err
}

// refuseUnknownOwner decides about a container or sandbox whose pod is unknown.
func (g *Guard) refuseUnknownOwner(call, what string, err error) error {
	if !g.enforces(RuntimeStop) {
		return nil
	}
	return fmt.Errorf("%s: cannot determine the pod of the %s: %w", call, what, err)
}

func (g *Guard) checkStop(call string, uid types.UID, alive func() bool) error {
	r, err := g.recordByUID(uid)
	if err != nil && g.enforces(RuntimeStop) {
		return fmt.Errorf("%s: %w", call, err)
	}
	if r == nil {
		return nil
	}
	if g.refuse(r, RuntimeStop, "the last line of defence stopped a "+call+" call; please report this as a bug", alive) {
		return fmt.Errorf("%s of pod %s: %w", call, klog.KRef(r.namespace, r.name), ErrRefused)
	}
	return nil
}
