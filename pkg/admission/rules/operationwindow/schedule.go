package operationwindow

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // the image has no files but the program

	"github.com/robfig/cron/v3"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Horizon is how far ahead the next change of a schedule is searched.
const Horizon = 400 * 24 * time.Hour

// maxSteps bounds that search where a cron entry starts every few minutes. Each
// step is a few microseconds for one entry.
const maxSteps = 20000

const minutesPerDay = 24 * 60

// Schedule is when a window is open. It is immutable.
type Schedule struct {
	location *time.Location
	// spans are the weekly windows, by the day of the week on which they start, cut
	// at midnight.
	spans [7][]span
	cron  []cronEntry
	// excluded are days on which the clock of the location is in no window.
	excluded map[date]bool
	// bounds are all minutes of the day at which a span starts or ends, ordered.
	bounds []int
}

// span is a part of a day, in minutes since its midnight: from included, to not.
type span struct{ from, to int }

// cronEntry takes the sets of minutes, hours, days and months from the parser and
// leaves out its search for the next start, which loses starts where the clock
// changes at midnight or by half an hour.
type cronEntry struct {
	schedule *cron.SpecSchedule
	duration time.Duration
}

type date struct {
	year  int
	month time.Month
	day   int
}

// cronParser reads the five fields of a CronJob. Descriptors such as @every are
// relative to the start of a process and mean nothing here.
var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

var weekdays = map[guardv1alpha1.Day]time.Weekday{
	"Sunday": time.Sunday, "Monday": time.Monday, "Tuesday": time.Tuesday, "Wednesday": time.Wednesday,
	"Thursday": time.Thursday, "Friday": time.Friday, "Saturday": time.Saturday,
}

// NewSchedule returns the schedule of a valid spec; for another, the error of
// ValidateOperationWindow.
func NewSchedule(spec *guardv1alpha1.OperationWindowSpec) (*Schedule, error) {
	schedule, errs := parse(spec)
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	return schedule, nil
}

// addWeekly adds a window. "to" may be earlier than "from": it is the next day's.
func (s *Schedule) addWeekly(day time.Weekday, from, to int) {
	if from < to {
		s.addSpan(day, span{from, to})
		return
	}
	s.addSpan(day, span{from, minutesPerDay})
	if to > 0 {
		s.addSpan((day+1)%7, span{0, to})
	}
}

func (s *Schedule) addSpan(day time.Weekday, added span) {
	s.spans[day] = append(s.spans[day], added)
	for _, minute := range []int{added.from, added.to} {
		if i, found := slices.BinarySearch(s.bounds, minute); !found {
			s.bounds = slices.Insert(s.bounds, i, minute)
		}
	}
}

// Location returns the time zone of the schedule.
func (s *Schedule) Location() *time.Location { return s.location }

// Open reports whether the window is open at the time.
func (s *Schedule) Open(at time.Time) bool {
	local := at.In(s.location)
	if len(s.excluded) > 0 && s.excluded[dateOf(local)] {
		return false
	}
	minute := local.Hour()*60 + local.Minute()
	for _, span := range s.spans[local.Weekday()] {
		if span.from <= minute && minute < span.to {
			return true
		}
	}
	for _, entry := range s.cron {
		// The first start after at-duration is the last moment at which one could
		// have come that goes on until now.
		if _, ok := entry.next(local.Add(-entry.duration), local); ok {
			return true
		}
	}
	return false
}

// NextChange returns when the window, after the time, first opens or closes. It
// reports false when that is not within the Horizon, or not found with bearable
// effort because a cron entry starts all the time.
func (s *Schedule) NextChange(after time.Time) (time.Time, bool) {
	at, steps := s.search(after, maxSteps)
	return at, steps >= 0 && !at.IsZero()
}

// search returns when the window, after the time, first opens or closes, and how many
// of the steps are left. The time is zero when that is not within the Horizon. The
// number is negative when the steps did not suffice.
func (s *Schedule) search(after time.Time, steps int) (time.Time, int) {
	open := s.Open(after)
	end := after.Add(Horizon)
	at := after.In(s.location)
	for steps--; steps >= 0; steps-- {
		at = s.nextCandidate(at)
		if at.After(end) {
			return time.Time{}, steps
		}
		if s.Open(at) != open {
			return at, steps
		}
	}
	return time.Time{}, steps
}

// stepCost is what a step of search costs at most, in checks of a cron entry.
func (s *Schedule) stepCost() int {
	cost := 1
	for _, entry := range s.cron {
		// Open checks each day of the duration.
		cost += 3 + int(entry.duration/(24*time.Hour))
	}
	return cost
}

