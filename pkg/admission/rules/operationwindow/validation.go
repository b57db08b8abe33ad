package operationwindow

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// NewValidator returns the validator of windows. It warns about windows without effect; the metadata
// of their namespaces comes from a cache.
func NewValidator(cache client.Reader) admission.Validator[*guardv1alpha1.OperationWindow] {
	return admission.Validator[*guardv1alpha1.OperationWindow]{
		Kind: guardv1alpha1.OperationWindowKind,
		Validate: func(ctx context.Context, window *guardv1alpha1.OperationWindow) (field.ErrorList, webhook.Warnings, error) {
			errs := ValidateOperationWindow(window)
			// A namespace that cannot be read is no reason to refuse or to warn.
			namespace, err := namespaceMeta(ctx, cache, window.Namespace)
			if len(errs) == 0 && err == nil && namespace.Labels[guardv1alpha1.OperationWindowsLabel] != guardv1alpha1.OperationWindowsEnforced {
				return nil, webhook.Warnings{notEnforced(window.Namespace)}, nil
			}
			return errs, nil, nil
		},
	}
}

// ValidateOperationWindow returns what is wrong with the window, all of it: also
// what the schema of the definition refuses, so that it can be used without an API
// server.
func ValidateOperationWindow(window *guardv1alpha1.OperationWindow) field.ErrorList {
	spec := field.NewPath("spec")
	_, errs := parse(&window.Spec)
	if selector := window.Spec.Workloads.Selector; selector != nil {
		errs = append(errs, metav1validation.ValidateLabelSelector(selector,
			metav1validation.LabelSelectorValidationOptions{}, spec.Child("workloads", "selector"))...)
	}
	errs = append(errs, validateFields(window.Spec.Inside, spec.Child("inside"))...)
	errs = append(errs, validateFields(window.Spec.Outside, spec.Child("outside"))...)
	return errs
}

func validateFields(fields guardv1alpha1.FieldSet, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, text := range fields.Paths {
		if _, err := parsePath(text); err != nil {
			errs = append(errs, field.Invalid(at.Child("paths").Index(i), text, err.Error()))
		}
	}
	return errs
}

// parse reads the schedule of the spec. The result is of no use with errors.
func parse(spec *guardv1alpha1.OperationWindowSpec) (*Schedule, field.ErrorList) {
	var errs field.ErrorList
	at := field.NewPath("spec")
	schedule := &Schedule{location: time.UTC, excluded: map[date]bool{}}

	if location, err := loadZone(spec.TimeZone); err != nil {
		errs = append(errs, field.Invalid(at.Child("timeZone"), spec.TimeZone, err.Error()))
	} else {
		schedule.location = location
	}
	for i, weekly := range spec.Weekly {
		errs = append(errs, schedule.parseWeekly(weekly, at.Child("weekly").Index(i))...)
	}
	for i, entry := range spec.Cron {
		errs = append(errs, schedule.parseCron(entry, at.Child("cron").Index(i))...)
	}
	for i, text := range spec.ExcludedDates {
		excluded, err := parseDate(text)
		if err != nil {
			errs = append(errs, field.Invalid(at.Child("excludedDates").Index(i), text, err.Error()))
			continue
		}
		schedule.excluded[excluded] = true
	}
	if len(spec.Weekly)+len(spec.Cron) == 0 {
		errs = append(errs, field.Required(at.Child("weekly"), "give at least one entry in weekly or cron; without one the window never opens"))
	}
	return schedule, errs
}

// loadZone returns the zone of the IANA database. "Local" and "" mean to Go
// something that depends on the machine.
func loadZone(name string) (*time.Location, error) {
	if name != "" && name != "Local" {
		if location, err := time.LoadLocation(name); err == nil {
			return location, nil
		}
	}
	return nil, fmt.Errorf("no such zone in the IANA time zone database; write a name such as Europe/Berlin or Etc/UTC")
}

func (s *Schedule) parseWeekly(weekly guardv1alpha1.WeeklyWindow, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	from, err := parseClock(weekly.From)
	if err == nil && from == minutesPerDay {
		err = fmt.Errorf("write 00:00 of the next day")
	}
	if err != nil {
		errs = append(errs, field.Invalid(at.Child("from"), weekly.From, err.Error()))
	}
	to, err := parseClock(weekly.To)
	if err != nil {
		errs = append(errs, field.Invalid(at.Child("to"), weekly.To, err.Error()))
	}
	if len(errs) == 0 && from == to {
		errs = append(errs, field.Invalid(at.Child("to"), weekly.To, "from and to are the same; for a whole day write 00:00 and 24:00"))
	}
	if len(weekly.Days) == 0 {
		errs = append(errs, field.Required(at.Child("days"), "give at least one day"))
	}
	for i, name := range weekly.Days {
		day, ok := weekdays[name]
		switch {
		case !ok:
			errs = append(errs, field.Invalid(at.Child("days").Index(i), name, "write the day in English, as Monday"))
		case len(errs) == 0:
			s.addWeekly(day, from, to)
		}
	}
	return errs
}

func (s *Schedule) parseCron(entry guardv1alpha1.CronWindow, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if d := entry.Duration.Duration; d < time.Minute || d > 7*24*time.Hour {
		errs = append(errs, field.Invalid(at.Child("duration"), d.String(), "must be from 1m to 168h"))
	}
	parsed, err := parseCronSchedule(entry.Schedule)
	if err != nil {
		errs = append(errs, field.Invalid(at.Child("schedule"), entry.Schedule, err.Error()))
	}
	if len(errs) == 0 {
		s.cron = append(s.cron, cronEntry{parsed, entry.Duration.Duration})
	}
	return errs
}

// selectorOf returns the label selector of the workloads, which selects all when it
// is not given.
func selectorOf(window *guardv1alpha1.OperationWindow) *metav1.LabelSelector {
	if selector := window.Spec.Workloads.Selector; selector != nil {
		return selector
	}
	return &metav1.LabelSelector{}
}
