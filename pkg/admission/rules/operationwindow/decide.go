package operationwindow

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
	// searchCost bounds the search for the next time that suits a change, in checks of a
	// cron entry or of a field: some 50 ms on one slow core. A user waits for the
	// response, and all requests share the webhook's CPU.
	searchCost = 1000000
	// maxChanges bounds how many openings and closings that search checks.
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

// Verdict is what the windows that select a workload decide about a change of it.
type Verdict struct {
	// Refused are the fields that may not change now. None: the change may pass.
	Refused []Path
	// Next is when all of the refused fields may change. It is zero when that is not
	// within the Horizon, or not known.
	Next time.Time
	// NextUnknown: the windows open and close so often that the search for
	// Next was given up.
	NextUnknown bool
	// Windows are those that were checked.
	Windows []*Window
	at      time.Time
}

// Decide judges the change of the fields by the windows that select the workload.
func Decide(windows []*Window, changed []Path, now time.Time) Verdict {
	verdict := Verdict{Windows: windows, at: now}
	if len(windows) == 0 {
		return verdict
	}
	allows := allowedAt(windows, now)
	for _, field := range changed {
		if !allows(field) {
			verdict.Refused = append(verdict.Refused, field)
		}
	}
	if len(verdict.Refused) > 0 {
		verdict.Next, verdict.NextUnknown = nextFor(windows, changed, now)
	}
	return verdict
}

// allowedAt returns a function that reports whether a window lets the field change at
// the time.
func allowedAt(windows []*Window, at time.Time) func(Path) bool {
	sets := make([]fieldSet, len(windows))
	for i, window := range windows {
		sets[i] = window.outside
		if window.open(at) {
			sets[i] = window.inside
		}
	}
	return func(field Path) bool {
		return slices.ContainsFunc(sets, func(set fieldSet) bool { return set.allows(field) })
	}
}

// nextFor returns the first time after now at which all of the fields may change, zero
// when there is none, and whether it was given up to find one. What may change differs
// only where a window opens or closes.
//
// Half of searchCost is for the changes of schedules, in equal parts, so that no window
// hides the openings of another; what is left of a window after its part counts as
// unchanged. The other half is for the fields at each change.
func nextFor(windows []*Window, fields []Path, now time.Time) (next time.Time, unknown bool) {
	for _, field := range fields {
		if !slices.ContainsFunc(windows, func(w *Window) bool {
			return w.outside.allows(field) || w.schedule != nil && w.inside.allows(field)
		}) {
			return time.Time{}, false
		}
	}
	changes, steps := make([]time.Time, len(windows)), make([]int, len(windows))
	checkCost := len(windows) * len(fields)
	find := func(i int, after time.Time) {
		changes[i] = time.Time{}
		if windows[i].schedule != nil && steps[i] >= 0 {
			changes[i], steps[i] = windows[i].schedule.search(after, steps[i])
			unknown = unknown || steps[i] < 0
		}
	}
	for i, window := range windows {
		if window.schedule != nil {
			cost := window.schedule.stepCost()
			checkCost += cost
			steps[i] = searchCost / 2 / len(windows) / cost
		}
		find(i, now)
	}
	for range min(maxChanges, searchCost/2/checkCost) {
		var at time.Time
		for _, change := range changes {
			if !change.IsZero() && (at.IsZero() || change.Before(at)) {
				at = change
			}
		}
		if at.IsZero() || at.Sub(now) > Horizon {
			return time.Time{}, unknown
		}
		allows := allowedAt(windows, at)
		if !slices.ContainsFunc(fields, func(field Path) bool { return !allows(field) }) {
			return at, false
		}
		for i, change := range changes {
			if change.Equal(at) {
				find(i, at)
			}
		}
	}
	return time.Time{}, true
}

// Message is which fields of the target may not change, why, and when they may.
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
	fmt.Fprintf(&text, "Operation windows: %s. ", strings.Join(states, ", "))
	switch {
	case v.NextUnknown:
		text.WriteString("The next opening for this change could not be determined: the windows change too often to look far ahead")
	case v.Next.IsZero():
		fmt.Fprintf(&text, "No window lets this change pass within the next %d days", int(Horizon/(24*time.Hour)))
	default:
		fmt.Fprintf(&text, "The next opening for this change is %s", moment(v.Next, v.zone()))
	}
	return text.String()
}

// zone returns the time zone of times in messages: that of the first window
// that has one.
func (v Verdict) zone() *time.Location {
	for _, window := range v.Windows {
		if window.schedule != nil {
			return window.schedule.Location()
		}
	}
	return time.UTC
}

// moment formats a time for machines and for people.
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
