package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// Labels that the kubelet writes on sandboxes and containers; upstream defines
// them in k8s.io/kubelet/pkg/types and pkg/kubelet/kuberuntime/labels.go.
const (
	podUIDLabel       = "io.kubernetes.pod.uid"
	podNameLabel      = "io.kubernetes.pod.name"
	podNamespaceLabel = "io.kubernetes.pod.namespace"
)

// queryTimeout bounds one question to the runtime. Some are asked under locks of
// the kubelet. When the answer does not come, the pod counts as alive.
const queryTimeout = 2 * time.Second

// errSilent: see Guard.ask.
var errSilent = errors.New("not asked: the runtime left the question before unanswered")

// ask puts a question to the runtime. One that is not answered in time is the
// last for a while: with many pods on the node, the kubelet would stand still.
func (g *Guard) ask(question func(context.Context) error) error {
	g.mu.Lock()
	silent := g.clock.Now().Before(g.silentUntil)
	g.mu.Unlock()
	if silent {
		return errSilent
	}
	ctx, cancel := context.WithTimeout(context.Background(), queryTimeout)
	defer cancel()
	err := question(ctx)
	if err != nil && ctx.Err() != nil {
		g.mu.Lock()
		g.silentUntil = g.clock.Now().Add(confirmInterval)
		g.mu.Unlock()
	}
	return err
}

// alive asks the runtime whether a container of the pod runs, or, unless
// runningOnly, whether a sandbox of it is up. An error counts as yes.
func (g *Guard) alive(r *podRecord, runningOnly bool) bool {
	if g.runtime == nil {
		return true
	}
	byUID := map[string]string{podUIDLabel: string(r.uid)}
	var running, up bool
	err := g.ask(func(ctx context.Context) error {
		containers, err := g.runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: byUID})
		if err != nil {
			return err
		}
		running = slices.ContainsFunc(containers, func(c *runtimeapi.Container) bool {
			return mayRun(c) && c.Labels[podUIDLabel] == string(r.uid)
		})
		up = running
		if running || runningOnly {
			return nil
		}
		sandboxes, err := g.runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: byUID})
		up = slices.ContainsFunc(sandboxes, func(s *runtimeapi.PodSandbox) bool {
			return s.State == runtimeapi.PodSandboxState_SANDBOX_READY && s.Labels[podUIDLabel] == string(r.uid)
		})
		return err
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
	return up
}

// mayRun: a container in an unknown state may run.
func mayRun(c *runtimeapi.Container) bool {
	return c.State == runtimeapi.ContainerState_CONTAINER_RUNNING || c.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

func (g *Guard) runtimeFailed(err error, keysAndValues ...any) {
	if errors.Is(err, errSilent) {
		return
	}
	g.metrics.errors.WithLabelValues(opRuntime).Inc()
	klog.ErrorS(err, "The container runtime did not answer the guard; the pod counts as running", keysAndValues...)
}

// awaitRuntime returns when the runtime answers. Until then nothing on this node
// can be stopped or started, so that waiting costs nothing.
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
			klog.InfoS("Waiting for the container runtime, to learn whether pods that are reported as ended run", "err", err)
		}
		g.clock.Sleep(time.Second)
	}
}

// sandboxPod returns what the newest sandbox of the pod tells about it, or nil
// when there is none.
func (g *Guard) sandboxPod(uid types.UID) (*v1.Pod, error) {
	if g.runtime == nil {
		return nil, nil
	}
	var sandboxes []*runtimeapi.PodSandbox
	err := g.ask(func(ctx context.Context) (err error) {
		sandboxes, err = g.runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{podUIDLabel: string(uid)}})
		return err
	})
	sandboxes = slices.DeleteFunc(sandboxes, func(s *runtimeapi.PodSandbox) bool { return s.Labels[podUIDLabel] != string(uid) })
	if err != nil || len(sandboxes) == 0 {
		return nil, err
	}
	newest := slices.MaxFunc(sandboxes, func(a, b *runtimeapi.PodSandbox) int { return int(a.CreatedAt - b.CreatedAt) })
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		UID:         uid,
		Namespace:   newest.Labels[podNamespaceLabel],
		Name:        newest.Labels[podNameLabel],
		Labels:      newest.Labels,
		Annotations: newest.Annotations,
	}}, nil
}

