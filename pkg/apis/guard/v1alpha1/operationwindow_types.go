package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// OperationWindowKind is the kind of an OperationWindow.
const OperationWindowKind = "OperationWindow"

// OperationWindow says when which fields of the selected workloads of its namespace
// may change. It is effective where the namespace carries
// kubelet-guard.io/operation-windows=enforced.
//
// When several windows select a workload, a field may change if one of them lets it
// change at that time: windows add up, none restricts another.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,shortName=opw
// +kubebuilder:printcolumn:name=State,type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name=Until,type=string,JSONPath=`.status.until`
// +kubebuilder:printcolumn:name=Effective,type=string,JSONPath=`.status.conditions[?(@.type=="Effective")].status`
// +kubebuilder:printcolumn:name=Time-Zone,type=string,JSONPath=`.spec.timeZone`
// +kubebuilder:printcolumn:name=Valid,type=string,JSONPath=`.status.conditions[?(@.type=="Valid")].status`,priority=1
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
type OperationWindow struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec OperationWindowSpec `json:"spec"`

	// +optional
	Status OperationWindowStatus `json:"status,omitempty"`
}

// OperationWindowSpec is the specification of an OperationWindow. It is open when
// one of weekly and cron is, except on the excluded dates.
//
// +kubebuilder:validation:XValidation:rule="size(self.?weekly.orValue([])) + size(self.?cron.orValue([])) > 0",message="give at least one entry in weekly or cron; without one the window never opens"
type OperationWindowSpec struct {
	// Which workloads of the namespace the window is about.
	//
	// +optional
	Workloads WorkloadSelector `json:"workloads,omitempty"`

	// Name of the time zone in which all times and dates are read, from the IANA time
	// zone database, such as Europe/Berlin or Etc/UTC.
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self != 'Local'",message="Local is not a time zone of its own; write a name such as Europe/Berlin"
	TimeZone string `json:"timeZone"`

	// Windows of every week.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Weekly []WeeklyWindow `json:"weekly,omitempty"`

	// Windows that start by a cron schedule.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Cron []CronWindow `json:"cron,omitempty"`

	// Dates in the time zone, as 2026-12-24, on which the window is closed from
	// midnight to midnight, whatever weekly and cron have.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=366
	ExcludedDates []Date `json:"excludedDates,omitempty"`

	// What may change while the window is open. Everything, unless given.
	//
	// +optional
	// +kubebuilder:default={fields: {All}}
	Inside FieldSet `json:"inside,omitempty"`

	// What may change while it is closed. Nothing, unless given.
	//
	// +optional
	Outside FieldSet `json:"outside,omitempty"`
}

