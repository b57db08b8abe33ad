package why

import (
	"fmt"
	"strings"
	"time"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// shownEvents bounds the events of one pod.
const shownEvents = 10

// print prints what is known about one pod.
func (o *options) print(diagnosis *podDiagnosis, f *podFacts) {
	out := o.Out
	// The name stands before the first text only.
	field := func(name string, texts ...string) {
		for _, text := range texts {
			printer.Wrap(out, fmt.Sprintf("%-12s", name), text)
			name = ""
		}
	}
	field("Pod:", diagnosis.Namespace+"/"+diagnosis.Name)
	field("UID:", string(f.UID))
	field("Object:", o.objectText(f))
	field("Node:", o.nodeText(f))
	field("Protection:", protectionText(f))
	field("State:", o.stateText(f))
	field("Holds:", o.holdTexts(f.Holds)...)
	field("Audit:", o.holdTexts(f.Audited)...)
	if f.Waiting != nil && f.Waiting.UID == f.UID {
		field("Waits:", fmt.Sprintf("for %s, until pod UID %s has ended, which is held on this node: %s", printer.Age(o.Now(), f.Waiting.Since), f.Waiting.HeldUID, nodes.Shared(f.Waiting)))
	}
	field("Evidence:", o.evidenceText(f))
	field("Events:", o.eventTexts(f.Events)...)
	field("What to do:", adviceFor(diagnosis, f)...)
}

func (o *options) holdTexts(holds []guard.HoldState) []string {
	var texts []string
	for _, hold := range holds {
		text := fmt.Sprintf("%s for %s, last attempt %s ago", hold.Cause, printer.Age(o.Now(), hold.Since), printer.Age(o.Now(), hold.LastAttempt))
		if hold.Message != "" {
			text += ": " + hold.Message
		}
		texts = append(texts, text)
	}
	return texts
}

func (o *options) objectText(f *podFacts) string {
	switch f.Object {
	case pods.Present:
		text := "present in the API, phase " + f.Phase
		if f.DeletionRequested != nil {
			text += fmt.Sprintf(", deletion requested (deletionTimestamp %s)", f.DeletionRequested.UTC().Format(time.RFC3339))
		}
		return text
	case pods.Replaced:
		on := f.Successor.Node
		if on == "" {
			on = printer.None
		}
		return fmt.Sprintf("gone; a later pod has the name: UID %s, node %s, phase %s", f.Successor.UID, on, f.Successor.Phase)
	case pods.Gone:
		return "gone from the API"
	}
	return "could not be read"
}

func (o *options) nodeText(f *podFacts) string {
	switch {
	case f.Node == "":
		return printer.None
	case f.NodeStatus == nil:
		return f.Node + ", which was not queried or is no longer a node of this cluster"
	case f.NodeStatus.State == nodes.Guarded:
		return fmt.Sprintf("%s, guarded, kubelet %s, mode %s", f.Node, f.NodeStatus.Version, f.NodeStatus.Mode)
	}
	return fmt.Sprintf("%s, kubelet %s, %s: %s", f.Node, f.NodeStatus.Version, f.NodeStatus.State, f.NodeStatus.Detail)
}

func protectionText(f *podFacts) string {
	labelled := f.Label != nil && *f.Label == guard.ExplicitDeletionRequired
	switch {
	case f.State != "" && labelled:
		return fmt.Sprintf("yes, it carries %s=%s", guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired)
	case f.State != "" && f.Object == pods.Present:
		return "yes, by the podSelector in the guard configuration of its node"
	case f.State != "":
		return "yes, its kubelet matched it when it had the object, or by the labels of its sandbox"
	case f.Static:
		return "no, a static pod never is"
	case f.NodeStatus != nil && f.NodeStatus.State == nodes.Unguarded:
		if labelled {
			return "no, it carries the label, but its node has no guard"
		}
		return "no, and its node has no guard"
	case f.NodeStatus != nil && f.NodeStatus.State == nodes.Guarded && labelled:
		return "no, it carries the label, but the guard of its node does not list it: see mode and podSelector there"
	case f.NodeStatus != nil && f.NodeStatus.State == nodes.Guarded && f.Object == pods.Present:
		return fmt.Sprintf("no, it does not match the podSelector of its node, by default %s=%s", guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired)
	case labelled:
		return fmt.Sprintf("it carries %s=%s; its node did not report more", guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired)
	case f.Object == pods.Present && f.Node == "":
		return "not on a node yet"
	case f.Object == pods.Present:
		return "it does not carry the label; its node did not report more"
	}
	return "it was, when the events were written"
}

func (o *options) stateText(f *podFacts) string {
	switch {
	case f.State == guard.Held:
		since, _ := pods.HoldTimes(f.Holds)
		return fmt.Sprintf("Held since %s (%s)", since.UTC().Format(time.RFC3339), printer.Age(o.Now(), since))
	case f.State == guard.Protected:
		return "Protected: nothing tries to stop it"
	case f.State == guard.Terminating:
		return "Terminating"
	case f.Object == pods.Present:
		return "not known to a guard"
	case f.NodeStatus != nil && f.NodeStatus.State == nodes.Guarded:
		return "nothing of it remains on its node"
	}
	return "not known"
}

func (o *options) evidenceText(f *podFacts) string {
	var parts []string
	if f.Evidence != nil {
		parts = append(parts, fmt.Sprintf("%s, known to the kubelet since %s", f.Evidence.Kind, f.Evidence.Time.UTC().Format(time.RFC3339)))
	} else if f.DeletionRequested != nil {
		parts = append(parts, "its object has a deletionTimestamp")
	} else if f.State == "" && f.Object != pods.Present {
		parts = append(parts, "not known any more")
	} else {
		parts = append(parts, "none: no request for its deletion is known")
	}
	switch {
	case f.Record != nil:
		text := fmt.Sprintf("a PodDeletion record of %s", f.Record.CreationTimestamp.UTC().Format(time.RFC3339))
		if f.Record.Spec.RequestedBy != "" {
			text += " by " + f.Record.Spec.RequestedBy
		}
		if f.Record.Spec.Reason != "" {
			text += fmt.Sprintf(" (%s)", f.Record.Spec.Reason)
		}
		if f.Evidence == nil && f.DeletionRequested == nil {
			parts = nil
		}
		parts = append(parts, text)
	case f.RecordError != "":
		parts = append(parts, "records could not be looked up: "+f.RecordError)
	}
	return strings.Join(parts, "; ")
}

func (o *options) eventTexts(events []eventRecord) []string {
	var texts []string
	if extra := len(events) - shownEvents; extra > 0 {
		texts = append(texts, fmt.Sprintf("(%d older ones left out)", extra))
		events = events[extra:]
	}
	for _, event := range events {
		times := ""
		if event.Count > 1 {
			times = fmt.Sprintf(" (%d times)", event.Count)
		}
		texts = append(texts, fmt.Sprintf("%s ago %s%s: %s", printer.Age(o.Now(), event.Time.Time), event.Reason, times, event.Message))
	}
	return texts
}