// RefuseContainerChange reports whether a running container is to be kept
// although the hash that the kubelet recorded for it differs from the hash of
// its spec. Only name and image go into that hash, so the container really
// changed only when it runs another image than the spec names; anything else is
// damage or another version's arithmetic.
func (g *Guard) RefuseContainerChange(pod *v1.Pod, container *v1.Container, containerID string) bool {
	r := g.recordOf(pod)
	if r == nil {
		return false
	}
	if g.runtime != nil {
		var response *runtimeapi.ContainerStatusResponse
		err := g.ask(func(ctx context.Context) (err error) {
			response, err = g.runtime.ContainerStatus(ctx, containerID, false)
			return err
		})
		if err != nil {
			g.runtimeFailed(err, "pod", klog.KObj(pod), "containerID", containerID)
		} else if !runsImage(response.GetStatus(), container.Image) {
			return false
		}
	}
	running := true
	return g.refuse(r, ContainerHashChanged,
		fmt.Sprintf("the recorded hash of container %s differs, but its image does not", container.Name), &running)
}

func runsImage(status *runtimeapi.ContainerStatus, image string) bool {
	spec := status.GetImage()
	if specified := spec.GetUserSpecifiedImage(); specified != "" {
		return specified == image
	}
	// Runtimes that do not keep what the kubelet asked for report a full name.
	reported := spec.GetImage()
	return reported == image || strings.HasSuffix(reported, "/"+image) ||
		strings.HasSuffix(reported, "/"+image+":latest") || reported == image+":latest"
}

// RefuseSandboxChange reports whether the pod's sandbox is to be kept although
// the kubelet would make a new one: something still runs in it. containers is how
// many containers of the pod the kubelet knows, in whatever state; the runtime
// is asked about them.
func (g *Guard) RefuseSandboxChange(pod *v1.Pod, containers int) bool {
	r := g.recordOf(pod)
	if r == nil {
		return false
	}
	var running *bool
	if containers == 0 {
		running = new(bool)
	}
	return g.refuse(r, SandboxChanged, "its sandbox is gone or changed while its containers run", running)
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

// ErrRefused is wrapped by every error with which the guard turns a call down.
var ErrRefused = errors.New("refused by the kubelet guard: the pod is protected and its deletion was not asked for")

// CheckKill returns an error wrapping ErrRefused when the pod may not be killed.
// It stands before the containers' preStop hooks, behind the questions with a
// cause of their own: what it refuses is a path that the guard does not know.
func (g *Guard) CheckKill(pod *v1.Pod) error {
	const detail = "the kubelet was about to kill it on a path that the guard does not know; please report this as a bug"
	refused := false
	if _, fromSource := pod.Annotations[sourceAnnotation]; fromSource {
		refused = g.Refuse(pod, RuntimeStop, detail)
	} else {
		// Made up from what the runtime knows: no labels.
		refused = g.RefuseUID(pod.UID, RuntimeStop, detail)
	}
	if refused {
		return fmt.Errorf("kill pod %s: %w", klog.KObj(pod), ErrRefused)
	}
	return nil
}

// RuntimeService returns the CRI client with the last line of defence in front
// of the four calls that stop something.
func (g *Guard) RuntimeService(service internalapi.RuntimeService) internalapi.RuntimeService {
	if g.config.Mode == Off || service == nil {
		return service
	}
	return &lastLine{RuntimeService: service, guard: g}
}

type lastLine struct {
	internalapi.RuntimeService
	guard *Guard
}

// StopContainer stops a container unless the guard refuses.
func (l *lastLine) StopContainer(ctx context.Context, containerID string, timeout int64) error {
	if err := l.guard.checkContainer(ctx, "StopContainer", containerID); err != nil {
		return err
	}
	return l.RuntimeService.StopContainer(ctx, containerID, timeout)
}

// RemoveContainer removes a container unless the guard refuses.
func (l *lastLine) RemoveContainer(ctx context.Context, containerID string) error {
	if err := l.guard.checkContainer(ctx, "RemoveContainer", containerID); err != nil {
		return err
	}
	err := l.RuntimeService.RemoveContainer(ctx, containerID)
	if err == nil {
		l.guard.mu.Lock()
		delete(l.guard.stops, containerID)
		l.guard.mu.Unlock()
	}
	return err
}

// StopPodSandbox stops a sandbox unless the guard refuses.
func (l *lastLine) StopPodSandbox(ctx context.Context, sandboxID string) error {
	if err := l.guard.checkSandbox(ctx, "StopPodSandbox", sandboxID); err != nil {
		return err
	}
	return l.RuntimeService.StopPodSandbox(ctx, sandboxID)
}

// RemovePodSandbox removes a sandbox unless the guard refuses.
func (l *lastLine) RemovePodSandbox(ctx context.Context, sandboxID string) error {
	if err := l.guard.checkSandbox(ctx, "RemovePodSandbox", sandboxID); err != nil {
		return err
	}
	return l.RuntimeService.RemovePodSandbox(ctx, sandboxID)
}

// RunPodSandbox waits until the pod is saved, and ends the permission to stop its
// containers: what runs in the new sandbox is protected again.
func (l *lastLine) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	l.guard.mu.Lock()
	r := l.guard.records[types.UID(config.GetMetadata().GetUid())]
	if r != nil {
		r.restarting = false
	}
	l.guard.mu.Unlock()
	if r != nil {
		l.guard.awaitSaved(ctx, r)
	}
	return l.RuntimeService.RunPodSandbox(ctx, config, handler)
}