// WorkloadSelector selects workloads.
type WorkloadSelector struct {
	// Kinds of workloads. All of them, unless given.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=4
	Kinds []WorkloadKind `json:"kinds,omitempty"`

	// Selector over the labels of the workloads themselves, not of their pods. All of
	// them, unless given.
	//
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// WorkloadKind is a kind of workload of the group apps.
//
// +kubebuilder:validation:Enum=Deployment;StatefulSet;DaemonSet;ReplicaSet
type WorkloadKind string

// Kinds of workloads that windows are about.
const (
	DeploymentWorkload  WorkloadKind = "Deployment"
	StatefulSetWorkload WorkloadKind = "StatefulSet"
	DaemonSetWorkload   WorkloadKind = "DaemonSet"
	ReplicaSetWorkload  WorkloadKind = "ReplicaSet"
)

// WeeklyWindow is open on each of its days while the clock of the time zone shows a
// time from "from" up to, and without, "to". When "to" is not later than "from", the
// window goes on through midnight into the next day.
//
// +kubebuilder:validation:XValidation:rule="self.from != self.to",message="from and to are the same; for a whole day write 00:00 and 24:00"
type WeeklyWindow struct {
	// Days on which the window starts.
	//
	// +required
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=7
	Days []Day `json:"days"`

	// Time of the start, as 22:30.
	//
	// +required
	// +kubebuilder:validation:MaxLength=5
	// +kubebuilder:validation:Pattern=`^([01][0-9]|2[0-3]):[0-5][0-9]$`
	From string `json:"from"`

	// Time of the end, up to 24:00.
	//
	// +required
	// +kubebuilder:validation:MaxLength=5
	// +kubebuilder:validation:Pattern=`^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$`
	To string `json:"to"`
}

// Day is a day of the week.
//
// +kubebuilder:validation:Enum=Monday;Tuesday;Wednesday;Thursday;Friday;Saturday;Sunday
type Day string

// Date is a day of the calendar, as 2026-12-24.
//
// +kubebuilder:validation:Pattern=`^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$`
type Date string

// CronWindow is open for the duration after every time that its schedule names.
type CronWindow struct {
	// Schedule in five fields: minute, hour, day of the month, month, day of the week.
	// It is read in the time zone of the window, as that of a CronJob is.
	//
	// +required
	// +kubebuilder:validation:MinLength=9
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="!self.contains('TZ=')",message="the time zone belongs into spec.timeZone"
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('@')",message="write five fields: minute, hour, day of the month, month, day of the week"
	Schedule string `json:"schedule"`

	// How long the window is open, from 1m to 168h, as 90m or 4h30m.
	//
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^([0-9]+(\.[0-9]+)?(s|m|h))+$`
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1m') && duration(self) <= duration('168h')",message="must be from 1m to 168h"
	Duration metav1.Duration `json:"duration"`
}

// FieldSet is which fields of a workload may change: those of the categories in
// fields, and those at or below one of the paths.
type FieldSet struct {
	// Categories of fields.
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=5
	Fields []FieldCategory `json:"fields,omitempty"`

	// Paths of fields, as in refusals: spec.template.spec.terminationGracePeriodSeconds,
	// spec.template.spec.containers[web].livenessProbe, or with [*] for any element or
	// key. A key with dots goes into brackets too:
	// spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt].
	//
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=512
	// +kubebuilder:validation:items:XValidation:rule="self.startsWith('spec.') || self.startsWith('spec[')",message="must be a path below spec, such as spec.template.spec.priorityClassName"
	Paths []string `json:"paths,omitempty"`
}

// FieldCategory is a group of fields of a workload.
//
// +kubebuilder:validation:Enum=All;Images;Environment;Resources;Replicas
type FieldCategory string

// Categories of fields.
const (
	// AllFields is everything in spec.
	AllFields FieldCategory = "All"
	// ImageFields are the images of containers, init containers and image volumes.
	ImageFields FieldCategory = "Images"
	// EnvironmentFields are env and envFrom of containers and init containers.
	EnvironmentFields FieldCategory = "Environment"
	// ResourceFields are requests and limits, of containers, init containers and pod.
	ResourceFields FieldCategory = "Resources"
	// ReplicasField is spec.replicas, also through /scale.
	ReplicasField FieldCategory = "Replicas"
)

// OperationWindowState is whether a window is open.
type OperationWindowState string

// States of a window.
const (
	OperationWindowOpen   OperationWindowState = "Open"
	OperationWindowClosed OperationWindowState = "Closed"
)

// Conditions of an OperationWindow.
const (
	// OperationWindowEffective is true while changes are held to the window.
	OperationWindowEffective = "Effective"
	// OperationWindowValid is false when the window cannot be understood. It then
	// counts as closed.
	OperationWindowValid = "Valid"
)

// OperationWindowStatus is what the webhook says about an OperationWindow.
type OperationWindowStatus struct {
	// Generation of the spec that the rest of the status is about.
	//
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Open or Closed.
	//
	// +optional
	// +kubebuilder:validation:Enum=Open;Closed
	State OperationWindowState `json:"state,omitempty"`

	// When the state changes next. Unset when it does not within 400 days.
	//
	// +optional
	Until *metav1.Time `json:"until,omitempty"`

	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// OperationWindowList is a list of OperationWindows.
//
// +kubebuilder:object:root=true
type OperationWindowList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []OperationWindow `json:"items"`
}
