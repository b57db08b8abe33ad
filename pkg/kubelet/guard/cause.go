package guard

import "slices"

// Cause is why the kubelet attempts to stop a protected pod. The set is
// closed: the same strings are metric label values, configuration values and
// JSON values. The zero value is invalid.
type Cause string

const (
	// AdmissionRejected: an admission handler of the kubelet rejected the running pod,
	// usually after a restart of the kubelet.
	AdmissionRejected Cause = "AdmissionRejected"
	// PodVanished: the API source no longer has the pod.
	PodVanished Cause = "PodVanished"
	// OrphanedRuntimePod: the runtime has the pod, the kubelet does not know it.
	OrphanedRuntimePod Cause = "OrphanedRuntimePod"
	// TerminalPhaseReported: the phase in the API is Failed or Succeeded while the
	// containers run.
	TerminalPhaseReported Cause = "TerminalPhaseReported"
	// Evicted: the eviction manager chose the pod.
	Evicted Cause = "Evicted"
	// Preempted: the pod has to make room for a critical pod.
	Preempted Cause = "Preempted"
	// NodeShutdown: the node shuts down.
	NodeShutdown Cause = "NodeShutdown"
	// ActiveDeadlineExceeded: spec.activeDeadlineSeconds has passed.
	ActiveDeadlineExceeded Cause = "ActiveDeadlineExceeded"
	// VolumeLimitExceeded: the node can attach no more volumes.
	VolumeLimitExceeded Cause = "VolumeLimitExceeded"
	// PodCgroupMissing: the pod's cgroup is not where the kubelet expects it.
	PodCgroupMissing Cause = "PodCgroupMissing"
	// CgroupCleanup: the pod's cgroup is about to be destroyed, and every
	// process in it.
	CgroupCleanup Cause = "CgroupCleanup"
	// SandboxChanged: the pod's sandbox is gone, doubled or different.
	SandboxChanged Cause = "SandboxChanged"
	// ContainerHashChanged: what the kubelet recorded about a container differs
	// although the API object did not change.
	ContainerHashChanged Cause = "ContainerHashChanged"
	// ContainerStateUnknown: the runtime does not know a container's state, or has
	// forgotten a pod whose processes run.
	ContainerStateUnknown Cause = "ContainerStateUnknown"
	// ResizeRecordLost: a resize policy requires a restart only because the record of
	// the actuated resources is lost.
	ResizeRecordLost Cause = "ResizeRecordLost"
	// RestartReported: by the API object all containers are being restarted, and none of
	// them has exited.
	RestartReported Cause = "RestartReported"
	// ObjectRolledBack: the API shows an older object of the pod, as after a restore
	// of its storage, whose images differ from those that run.
	ObjectRolledBack Cause = "ObjectRolledBack"
	// VolumeUnmount: a volume is about to be unmounted under the containers.
	VolumeUnmount Cause = "VolumeUnmount"
	// ResourcesReclaimed: devices, exclusive CPUs, pinned memory or resource claims
	// of a pod that runs are about to be given to others.
	ResourcesReclaimed Cause = "ResourcesReclaimed"
	// MemoryLimitLowered: the memory limit of a cgroup above the pod is about to
	// fall below what is in use, upon which the kernel kills.
	MemoryLimitLowered Cause = "MemoryLimitLowered"
	// RuntimeStop is the last line of defence: a stop or remove call that no
	// other hook had allowed. It stays at zero in a correct build.
	RuntimeStop Cause = "RuntimeStop"
)

// ExplicitDeletion is the value of the label cause of
// kubelet_guard_allowed_kills_total for pods that were stopped because their deletion
// was requested. It is never a reason to refuse.
const ExplicitDeletion Cause = "ExplicitDeletion"

var causes = []Cause{
	AdmissionRejected, PodVanished, OrphanedRuntimePod, TerminalPhaseReported,
	Evicted, Preempted, NodeShutdown, ActiveDeadlineExceeded,
	VolumeLimitExceeded, PodCgroupMissing, CgroupCleanup, SandboxChanged,
	ContainerHashChanged, ContainerStateUnknown, ResizeRecordLost, RestartReported,
	ObjectRolledBack, VolumeUnmount, ResourcesReclaimed, MemoryLimitLowered, RuntimeStop,
}

// Causes returns all causes that can lead to a refusal, in a stable order.
func Causes() []Cause { return slices.Clone(causes) }

// endsPod reports whether letting an attempt of this cause through ends the pod
// for good. The others stop containers that the kubelet starts again, so they
// must not disarm the guard for what comes later.
func (c Cause) endsPod() bool {
	switch c {
	case AdmissionRejected, PodVanished, OrphanedRuntimePod, TerminalPhaseReported,
		Evicted, Preempted, NodeShutdown, ActiveDeadlineExceeded, VolumeLimitExceeded:
		return true
	}
	return false
}

// needsRunningContainer reports whether the cause is an attempt only while a
// container runs. The others are attempts on a pod in back-off, too: its
// sandbox is up and its containers would have been started again.
func (c Cause) needsRunningContainer() bool {
	switch c {
	case CgroupCleanup, SandboxChanged, ContainerHashChanged, ContainerStateUnknown, ResizeRecordLost,
		RestartReported, ObjectRolledBack, VolumeUnmount, MemoryLimitLowered, RuntimeStop:
		return true
	}
	return false
}

// lasting reports whether the reason persists although the kubelet does not try
// again: a vanished object stays absent, an older one stays older, and admission runs
// once per kubelet start. Holds of the other causes end when the attempts do.
func (c Cause) lasting() bool {
	switch c {
	case AdmissionRejected, PodVanished, OrphanedRuntimePod, ObjectRolledBack:
		return true
	}
	return false
}