// checkContainer is the last line of defence for one container. A container that
// the runtime does not know, or that does not run, is none of its business.
func (g *Guard) checkContainer(ctx context.Context, call, containerID string) error {
	g.mu.Lock()
	_, declared := g.stops[containerID]
	g.mu.Unlock()
	if declared {
		return nil
	}
	containers, err := g.runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{Id: containerID})
	if err != nil {
		g.runtimeFailed(err, "containerID", containerID)
		return fmt.Errorf("%s %s: cannot tell whose container it is: %w", call, containerID, err)
	}
	for _, c := range containers {
		if c.Id == containerID && mayRun(c) {
			return g.checkStop(call, types.UID(c.Labels[podUIDLabel]))
		}
	}
	return nil
}

func (g *Guard) checkSandbox(ctx context.Context, call, sandboxID string) error {
	containers, err := g.runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: sandboxID})
	if err != nil {
		g.runtimeFailed(err, "sandboxID", sandboxID)
		return fmt.Errorf("%s %s: cannot tell whose sandbox it is: %w", call, sandboxID, err)
	}
	for _, c := range containers {
		g.mu.Lock()
		_, declared := g.stops[c.Id]
		g.mu.Unlock()
		if c.PodSandboxId == sandboxID && mayRun(c) && !declared {
			return g.checkStop(call, types.UID(c.Labels[podUIDLabel]))
		}
	}
	return nil
}

func (g *Guard) checkStop(call string, uid types.UID) error {
	r, err := g.recordByUID(uid)
	if err != nil && g.config.Mode == Enforce {
		return fmt.Errorf("%s: %w", call, err)
	}
	if r == nil {
		return nil
	}
	running := true
	if g.refuse(r, RuntimeStop, "the last line of defence stopped a "+call+" call; please report this as a bug", &running) {
		return fmt.Errorf("%s of pod %s: %w", call, klog.KRef(r.namespace, r.name), ErrRefused)
	}
	return nil
}
