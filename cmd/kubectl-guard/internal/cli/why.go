package cli

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/record"
	"kubelet-guard.io/pkg/kubelet/guard"
)

const (
	// textWidth is how wide running text may be.
	textWidth = 98
	// shownEvents bounds the events of one pod.
	shownEvents = 10
)

// podStory is the output of kubectl guard why. A name may have had several pods:
// a held one, its successor, and those that only events remember.
type podStory struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Namespace  string     `json:"namespace"`
	Name       string     `json:"name"`
	Pods       []podFacts `json:"pods"`
	// Unanswered has the nodes that may know more.
	Unanswered []nodeStatus `json:"unanswered,omitempty"`
}

// podFacts is what is known about one pod of the name.
type podFacts struct {
	UID  types.UID `json:"uid"`
	Node string    `json:"node,omitempty"`
	// NodeStatus is nil when the node was not asked or does not exist.
	NodeStatus *nodeStatus `json:"nodeStatus,omitempty"`
	Object     objectState `json:"object"`
	Phase      string      `json:"phase,omitempty"`
	// DeletionAsked is the deletionTimestamp of the object.
	DeletionAsked *metav1.Time `json:"deletionTimestamp,omitempty"`
	// Label is the value of the protection label; nil when there is none, or no
	// object to read it from.
	Label     *string    `json:"label,omitempty"`
	Static    bool       `json:"static,omitempty"`
	Successor *successor `json:"successor,omitempty"`
	// Waiting: this pod does not start, or another one does not before this has ended.
	Waiting *nodes.WaitingPod `json:"waiting,omitempty"`
	// State is what its guard says; empty when it does not know the pod.
	State    guard.State       `json:"state,omitempty"`
	Holds    []guard.HoldState `json:"holds,omitempty"`
	Audited  []guard.HoldState `json:"audited,omitempty"`
	Evidence *guard.Evidence   `json:"evidence,omitempty"`
	// Record is the PodDeletion of the UID.
	Record      *record.PodDeletion `json:"record,omitempty"`
	RecordError string              `json:"recordError,omitempty"`
	// Events about refusals and their end, the oldest first.
	Events []storyEvent `json:"events,omitempty"`
}

type storyEvent struct {
	Time    metav1.Time `json:"time"`
	Reason  string      `json:"reason"`
	Message string      `json:"message"`
	Count   int64       `json:"count"`
}

type whyOptions struct {
	*settings
	output *output
	node   string
	pod    string
}

func newWhyCommand(s *settings) *cobra.Command {
	o := &whyOptions{settings: s, output: newOutput()}
	command := &cobra.Command{
		Use:   "why POD",
		Short: "Tell the story of one pod: protection, holds, refusals, evidence",
		Long: `Tell the story of one pod: whether it is protected and why, what its kubelet refused
to do, whether there is evidence that its deletion was asked for, and what to do.

The pod is looked for in the API, on the nodes, and in events, so it may be gone.`,
		Example: `  kubectl guard why web-0
  kubectl guard why web-0 --node worker-3 -o yaml`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeProtectedPods(s),
		RunE: func(command *cobra.Command, arguments []string) error {
			name, err := podArgument(arguments[0])
			if err != nil {
				return err
			}
			o.pod = name
			return o.run(command.Context())
		},
	}
	o.output.addFlags(command)
	command.Flags().StringVar(&o.node, "node", "", "Ask this node only")
	_ = command.RegisterFlagCompletionFunc("node", completeNodes(s))
	return command
}

func (o *whyOptions) run(ctx context.Context) error {
	if err := o.output.check(); err != nil {
		return err
	}
	c, err := o.connect()
	if err != nil {
		return err
	}
	answers, err := c.nodes.Query(ctx, o.node)
	if err != nil {
		return err
	}
	story, silent, err := o.gather(ctx, c, answers)
	if err != nil {
		return err
	}
	warnSilent(o.warn, silent, len(answers))
	if len(story.Pods) == 0 {
		return fmt.Errorf("pod %s/%s: neither the API, nor a node that answers, nor an event of the guard knows it", c.namespace, o.pod)
	}
	if !o.output.forPeople() {
		return o.output.object(o.Out, story)
	}
	for i := range story.Pods {
		if i > 0 {
			fmt.Fprintln(o.Out)
		}
		o.tell(story, &story.Pods[i])
	}
	return nil
}

