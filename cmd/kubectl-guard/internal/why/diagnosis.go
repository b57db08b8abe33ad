package why

import (
	"context"
	"sort"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pods"
	"kubelet-guard.io/cmd/kubectl-guard/internal/record"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// podDiagnosis is the output of kubectl guard why. A name may have had several pods:
// a held one, its successor, and those that only events remember.
type podDiagnosis struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Namespace  string     `json:"namespace"`
	Name       string     `json:"name"`
	Pods       []podFacts `json:"pods"`
	// Unanswered has the nodes that may know more.
	Unanswered []nodes.Status `json:"unanswered,omitempty"`
}

// podFacts is what is known about one pod of the name.
type podFacts struct {
	UID  types.UID `json:"uid"`
	Node string    `json:"node,omitempty"`
	// NodeStatus is nil when the node was not queried or does not exist.
	NodeStatus *nodes.Status    `json:"nodeStatus,omitempty"`
	Object     pods.ObjectState `json:"object"`
	Phase      string           `json:"phase,omitempty"`
	// DeletionRequested is the deletionTimestamp of the object.
	DeletionRequested *metav1.Time `json:"deletionTimestamp,omitempty"`
	// Label is the value of the protection label; nil when there is none, or no
	// object to read it from.
	Label     *string         `json:"label,omitempty"`
	Static    bool            `json:"static,omitempty"`
	Successor *pods.Successor `json:"successor,omitempty"`
	// Waiting: this pod does not start, or another one does not before this has ended.
	Waiting *guard.WaitingState `json:"waiting,omitempty"`
	// State is what its guard reports; empty when it does not know the pod.
	State    guard.State       `json:"state,omitempty"`
	Holds    []guard.HoldState `json:"holds,omitempty"`
	Audited  []guard.HoldState `json:"audited,omitempty"`
	Evidence *guard.Evidence   `json:"evidence,omitempty"`
	// Record is the PodDeletion of the UID.
	Record      *record.PodDeletion `json:"record,omitempty"`
	RecordError string              `json:"recordError,omitempty"`
	// Events about refusals and their end, the oldest first.
	Events []eventRecord `json:"events,omitempty"`
}

type eventRecord struct {
	Time    metav1.Time `json:"time"`
	Reason  string      `json:"reason"`
	Message string      `json:"message"`
	Count   int64       `json:"count"`
}

// diagnose joins what nodes, objects, events and records have about the pod.
func (o *options) diagnose(ctx context.Context, c *factory.Clients, responses []nodes.Response) (*podDiagnosis, []nodes.Response, error) {
	diagnosis := &podDiagnosis{APIVersion: printer.APIVersion, Kind: "PodDiagnosis", Namespace: c.Namespace, Name: o.pod, Pods: []podFacts{}}
	known, silent := pods.Select(responses, func(pod guard.PodState) bool { return pod.Namespace == c.Namespace && pod.Name == o.pod })
	for _, response := range silent {
		diagnosis.Unanswered = append(diagnosis.Unanswered, nodes.StatusOf(response))
	}
	// The state of a pod's own node is shown with it.
	byNode := map[string]nodes.Status{}
	for _, response := range responses {
		byNode[response.Node.Name] = nodes.StatusOf(response)
	}

	object := pods.Pod{PodState: guard.PodState{Namespace: c.Namespace, Name: o.pod}}
	pods.LookUpObject(ctx, c.Kube, &object)
	if object.Object == pods.Unknown {
		o.Warn("pod %s/%s: cannot read its object: %s", c.Namespace, o.pod, object.ObjectError)
	}
	var present *corev1.Pod
	if object.Successor != nil {
		// Read again as the pod itself, now that its UID is known.
		object.UID = object.Successor.UID
		object.Successor = nil
		pods.LookUpObject(ctx, c.Kube, &object)
		present = object.Own
	}

	facts := map[types.UID]*podFacts{}
	var order []types.UID
	of := func(uid types.UID) *podFacts {
		if facts[uid] == nil {
			facts[uid] = &podFacts{UID: uid, Object: object.Object}
			if object.Object == pods.Present {
				facts[uid].Object = pods.Replaced
				facts[uid].Successor = &pods.Successor{UID: present.UID, Node: present.Spec.NodeName, Phase: present.Status.Phase}
			}
			order = append(order, uid)
		}
		return facts[uid]
	}
	// The pod that has the name now comes first.
	if present != nil {
		f := of(present.UID)
		f.Object, f.Successor, f.Node = pods.Present, nil, present.Spec.NodeName
		f.Phase, f.DeletionRequested = string(present.Status.Phase), present.DeletionTimestamp
		if value, labelled := present.Labels[guard.ExplicitDeletionLabel]; labelled {
			f.Label = &value
		}
		f.Static = present.Annotations[corev1.MirrorPodAnnotationKey] != ""
	}
	for _, pod := range known {
		f := of(pod.UID)
		f.Node, f.State, f.Holds, f.Audited, f.Evidence = pod.Node, pod.State, pod.Holds, pod.Audited, pod.Evidence
	}
	for _, response := range responses {
		if response.Pods == nil {
			continue
		}
		for i := range response.Pods.Waiting {
			waiting := &response.Pods.Waiting[i]
			if waiting.Namespace != c.Namespace || waiting.Name != o.pod {
				continue
			}
			// Both know of it: the one that waits, and the one that is waited for.
			for _, uid := range []types.UID{waiting.UID, waiting.HeldUID} {
				if f := of(uid); f.Node == "" || f.Node == response.Node.Name {
					f.Node, f.Waiting = response.Node.Name, waiting
				}
			}
		}
	}
	if err := o.addEvents(ctx, c, of); err != nil {
		o.Warn("events of pod %s/%s: %v", c.Namespace, o.pod, err)
	}
	for _, uid := range order {
		f := facts[uid]
		if status, queried := byNode[f.Node]; queried {
			f.NodeStatus = &status
		}
		found, err := c.Records.Find(ctx, uid)
		if err != nil {
			f.RecordError = err.Error()
		}
		f.Record = found
		diagnosis.Pods = append(diagnosis.Pods, *f)
	}
	return diagnosis, silent, nil
}

// addEvents adds what the guards reported about pods of the name.
func (o *options) addEvents(ctx context.Context, c *factory.Clients, of func(types.UID) *podFacts) error {
	list, err := c.Kube.CoreV1().Events(c.Namespace).List(ctx, metav1.ListOptions{
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
		f.Events = append(f.Events, eventRecord{Time: metav1.NewTime(eventTime(event)), Reason: event.Reason, Message: event.Message, Count: int64(max(event.Count, 1))})
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
