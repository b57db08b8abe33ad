package admission

import (
	"fmt"
	"maps"
)

// Verdict is the short form of a Decision. The zero value is invalid.
type Verdict string

const (
	// Allowed: the rule has nothing against the request.
	Allowed Verdict = "Allowed"
	// Refused: the rule is against the request.
	Refused Verdict = "Refused"
	// Overridden: the rule refused, and a valid override let the request pass.
	Overridden Verdict = "Overridden"
	// Failed: the rule could not find out what it needs.
	Failed Verdict = "Failed"
)

// Verdicts returns all verdicts.
func Verdicts() []Verdict { return []Verdict{Allowed, Refused, Overridden, Failed} }

// Reason is the stable part of a refusal, for machines: it becomes the reason of
// the response's status and of the audit annotation. The zero value is invalid in a
// refusal.
type Reason string

// Reasons of refusals. A rule adds its own here, so that the list stays closed.
const (
	// ReasonDeletionProtected: the value of the label is always.
	ReasonDeletionProtected Reason = "DeletionProtected"
	// ReasonDependentsExist: the value is cascading, and something depends on the
	// object.
	ReasonDependentsExist Reason = "DependentsExist"
	// ReasonDependentsUnknown: the value is cascading, and the webhook has no right to find
	// out what depends on the object.
	ReasonDependentsUnknown Reason = "DependentsUnknown"
	// ReasonReplicasNotZero: a workload may go only once it has no replicas.
	ReasonReplicasNotZero Reason = "ReplicasNotZero"
	// ReasonReplicasNotConfirmed: no annotation confirms the new number.
	ReasonReplicasNotConfirmed Reason = "ReplicasNotConfirmed"
	// ReasonOwnedByDeployment: a ReplicaSet changes only with its Deployment.
	ReasonOwnedByDeployment Reason = "OwnedByDeployment"
	// ReasonProtectionRemoved: a label or grant is removed, which disarms the node guard.
	ReasonProtectionRemoved Reason = "ProtectionRemoved"
	// ReasonWindowClosed: no operation window is open for the changed fields.
	ReasonWindowClosed Reason = "WindowClosed"
	// ReasonDisruptionBudget: a budget that selects the pod allows no disruption.
	ReasonDisruptionBudget Reason = "DisruptionBudget"
	// ReasonNodeDeleted: the pod was ready when its node was deleted, and is kept for a while.
	ReasonNodeDeleted Reason = "NodeDeleted"
	// ReasonNodeLimit: the deletions of the period are used up.
	ReasonNodeLimit Reason = "NodeLimit"
	// ReasonReadyFloor: too few nodes of the pool would be ready.
	ReasonReadyFloor Reason = "ReadyFloor"
	// ReasonMalformed: a label, annotation or object cannot be understood.
	ReasonMalformed Reason = "Malformed"
)

// Decision is the result of a rule.
type Decision struct {
	Verdict Verdict
	// Reason, Message and NextStep are set in a refusal. Message is what was
	// refused and why, NextStep is a whole sentence with the command to run. Neither
	// ends with a newline.
	Reason   Reason
	Message  string
	NextStep string
	// Err is set in a failure.
	Err error
	// Warnings are shown to the client whatever the verdict is.
	Warnings []string
	// Annotations go to the audit log. The key is a single word, such as "budget";
	// the API server prefixes it with the name of the webhook entry.
	Annotations map[string]string
}

// Allow returns a Decision that lets the request pass.
func Allow() Decision { return Decision{Verdict: Allowed} }

// Refuse returns a Decision against the request.
func Refuse(reason Reason, message, nextStep string) Decision {
	return Decision{Verdict: Refused, Reason: reason, Message: message, NextStep: nextStep}
}

// Fail returns the Decision of a rule that could not find out what it needs. The
// message becomes part of the response.
func Fail(format string, arguments ...any) Decision {
	return Decision{Verdict: Failed, Err: fmt.Errorf(format, arguments...)}
}

// Annotate returns the decision with one more audit annotation.
func (d Decision) Annotate(key, value string) Decision {
	annotations := map[string]string{}
	maps.Copy(annotations, d.Annotations)
	annotations[key] = value
	d.Annotations = annotations
	return d
}

// Warn returns the decision with one more warning.
func (d Decision) Warn(format string, arguments ...any) Decision {
	d.Warnings = append(d.Warnings[:len(d.Warnings):len(d.Warnings)], fmt.Sprintf(format, arguments...))
	return d
}

// text returns message and next step of a refusal.
func (d Decision) text() string {
	if d.NextStep == "" {
		return d.Message
	}
	return d.Message + ". " + d.NextStep
}