// gather puts together what nodes, objects, events and records say.
func (o *whyOptions) gather(ctx context.Context, c *clients, answers []nodes.Answer) (*podStory, []nodes.Answer, error) {
	story := &podStory{APIVersion: outputVersion, Kind: "PodStory", Namespace: c.namespace, Name: o.pod, Pods: []podFacts{}}
	known, silent := podsOf(answers, func(pod guard.PodState) bool { return pod.Namespace == c.namespace && pod.Name == o.pod })
	for _, answer := range silent {
		story.Unanswered = append(story.Unanswered, statusOf(answer))
	}
	// The state of a pod's own node is shown with it.
	byNode := map[string]nodeStatus{}
	for _, answer := range answers {
		byNode[answer.Node.Name] = statusOf(answer)
	}

	object := knownPod{PodState: guard.PodState{Namespace: c.namespace, Name: o.pod}}
	lookUpObject(ctx, c.kube, &object)
	if object.Object == objectUnknown {
		o.warn("pod %s/%s: cannot read its object: %s", c.namespace, o.pod, object.ObjectError)
	}
	var present *corev1.Pod
	if object.Successor != nil {
		// Read again as the pod itself, now that its UID is known.
		object.UID = object.Successor.UID
		object.Successor = nil
		lookUpObject(ctx, c.kube, &object)
		present = object.object
	}

	facts := map[types.UID]*podFacts{}
	var order []types.UID
	of := func(uid types.UID) *podFacts {
		if facts[uid] == nil {
			facts[uid] = &podFacts{UID: uid, Object: object.Object}
			if object.Object == objectPresent {
				facts[uid].Object = objectReplaced
				facts[uid].Successor = &successor{UID: present.UID, Node: present.Spec.NodeName, Phase: present.Status.Phase}
			}
			order = append(order, uid)
		}
		return facts[uid]
	}
	// The pod that has the name now comes first.
	if present != nil {
		f := of(present.UID)
		f.Object, f.Successor, f.Node = objectPresent, nil, present.Spec.NodeName
		f.Phase, f.DeletionAsked = string(present.Status.Phase), present.DeletionTimestamp
		if value, labelled := present.Labels[guard.ExplicitDeletionLabel]; labelled {
			f.Label = &value
		}
		f.Static = present.Annotations[corev1.MirrorPodAnnotationKey] != ""
	}
	for _, pod := range known {
		f := of(pod.UID)
		f.Node, f.State, f.Holds, f.Audited, f.Evidence = pod.Node, pod.State, pod.Holds, pod.Audited, pod.Evidence
	}
	for _, answer := range answers {
		for i := range answer.Waiting {
			waiting := &answer.Waiting[i]
			if waiting.Namespace != c.namespace || waiting.Name != o.pod {
				continue
			}
			// Both know of it: the one that waits, and the one that is waited for.
			for _, uid := range []types.UID{waiting.UID, waiting.HeldUID} {
				if f := of(uid); f.Node == "" || f.Node == answer.Node.Name {
					f.Node, f.Waiting = answer.Node.Name, waiting
				}
			}
		}
	}
	if err := o.addEvents(ctx, c, of); err != nil {
		o.warn("events of pod %s/%s: %v", c.namespace, o.pod, err)
	}
	for _, uid := range order {
		f := facts[uid]
		if status, asked := byNode[f.Node]; asked {
			f.NodeStatus = &status
		}
		found, err := c.records.Find(ctx, uid)
		if err != nil {
			f.RecordError = err.Error()
		}
		f.Record = found
		story.Pods = append(story.Pods, *f)
	}
	return story, silent, nil
}

