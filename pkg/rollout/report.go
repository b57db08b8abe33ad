package rollout

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/pkg/kubelet/guard"
)

// Phase reports how far a node is with a request. The zero value is invalid.
type Phase string

const (
	// Observed: the node could do what the request's image and configuration ask.
	Observed Phase = "Observed"
	// Refused: nothing was changed. The node is inspected again from time to time and goes on
	// when the reason is gone.
	Refused Phase = "Refused"
	// Waiting: for a slot, or because the roll-out is paused. Nothing was changed.
	Waiting Phase = "Waiting"
	// Installing: the node is being changed; the message says at which step.
	Installing Phase = "Installing"
	// Done: the node runs what was requested, and the same containers.
	Done Phase = "Done"
	// RolledBack: the change failed and the old kubelet runs again.
	RolledBack Phase = "RolledBack"
	// Failed: the change failed, and the old kubelet is not healthy either, or it was not
	// restored (Kept). Someone has to inspect the node.
	Failed Phase = "Failed"
)

// Phases returns all phases.
func Phases() []Phase {
	return []Phase{Observed, Refused, Waiting, Installing, Done, RolledBack, Failed}
}

// Stopped reports whether the roll-out is stopped at the node until an operator acts.
func (p Phase) Stopped() bool { return p == Refused || p == RolledBack || p == Failed }

// Reason explains why a node stopped, in a word that does not change. It is empty in other
// phases, except for ReasonUnitChanged.
type Reason string

const (
	// ReasonUnitChanged: a node that is Done runs its kubelet with the arguments that its
	// unit had then; someone has changed the unit since.
	ReasonUnitChanged Reason = "UnitChanged"
	// Nothing was changed.
	ReasonArchitecture Reason = "Architecture"        // the image's kubelet is for another one
	ReasonVersion      Reason = "Version"             // not the minor version of the node's kubelet, or it does not fit the API server
	ReasonBuild        Reason = "Build"               // not the kubelet that the request names
	ReasonUnit         Reason = "Unit"                // kubelet.service is not understood
	ReasonConfig       Reason = "Configuration"       // the image's kubelet does not accept the flags and the configuration of the node's
	ReasonForeignGuard Reason = "ForeignGuard"        // the node has the guard from elsewhere, such as a package
	ReasonKubelet      Reason = "KubeletUnhealthy"    // the kubelet was not healthy before
	ReasonNode         Reason = "NodeNotReady"        // the node was not ready before
	ReasonPressure     Reason = "NodeUnderPressure"   // the node was short of disk, memory or PIDs before
	ReasonRuntime      Reason = "RuntimeNotAnswering" // the container runtime cannot be asked, or is not the kubelet's
	ReasonSpace        Reason = "NoSpace"             // not enough room for the kubelet
	ReasonHeld         Reason = "PodsHeld"            // pods are held that ReleaseHeldUIDs does not name
	ReasonPreparation  Reason = "PreparationFailed"   // a file could not be written
	ReasonOtherPool    Reason = "OtherPool"           // the node belongs to another pool; in no report of a Node
	// The change was rolled back, or kept in place.
	ReasonNotStarted   Reason = "KubeletDoesNotStart" // it ended, again and again
	ReasonNotHealthy   Reason = "KubeletNotHealthy"   // no good answer in time
	ReasonOtherKubelet Reason = "OtherKubelet"        // another program or version runs
	ReasonUnguarded    Reason = "Unguarded"           // it runs without the guard
	ReasonMode         Reason = "Mode"                // the guard has another mode
	ReasonGuarded      Reason = "Guarded"             // Stock was requested, and the guard runs
	ReasonContainers   Reason = "ContainersStopped"   // containers do not run any more
	ReasonNotReady     Reason = "NodeDidNotGetReady"  // the API server has not heard from it
	ReasonInterrupted  Reason = "Interrupted"         // the node or the installer was stopped midway
)

