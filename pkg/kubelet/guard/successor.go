package guard

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
)

// A pod whose start waits.
//
// When the object of a pod is lost, its controller creates another of the same name
// within a second. The kubelet holds the old pod, so both would run, and on the same node
// the new one may use the old one's data directory: two database servers on one
// directory are worse than one that waits. Lock files do not help, since the two have PID
// namespaces of their own. A successor that shares nothing starts at once, because
// Services do not reach a pod without an object.
//
// The same holds for a pod whose processes run although the container runtime has
// forgotten it: started again, it would run twice.
//
// Waiting is no failure of the pod: the kubelet checks before it creates the sandbox, in
// SyncPod after the check of the network, and retries with its usual back-off.

const (
	// EventWaitingForHeldPod is a Warning on the pod that waits, once.
	EventWaitingForHeldPod = "WaitingForHeldPod"
	// PodWaitingForHeldPod is the pod condition that is True while the pod waits.
	PodWaitingForHeldPod v1.PodConditionType = "kubelet-guard.io/WaitingForHeldPod"
	// waitingLinger is how long after its last attempt to start a pod counts as
	// waiting. The kubelet's back-off is at most syncFrequency and half of it.
	waitingLinger = 3 * time.Minute
)

// ErrMustWait is wrapped by the error of a pod whose start waits.
var ErrMustWait = errors.New("the kubelet guard lets the pod wait")

// waitingPod is a pod that waits.
type waitingPod struct {
	namespace, name string
	held            types.UID
	shares          []string
	since, last     time.Time
}

// CheckStart returns an error wrapping ErrMustWait when the containers of the pod
// must not be started now. started: the runtime has active containers of it, so that it
// has been started before; it continues then. It touches no disk and queries neither the
// runtime nor the API server about a pod without the label.
func (g *Guard) CheckStart(pod *v1.Pod, started bool) error {
	if g.config.Mode != Enforce {
		return nil
	}
	if !started {
		if err := g.checkForgotten(pod); err != nil {
			return err
		}
	}
	if g.vanished.Load() == 0 {
		return nil
	}
	held, shares := g.predecessor(pod)
	g.mu.Lock()
	now := g.clock.Now()
	waiting := g.waiting[pod.UID]
	if held == nil || started {
		delete(g.waiting, pod.UID)
		g.mu.Unlock()
		return nil
	}
	first := waiting == nil
	if first {
		waiting = &waitingPod{namespace: pod.Namespace, name: pod.Name, since: now}
		g.waiting[pod.UID] = waiting
	}
	waiting.held, waiting.shares, waiting.last = held.uid, shares, now
	reference := podReference(pod.Namespace, pod.Name, pod.UID)
	message := waiting.message()
	g.mu.Unlock()
	if first {
		klog.InfoS("A pod waits for a held pod of the same name", "pod", klog.KObj(pod), "podUID", pod.UID, "heldPodUID", held.uid, "shares", shares)
		g.writeSoon(reference, nil, v1.EventTypeWarning, EventWaitingForHeldPod, message)
	}
	return fmt.Errorf("%w: %s", ErrMustWait, message)
}

func (w *waitingPod) message() string {
	return fmt.Sprintf("The kubelet does not start this pod while the held pod of the same name (UID %s), whose object is gone, runs here: both would use %s. "+
		"It starts when the held pod is released or its object is in the API again.", w.held, strings.Join(w.shares, ", "))
}

// checkForgotten is CheckStart for a pod that the runtime has forgotten.
func (g *Guard) checkForgotten(pod *v1.Pod) error {
	if g.kernel == nil || !g.Protects(pod) {
		return nil
	}
	g.mu.Lock()
	r := g.records[pod.UID]
	mayRun := r != nil && r.evidence == nil && (r.earlier || g.RunsAlready(pod))
	g.mu.Unlock()
	if !mayRun {
		return nil
	}
	if made, _ := g.inventory.pod(pod.UID, g.clock.Now(), confirmInterval); made != nil {
		return nil
	}
	if runs, err := g.kernel.podHasProcesses(pod.UID); err == nil && !runs {
		return nil
	}
	const detail = "its processes run, and the container runtime does not know it: it is not started a second time"
	if g.refuse(r, ContainerStateUnknown, detail, isAlive) {
		return fmt.Errorf("%w: %s", ErrMustWait, detail)
	}
	return nil
}

// predecessor returns the pod without an object that the given pod would share
// something with that cannot be shared, and what that is. A released pod counts until
// nothing of it runs any more.
func (g *Guard) predecessor(pod *v1.Pod) (*podRecord, []string) {
	g.mu.Lock()
	var found []*podRecord
	for _, r := range g.records {
		if r.lost && !r.present && r.pod != nil && r.uid != pod.UID && r.name == pod.Name && r.namespace == pod.Namespace {
			found = append(found, r)
		}
	}
	g.mu.Unlock()
	for _, r := range found {
		g.mu.Lock()
		shares := sharedWith(r, pod)
		held := r.holds[PodVanished] != nil
		g.mu.Unlock()
		if len(shares) > 0 && (held || g.alive(r, false)) {
			return r, shares
		}
	}
	return nil, nil
}