// addEvents adds what the guards reported about pods of the name.
func (o *whyOptions) addEvents(ctx context.Context, c *clients, of func(types.UID) *podFacts) error {
	list, err := c.kube.CoreV1().Events(c.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.kind": "Pod", "involvedObject.name": o.pod}.String(),
	})
	if err != nil {
		return err
	}
	var events []corev1.Event
	for _, event := range list.Items {
		if (event.Reason == guard.EventKillRefused || event.Reason == guard.EventHoldReleased) && event.InvolvedObject.UID != "" {
			events = append(events, event)
		}
	}
	sort.SliceStable(events, func(i, j int) bool { return eventTime(&events[i]).Before(eventTime(&events[j])) })
	for i := range events {
		event := &events[i]
		f := of(event.InvolvedObject.UID)
		if f.Node == "" {
			f.Node = event.Source.Host
		}
		f.Events = append(f.Events, storyEvent{Time: metav1.NewTime(eventTime(event)), Reason: event.Reason, Message: event.Message, Count: int64(max(event.Count, 1))})
	}
	return nil
}

// eventTime is when the event was last seen, in whichever field it is.
func eventTime(event *corev1.Event) time.Time {
	switch {
	case event.Series != nil:
		return event.Series.LastObservedTime.Time
	case !event.LastTimestamp.IsZero():
		return event.LastTimestamp.Time
	case !event.EventTime.IsZero():
		return event.EventTime.Time
	}
	return event.CreationTimestamp.Time
}

// tell prints what is known about one pod.
func (o *whyOptions) tell(story *podStory, f *podFacts) {
	out := o.Out
	say := func(name, text string) { wrap(out, fmt.Sprintf("%-12s", name+":"), text) }
	say("Pod", story.Namespace+"/"+story.Name)
	say("UID", string(f.UID))
	say("Object", o.objectText(f))
	say("Node", o.nodeText(f))
	say("Protection", protectionText(f))
	say("State", o.stateText(f))
	for _, list := range []struct {
		name  string
		holds []guard.HoldState
	}{{"Holds", f.Holds}, {"Audit", f.Audited}} {
		for i, hold := range list.holds {
			name := ""
			if i == 0 {
				name = list.name + ":"
			}
			text := fmt.Sprintf("%s for %s, last attempt %s ago", hold.Cause, age(o.now(), hold.Since), age(o.now(), hold.LastAttempt))
			if hold.Message != "" {
				text += ": " + hold.Message
			}
			wrap(out, fmt.Sprintf("%-12s", name), text)
		}
	}
	if f.Waiting != nil && f.Waiting.UID == f.UID {
		say("Waits", fmt.Sprintf("for %s, until pod UID %s has ended, which is held on this node: %s", age(o.now(), f.Waiting.Since), f.Waiting.HeldUID, shared(f.Waiting)))
	}
	say("Evidence", o.evidenceText(f))
	o.tellEvents(f)
	for i, text := range adviceFor(story, f) {
		name := ""
		if i == 0 {
			name = "What to do:"
		}
		wrap(out, fmt.Sprintf("%-12s", name), text)
	}
}

func (o *whyOptions) objectText(f *podFacts) string {
	switch f.Object {
	case objectPresent:
		text := "present in the API, phase " + f.Phase
		if f.DeletionAsked != nil {
			text += fmt.Sprintf(", deletion asked for (deletionTimestamp %s)", f.DeletionAsked.UTC().Format(time.RFC3339))
		}
		return text
	case objectReplaced:
		on := f.Successor.Node
		if on == "" {
			on = none
		}
		return fmt.Sprintf("gone; a later pod has the name: UID %s, node %s, phase %s", f.Successor.UID, on, f.Successor.Phase)
	case objectGone:
		return "gone from the API"
	}
	return "could not be read"
}

func (o *whyOptions) nodeText(f *podFacts) string {
	switch {
	case f.Node == "":
		return none
	case f.NodeStatus == nil:
		return f.Node + ", which was not asked or is not a node of this cluster any more"
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
	case f.State != "" && f.Object == objectPresent:
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
	case f.NodeStatus != nil && f.NodeStatus.State == nodes.Guarded && f.Object == objectPresent:
		return fmt.Sprintf("no, it does not match the podSelector of its node, by default %s=%s", guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired)
	case labelled:
		return fmt.Sprintf("it carries %s=%s; its node did not say more", guard.ExplicitDeletionLabel, guard.ExplicitDeletionRequired)
	case f.Object == objectPresent && f.Node == "":
		return "not on a node yet"
	case f.Object == objectPresent:
		return "it does not carry the label; its node did not say more"
	}
	return "it was, when the events were written"
}

