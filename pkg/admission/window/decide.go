package window

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// shownFields bounds how many changed fields a refusal names.
	shownFields = 10
	// maxChanges bounds how many openings and closings are looked at to find the
	// next time that suits a change.
	maxChanges = 2000
)

// Window is an OperationWindow that was read for decisions. It is immutable.
type Window struct {
	Name string

	schedule        *Schedule
	problem         error
	kinds           []guardv1alpha1.WorkloadKind
	selector        labels.Selector
	inside, outside fieldSet
}

// Read reads the window. One that is not valid is closed all the time, and when its
// label selector is what cannot be read it selects all workloads of its kinds.
func Read(window *guardv1alpha1.OperationWindow) *Window {
	read := &Window{
		Name:     window.Name,
		kinds:    window.Spec.Workloads.Kinds,
		selector: labels.Everything(),
		inside:   newFieldSet(window.Spec.Inside),
		outside:  newFieldSet(window.Spec.Outside),
	}
	if errs := ValidateOperationWindow(window); len(errs) > 0 {
		read.problem = errs.ToAggregate()
	} else if schedule, err := NewSchedule(&window.Spec); err != nil {
		read.problem = err
	} else {
		read.schedule = schedule
	}
	if selector, err := metav1.LabelSelectorAsSelector(selectorOf(window)); err == nil {
		read.selector = selector
	}
	return read
}

// Selects reports whether the window is about a workload of that kind and with
// these labels.
func (w *Window) Selects(kind string, set map[string]string) bool {
	if len(w.kinds) > 0 && !slices.Contains(w.kinds, guardv1alpha1.WorkloadKind(kind)) {
		return false
	}
	return w.selector.Matches(labels.Set(set))
}

func (w *Window) open(at time.Time) bool { return w.schedule != nil && w.schedule.Open(at) }

func (w *Window) allows(field Path, at time.Time) bool {
	if w.open(at) {
		return w.inside.allows(field)
	}
	return w.outside.allows(field)
}

// Verdict is what the windows that select a workload say about a change of it.
type Verdict struct {
	// Refused are the fields that may not change now. None: the change may pass.
	Refused []Path
	// Next is when all of the refused fields may change. It is zero when that is not
	// within the Horizon.
	Next time.Time
	// Windows are those that were asked.
	Windows []*Window
	at      time.Time
}

// Decide judges the change of the fields by the windows that select the workload.
func Decide(windows []*Window, changed []Path, now time.Time) Verdict {
	verdict := Verdict{Windows: windows, at: now}
	if len(windows) == 0 {
		return verdict
	}
	for _, field := range changed {
		if !anyAllows(windows, field, now) {
			verdict.Refused = append(verdict.Refused, field)
		}
	}
	if len(verdict.Refused) > 0 {
		verdict.Next = nextFor(windows, changed, now)
	}
	return verdict
}

func anyAllows(windows []*Window, field Path, at time.Time) bool {
	return slices.ContainsFunc(windows, func(w *Window) bool { return w.allows(field, at) })
}

// nextFor returns the first time after now at which all of the fields may change.
// What may change differs only where a window opens or closes.
func nextFor(windows []*Window, fields []Path, now time.Time) time.Time {
	for _, field := range fields {
		if !slices.ContainsFunc(windows, func(w *Window) bool {
			return w.outside.allows(field) || w.schedule != nil && w.inside.allows(field)
		}) {
			return time.Time{}
		}
	}
	changes := make([]time.Time, len(windows))
	find := func(i int, after time.Time) {
		changes[i] = time.Time{}
		if windows[i].schedule != nil {
			changes[i], _ = windows[i].schedule.NextChange(after)
		}
	}
	for i := range windows {
		find(i, now)
	}
	for range maxChanges {
		var at time.Time
		for _, change := range changes {
			if !change.IsZero() && (at.IsZero() || change.Before(at)) {
				at = change
			}
		}
		if at.IsZero() || at.Sub(now) > Horizon {
			break
		}
		if !slices.ContainsFunc(fields, func(field Path) bool { return !anyAllows(windows, field, at) }) {
			return at
		}
		for i, change := range changes {
			if change.Equal(at) {
				find(i, at)
			}
		}
	}
	return time.Time{}
}

// Message says which fields of the target may not change, why, and when they may.
func (v Verdict) Message(target string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s: these fields may not change now: %s. ", target, describe(v.Refused))
	states := make([]string, len(v.Windows))
	for i, window := range v.Windows {
		switch {
		case window.problem != nil:
			states[i] = fmt.Sprintf("%s is not valid and so counts as closed (%v)", window.Name, window.problem)
		case window.open(v.at):
			states[i] = window.Name + " is open, but not for them"
		default:
			states[i] = window.Name + " is closed"
		}
	}
	noun := "OperationWindow"
	if len(states) > 1 {
		noun += "s"
	}
	fmt.Fprintf(&text, "%s: %s. ", noun, strings.Join(states, ", "))
	if v.Next.IsZero() {
		fmt.Fprintf(&text, "No window lets this change pass within the next %d days", int(Horizon/(24*time.Hour)))
	} else {
		fmt.Fprintf(&text, "The next opening for this change is %s", moment(v.Next, v.zone()))
	}
	return text.String()
}

// zone returns the time zone in which the time is told: that of the first window
// that has one.
func (v Verdict) zone() *time.Location {
	for _, window := range v.Windows {
		if window.schedule != nil {
			return window.schedule.Location()
		}
	}
	return time.UTC
}

// moment tells a time for machines and for people.
func moment(at time.Time, zone *time.Location) string {
	return fmt.Sprintf("%s (%s, %s)", at.UTC().Format(time.RFC3339),
		at.In(zone).Format("Monday 2006-01-02 15:04 MST"), zone)
}

func describe(fields []Path) string {
	var names []string
	for _, field := range fields[:min(len(fields), shownFields)] {
		name := field.String()
		if category := CategoryOf(field); category != "" {
			name += fmt.Sprintf(" (%s)", category)
		}
		names = append(names, name)
	}
	text := strings.Join(names, ", ")
	if more := len(fields) - shownFields; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
