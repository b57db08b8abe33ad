package rollout

import (
	"fmt"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// Namespace is where the installers run. It is apart from the namespace of the
	// webhook, which admits restricted pods only: an installer is privileged.
	Namespace = "kubelet-guard-rollout"
	// ServiceAccount of the installers.
	ServiceAccount = "guard-installer"
	// Container is the name of the only container of an installer's pod.
	Container = "installer"

	// NameLabel has the value Name on everything that belongs to a roll-out.
	NameLabel = "app.kubernetes.io/name"
	// Name is the value of NameLabel.
	Name = "guard-installer"
	// PoolLabel has the name of the pool, on DaemonSets, their pods and the slots.
	PoolLabel = guardv1alpha1.GroupName + "/rollout-pool"

	// RequestAnnotation on the pod template has the Request, as JSON.
	RequestAnnotation = guardv1alpha1.GroupName + "/rollout-request"
	// PoolAnnotation on the pod template has the Pool, as JSON.
	PoolAnnotation = guardv1alpha1.GroupName + "/rollout-pool-definition"
	// PausedAnnotation on the DaemonSet, with the value "true": no installer starts to
	// change its node. What has started is finished.
	PausedAnnotation = guardv1alpha1.GroupName + "/rollout-paused"

	// StartedAnnotation on the DaemonSet has when its request was made, in RFC 3339. A node
	// that was created later has joined: what it refuses does not stop the roll-out.
	StartedAnnotation = guardv1alpha1.GroupName + "/rollout-started"
	// StoppedAnnotation on a slot has the ID of the request with which its node stopped.
	// The report of the node explains why.
	StoppedAnnotation = guardv1alpha1.GroupName + "/rollout-stopped"

	// UnguardedTaint keeps pods from a node that is not guarded yet. The node registers
	// itself with it, and the installer removes it when the guarded kubelet runs.
	UnguardedTaint = guardv1alpha1.GroupName + "/unguarded"

	// ReportAnnotation on a Node has its Report, as JSON.
	ReportAnnotation = guardv1alpha1.GroupName + "/rollout-report"
	// StateLabel marks a Node where a roll-out failed. It is for people: what
	// removes it resumes nothing.
	StateLabel = guardv1alpha1.GroupName + "/rollout"
	// StateFailed is the only value of StateLabel.
	StateFailed = "failed"

	// ResumeAnnotation on a Node has the Attempt of the report of a
	// roll-out that failed there. The installer tries the same request again. A value of another
	// attempt, or none, means nothing.
	ResumeAnnotation = guardv1alpha1.GroupName + "/rollout-resume"

	// Environment variables of the installer's container, filled from the pod.
	RequestEnv   = "GUARD_REQUEST"
	PoolEnv      = "GUARD_POOL"
	NodeEnv      = "NODE_NAME"
	PodEnv       = "POD_NAME"
	NamespaceEnv = "POD_NAMESPACE"

	// HostRoot is where the installer sees the root of its node.
	HostRoot = "/host"
	// InstallerPath and KubeletPath are where the image has its two programs.
	InstallerPath = "/guard-installer"
	// KubeletPath is the guarded kubelet in the image.
	KubeletPath = "/kubelet"
)

// Paths on a node.
const (
	// InstallDir holds what was installed, in a folder for each kubelet that is named
	// by its SHA-256 checksum.
	InstallDir = "/opt/kubelet-guard"
	// ConfigDir holds guard configurations, each named by its SHA-256 checksum.
	ConfigDir = "/etc/kubernetes/kubelet-guard"
	// StateDir holds the journal of a change.
	StateDir = "/var/lib/kubelet-guard/rollout"
	// KubeletUnit is the unit that runs the kubelet.
	KubeletUnit = "kubelet.service"
	// DropIn makes KubeletUnit run a kubelet of InstallDir. Renaming a file to this
	// path, or removing it, is what switches a node. Its name sorts behind those of
	// kubeadm (10-) and of the packages (90-).
	DropIn = "/etc/systemd/system/kubelet.service.d/95-kubelet-guard-rollout.conf"
)

// Reasons of events on the Node.
const (
	// EventDone: the node runs what was requested.
	EventDone = "KubeletRolledOut"
	// EventRefused: nothing was changed, the message explains why.
	EventRefused = "KubeletRolloutRefused"
	// EventRolledBack: the old kubelet runs again.
	EventRolledBack = "KubeletRolledBack"
	// EventFailed: the old kubelet was restored and is not healthy.
	EventFailed = "KubeletRollbackFailed"
	// EventKept: the new kubelet is not healthy and was kept in place, because the old
	// one would stop pods that it holds.
	EventKept = "KubeletNotRolledBack"
)

// EventReasons returns the reasons of all events that an installer creates.
func EventReasons() []string {
	return []string{EventDone, EventRefused, EventRolledBack, EventFailed, EventKept}
}

// DaemonSetName returns the name of the DaemonSet of a pool.
func DaemonSetName(pool string) string { return Name + "-" + pool }

// SlotName returns the name of the Lease that an installer of the pool creates before its
// node is changed, and deletes afterwards. Slots are numbered from 0 to MaxUnavailable-1,
// and higher ones stand for slots of nodes that have left the pool. The holder of a slot
// is the name of a node, and the Node owns it: with the Node it goes.
func SlotName(pool string, slot int) string { return fmt.Sprintf("%s-%s-%d", Name, pool, slot) }