// nextCandidate returns the first moment after the time at which the window could
// open or close: a bound of a span, midnight, a start or end of a cron entry, a
// change of the clock. It is at most about a day ahead.
func (s *Schedule) nextCandidate(after time.Time) time.Time {
	// Until the next change of the clock its offset is fixed, and the clock's minutes
	// are plain arithmetic.
	_, offset := after.Zone()
	clock := after.Unix() + int64(offset)
	midnight := clock - mod(clock, minutesPerDay*60)
	next := midnight + minutesPerDay*60
	for _, bound := range s.bounds {
		if at := midnight + int64(bound)*60; at > clock {
			next = min(next, at)
			break
		}
	}
	candidate := beforeClockChange(after, time.Unix(next-int64(offset), 0).In(after.Location()))
	for _, entry := range s.cron {
		if start, ok := entry.next(after, candidate); ok {
			candidate = start
		}
		if start, ok := entry.next(after.Add(-entry.duration), candidate.Add(-entry.duration)); ok {
			candidate = start.Add(entry.duration)
		}
	}
	return candidate
}

// next returns the first start after "after", if there is one up to and with
// "until". Both have to be in the location of the schedule.
func (c cronEntry) next(after, until time.Time) (time.Time, bool) {
	at := time.Unix(after.Unix()-mod(after.Unix(), 60)+60, 0).In(after.Location())
	for !at.After(until) {
		sought := at.Hour()*60 + at.Minute()
		minute, ok := c.minute(at, sought)
		if !ok {
			minute = minutesPerDay
		}
		found := at.Add(time.Duration(minute-sought) * time.Minute)
		switch earlier := beforeClockChange(at, found); {
		case earlier.Before(found):
			at = earlier
		case !ok:
			at = found
		default:
			return found, !found.After(until)
		}
	}
	return time.Time{}, false
}

// minute returns the first minute of the schedule on the day of the time, at or
// after the minute from.
func (c cronEntry) minute(at time.Time, from int) (int, bool) {
	if !has(c.schedule.Month, int(at.Month())) {
		return 0, false
	}
	dayOfMonth, dayOfWeek := has(c.schedule.Dom, at.Day()), has(c.schedule.Dow, int(at.Weekday()))
	// When both are restricted one of them suffices, as in every cron.
	if c.schedule.Dom&starBit != 0 || c.schedule.Dow&starBit != 0 {
		if !dayOfMonth || !dayOfWeek {
			return 0, false
		}
	} else if !dayOfMonth && !dayOfWeek {
		return 0, false
	}
	for hour := from / 60; hour < 24; hour++ {
		if !has(c.schedule.Hour, hour) {
			continue
		}
		for minute := max(0, from-hour*60); minute < 60; minute++ {
			if has(c.schedule.Minute, minute) {
				return hour*60 + minute, true
			}
		}
	}
	return 0, false
}

// starBit is how the parser marks a field that was given as a star.
const starBit = 1 << 63

func has(set uint64, value int) bool { return set&(1<<uint(value)) != 0 }

// beforeClockChange returns the moment at which the clock of from's location changes
// after from, if that is earlier than to, else to.
func beforeClockChange(from, to time.Time) time.Time {
	if _, end := from.ZoneBounds(); !end.IsZero() && end.Before(to) {
		return end
	}
	return to
}

func mod(a, b int64) int64 { return (a%b + b) % b }

func dateOf(local time.Time) date {
	year, month, day := local.Date()
	return date{year, month, day}
}

// parseClock returns the minutes since midnight of a time such as 22:30 or 24:00.
func parseClock(text string) (int, error) {
	if text == "24:00" {
		return minutesPerDay, nil
	}
	at, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, fmt.Errorf("%q is not a time from 00:00 to 24:00", text)
	}
	return at.Hour()*60 + at.Minute(), nil
}

// parseDate returns the date, which has to exist.
func parseDate(text guardv1alpha1.Date) (date, error) {
	at, err := time.Parse(time.DateOnly, string(text))
	if err != nil {
		return date{}, fmt.Errorf("there is no such date in the calendar")
	}
	return dateOf(at), nil
}

// searchStart is where the search for a first start of a cron schedule starts. It
// goes on for five years, which have a leap day in them.
var searchStart = time.Date(2027, time.March, 1, 0, 0, 0, 0, time.UTC)

// parseCronSchedule returns the schedule, which has to fire at some time.
func parseCronSchedule(text string) (*cron.SpecSchedule, error) {
	if strings.Contains(text, "TZ=") {
		return nil, errors.New("the time zone belongs into spec.timeZone")
	}
	parsed, err := cronParser.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("write five fields (minute, hour, day of the month, month, day of the week): %w", err)
	}
	if parsed.Next(searchStart).IsZero() {
		return nil, errors.New("never starts: no such day comes within five years")
	}
	schedule, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, errors.New("write five fields: minute, hour, day of the month, month, day of the week")
	}
	return schedule, nil
}