// Kubelet is what is known about a kubelet.
type Kubelet struct {
	// Version as in v1.36.3+guard.0.1.0.
	Version string `json:"version,omitempty"`
	// Mode of the guard; empty for a kubelet without guard.
	Mode guard.Mode `json:"mode,omitempty"`
	// SHA256 is the checksum of the program, in lower case hexadecimal digits.
	SHA256 string `json:"sha256,omitempty"`
	// Path of the program on the node.
	Path string `json:"path,omitempty"`
}

// Report is what a node says about a request.
type Report struct {
	// RequestID is the ID of the Request.
	RequestID string `json:"requestID"`
	Pool      string `json:"pool"`
	Target    Target `json:"target"`
	Phase     Phase  `json:"phase"`
	Reason    Reason `json:"reason,omitempty"`
	// Attempt is another one for each failed attempt of a node; empty for a phase that is no
	// failure. See ResumeAnnotation.
	Attempt string `json:"attempt,omitempty"`
	// Kept: the change failed and was kept in place, because the old kubelet would stop
	// pods that the guard holds, or may hold.
	Kept bool `json:"kept,omitempty"`
	// Message is for people: what happened and what to do.
	Message string `json:"message,omitempty"`
	// Architecture of the node, as Go names it.
	Architecture string `json:"architecture,omitempty"`
	// Before is the kubelet that ran when the node started with the request, Now the one
	// that ran when the report was written, Offered that of the image (without a mode).
	Before  Kubelet `json:"before,omitzero"`
	Now     Kubelet `json:"now,omitzero"`
	Offered Kubelet `json:"offered,omitzero"`
	// Protected and Held are numbers of pods before the change, 0 for a kubelet without
	// guard.
	Protected int `json:"protected,omitempty"`
	Held      int `json:"held,omitempty"`
	// HeldPods are namespace/name of held pods, at most 20.
	HeldPods []string `json:"heldPods,omitempty"`
	// Containers is how many containers ran before the change, Stopped which of them
	// were found stopped without a reason of their own (namespace/pod/container), at
	// most 20.
	Containers int      `json:"containers,omitempty"`
	Stopped    []string `json:"stopped,omitempty"`
	// Started is when the node started to be changed, Time when the report was written.
	Started metav1.Time `json:"started,omitzero"`
	Time    metav1.Time `json:"time"`
}

// ReportOf returns the report of a node, and nil when it has none. The error names the
// node.
func ReportOf(node *corev1.Node) (*Report, error) {
	data, ok := node.Annotations[ReportAnnotation]
	if !ok {
		return nil, nil
	}
	report := &Report{}
	// Not strict: an installer may be newer than who reads this.
	if err := decodeLoose(data, report); err != nil {
		return nil, fmt.Errorf("node %s: annotation %s: %w", node.Name, ReportAnnotation, err)
	}
	return report, nil
}

// Contradiction returns how the Node contradicts the report that it is Done: its kubelet has
// registered with another version. The reason is empty when it does not. The node's own
// kubelet may have any version: the distribution upgrades it.
func (r Report) Contradiction(node *corev1.Node) (Reason, string) {
	is := node.Status.NodeInfo.KubeletVersion
	guarded := strings.Contains(is, guardedVersion)
	var reason Reason
	switch {
	case r.Phase != Done:
		return "", ""
	case !r.Target.Guarded() && !guarded, r.Target.Guarded() && is == r.Now.Version:
		return "", ""
	case !r.Target.Guarded():
		reason = ReasonGuarded
	case guarded:
		reason = ReasonOtherKubelet
	default:
		reason = ReasonUnguarded
	}
	return reason, fmt.Sprintf("it reports that it is done with %s, but its kubelet has registered with the version %q", r.Now.Version, is)
}

// guardedVersion is in the version of every guarded kubelet.
const guardedVersion = "+guard."

// Annotation returns the value of ReportAnnotation.
func (r Report) Annotation() string { return encode(r) }

// Marked reports whether the node is marked as failed.
func Marked(node *corev1.Node) bool { return node.Labels[StateLabel] == StateFailed }

// Resumed reports whether a retry of the failed attempt was requested.
func Resumed(node *corev1.Node, attempt string) bool {
	return attempt != "" && node.Annotations[ResumeAnnotation] == attempt
}