func (o *whyOptions) stateText(f *podFacts) string {
	switch {
	case f.State == guard.Held:
		since, _ := holdTimes(f.Holds)
		return fmt.Sprintf("Held since %s (%s)", since.UTC().Format(time.RFC3339), age(o.now(), since))
	case f.State == guard.Protected:
		return "Protected: nothing tries to stop it"
	case f.State == guard.Terminating:
		return "Terminating"
	case f.Object == objectPresent:
		return "not known to a guard"
	case f.NodeStatus != nil && f.NodeStatus.State == nodes.Guarded:
		return "nothing of it is left on its node"
	}
	return "not known"
}

func (o *whyOptions) evidenceText(f *podFacts) string {
	var parts []string
	if f.Evidence != nil {
		parts = append(parts, fmt.Sprintf("%s, known to the kubelet since %s", f.Evidence.Kind, f.Evidence.Time.UTC().Format(time.RFC3339)))
	} else if f.DeletionAsked != nil {
		parts = append(parts, "its object has a deletionTimestamp")
	} else if f.State == "" && f.Object != objectPresent {
		parts = append(parts, "not known any more")
	} else {
		parts = append(parts, "none: nobody is known to have asked for its deletion")
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
		if f.Evidence == nil && f.DeletionAsked == nil {
			parts = nil
		}
		parts = append(parts, text)
	case f.RecordError != "":
		parts = append(parts, "records could not be looked up: "+f.RecordError)
	}
	return strings.Join(parts, "; ")
}

func (o *whyOptions) tellEvents(f *podFacts) {
	events := f.Events
	name := "Events:"
	if extra := len(events) - shownEvents; extra > 0 {
		wrap(o.Out, fmt.Sprintf("%-12s", name), fmt.Sprintf("(%d older ones left out)", extra))
		events, name = events[extra:], ""
	}
	for _, event := range events {
		times := ""
		if event.Count > 1 {
			times = fmt.Sprintf(" (%d times)", event.Count)
		}
		wrap(o.Out, fmt.Sprintf("%-12s", name), fmt.Sprintf("%s ago %s%s: %s", age(o.now(), event.Time.Time), event.Reason, times, event.Message))
		name = ""
	}
}

// adviceFor says what can be done about a pod that is not as it should be.
func adviceFor(story *podStory, f *podFacts) []string {
	var texts []string
	switch {
	case f.State == guard.Held:
		given := map[string]bool{}
		for _, hold := range f.Holds {
			if text := advice[hold.Cause]; text != "" && !given[text] {
				given[text] = true
				texts = append(texts, text)
			}
		}
		switch {
		case f.Waiting != nil && f.Waiting.HeldUID == f.UID:
			texts = append(texts, fmt.Sprintf("Its successor, UID %s, waits on this node and does not start before this pod has ended, because both would use %s. No Service reaches this pod any more, so nobody serves until you decide.", f.Waiting.UID, shared(f.Waiting)))
		case f.Object == objectReplaced:
			texts = append(texts, "Two copies run now, this pod and its successor: see that both may use what they share, or end one.")
		}
		if f.Object == objectPresent {
			texts = append(texts, fmt.Sprintf("To end the pod: kubectl delete pod -n %s %s", story.Namespace, story.Name))
		} else if f.Object != objectUnknown {
			texts = append(texts, fmt.Sprintf("To end the pod: kubectl guard release -n %s %s --uid %s", story.Namespace, story.Name, f.UID))
		}
	case f.Waiting != nil && f.Waiting.UID == f.UID:
		texts = append(texts, fmt.Sprintf("To let it start, end the held pod: kubectl guard release -n %s %s --uid %s", story.Namespace, story.Name, f.Waiting.HeldUID))
	case f.State == "" && f.Object == objectPresent && !f.Static && f.Label == nil:
		texts = append(texts, fmt.Sprintf("To protect it: kubectl guard protect -n %s pod/%s", story.Namespace, story.Name))
	}
	return texts
}

// wrap prints text after a label, broken at spaces and indented by the width of
// the label.
func wrap(out io.Writer, label, text string) {
	line := label
	empty := true
	indent := strings.Repeat(" ", len(label))
	for _, word := range strings.Fields(text) {
		if !empty && len(line)+1+len(word) > textWidth {
			fmt.Fprintln(out, line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	fmt.Fprintln(out, line)
}