// sharedWith returns what the held pod and its successor would both use and cannot.
func sharedWith(held *podRecord, pod *v1.Pod) []string {
	var shares []string
	for i := range pod.Spec.Volumes {
		volume := &pod.Spec.Volumes[i]
		switch {
		case volume.PersistentVolumeClaim != nil:
			claim := volume.PersistentVolumeClaim.ClaimName
			if usesClaim(held.pod, claim) && !held.manyNodes(claim) {
				shares = append(shares, "claim "+claim)
			}
		case volume.Ephemeral != nil:
			// Its claim is named after pod and volume, so that both have the same.
			if claim := pod.Name + "-" + volume.Name; usesClaim(held.pod, claim) && !held.manyNodes(claim) {
				shares = append(shares, "claim "+claim)
			}
		case volume.HostPath != nil:
			if writesPath(held.pod, volume.HostPath.Path) && writesVolume(pod, volume.Name) {
				shares = append(shares, "host path "+volume.HostPath.Path)
			}
		}
	}
	taken := hostPorts(held.pod)
	for _, port := range hostPorts(pod) {
		if slices.ContainsFunc(taken, port.conflicts) {
			shares = append(shares, fmt.Sprintf("host port %d/%s", port.number, port.protocol))
		}
	}
	slices.Sort(shares)
	return slices.Compact(shares)
}

func usesClaim(pod *v1.Pod, claim string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == claim ||
			v.Ephemeral != nil && pod.Name+"-"+v.Name == claim
	})
}

// manyNodes reports whether a claim of the pod is made for many nodes at once, so
// that its users are prepared for each other. A claim that was not saved, or that is
// bound to a volume of this node, is not.
func (r *podRecord) manyNodes(claim string) bool {
	for _, v := range r.volumes {
		if v.Claim.Name != claim {
			continue
		}
		if v.Volume.Spec.Local != nil || v.Volume.Spec.HostPath != nil {
			return slices.Equal(v.Claim.Spec.AccessModes, []v1.PersistentVolumeAccessMode{v1.ReadOnlyMany})
		}
		return len(v.Claim.Spec.AccessModes) > 0 && !slices.ContainsFunc(v.Claim.Spec.AccessModes, func(mode v1.PersistentVolumeAccessMode) bool {
			return mode != v1.ReadWriteMany && mode != v1.ReadOnlyMany
		})
	}
	return false
}

// writesPath reports whether a container of the pod may write to the host path, or to
// a folder above or below it.
func writesPath(pod *v1.Pod, path string) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool {
		return v.HostPath != nil && overlap(v.HostPath.Path, path) && writesVolume(pod, v.Name)
	})
}

func overlap(a, b string) bool {
	a, b = strings.TrimRight(a, "/")+"/", strings.TrimRight(b, "/")+"/"
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

func writesVolume(pod *v1.Pod, volume string) bool {
	writes := func(c v1.Container) bool {
		return slices.ContainsFunc(c.VolumeMounts, func(m v1.VolumeMount) bool { return m.Name == volume && !m.ReadOnly }) ||
			slices.ContainsFunc(c.VolumeDevices, func(d v1.VolumeDevice) bool { return d.Name == volume })
	}
	return slices.ContainsFunc(pod.Spec.Containers, writes) || slices.ContainsFunc(pod.Spec.InitContainers, writes)
}

type hostPort struct {
	number   int32
	protocol v1.Protocol
	ip       string
}

// conflicts is how the scheduler and the kubelet's admission judge two host ports
// (k8s.io/kube-scheduler/framework, HostPortInfo).
func (p hostPort) conflicts(other hostPort) bool {
	anywhere := func(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }
	return p.number == other.number && p.protocol == other.protocol &&
		(p.ip == other.ip || anywhere(p.ip) || anywhere(other.ip))
}

func hostPorts(pod *v1.Pod) []hostPort {
	var ports []hostPort
	for _, containers := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range containers {
			for _, p := range c.Ports {
				if p.HostPort != 0 {
					ports = append(ports, hostPort{number: p.HostPort, protocol: cmp.Or(p.Protocol, v1.ProtocolTCP), ip: p.HostIP})
				}
			}
		}
	}
	return ports
}

// waitingLocked returns the pods that wait.
func (g *Guard) waitingLocked() []WaitingState {
	var states []WaitingState
	for uid, w := range g.waiting {
		states = append(states, WaitingState{Namespace: w.namespace, Name: w.name, UID: uid, HeldUID: w.held, Shares: w.shares, Since: w.since})
	}
	slices.SortFunc(states, func(a, b WaitingState) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return states
}

// wake has the pods synced that wait for a pod of which nothing runs any more, so that
// they need not wait for the kubelet's back-off.
func (g *Guard) wake() {
	g.mu.Lock()
	over := map[types.UID]*podRecord{}
	for uid, w := range g.waiting {
		if r := g.records[w.held]; r == nil || r.holds[PodVanished] == nil {
			over[uid] = r
		}
	}
	g.mu.Unlock()
	for uid, r := range over {
		if r == nil || !g.alive(r, false) {
			g.requestSync(uid)
		}
	}
}

// tidyWaitingLocked forgets pods that have not tried to start for long: they are gone.
func (g *Guard) tidyWaitingLocked(now time.Time) {
	for uid, w := range g.waiting {
		if now.Sub(w.last) > waitingLinger {
			delete(g.waiting, uid)
		}
	}
}
