package operationwindow

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

var everyDay = []guardv1alpha1.Day{"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}

func weekly(from, to string, days ...guardv1alpha1.Day) guardv1alpha1.WeeklyWindow {
	return guardv1alpha1.WeeklyWindow{Days: days, From: from, To: to}
}

func cronFor(schedule string, duration time.Duration) guardv1alpha1.CronWindow {
	return guardv1alpha1.CronWindow{Schedule: schedule, Duration: metav1.Duration{Duration: duration}}
}

func at(t *testing.T, text string) time.Time {
	t.Helper()
	parsed, err := time.Parse(time.RFC3339, text)
	require.NoError(t, err)
	return parsed
}

// openings lists the intervals in which the schedule is open from start to end, in
// the time zone of the schedule.
func openings(t *testing.T, schedule *Schedule, start, end time.Time) []string {
	t.Helper()
	var list []string
	show := func(at time.Time) string { return at.In(schedule.Location()).Format("01-02T15:04-07:00") }
	opened := start
	for now := start; ; {
		open := schedule.Open(now)
		next, ok := schedule.NextChange(now)
		if !ok || next.After(end) {
			if open {
				list = append(list, show(opened)+" ...")
			}
			return list
		}
		require.NotEqual(t, open, schedule.Open(next), "a change at %s", next)
		if open {
			list = append(list, show(opened)+" "+show(next))
		} else {
			opened = next
		}
		now = next
	}
}

// openIn returns a schedule of weekly windows, cron windows and excluded dates.
func openIn(zone string, entries ...any) guardv1alpha1.OperationWindowSpec {
	spec := guardv1alpha1.OperationWindowSpec{TimeZone: zone}
	for _, entry := range entries {
		switch e := entry.(type) {
		case guardv1alpha1.WeeklyWindow:
			spec.Weekly = append(spec.Weekly, e)
		case guardv1alpha1.CronWindow:
			spec.Cron = append(spec.Cron, e)
		case guardv1alpha1.Date:
			spec.ExcludedDates = append(spec.ExcludedDates, e)
		}
	}
	return spec
}

func TestScheduleOpensByTheClockOfItsZone(t *testing.T) {
	for name, test := range map[string]struct {
		spec       guardv1alpha1.OperationWindowSpec
		start, end string
		want       []string
	}{
		"on its days only": {openIn("Europe/Berlin", weekly("09:00", "17:30", "Monday", "Wednesday")), "2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z",
			[]string{"11-23T09:00+01:00 11-23T17:30+01:00", "11-25T09:00+01:00 11-25T17:30+01:00"}},
		"through midnight into the day after its day": {openIn("Asia/Kolkata", weekly("22:00", "06:00", "Saturday")), "2026-11-23T00:00:00Z", "2026-12-01T00:00:00Z",
			[]string{"11-28T22:00+05:30 11-29T06:00+05:30"}},
		"overlapping entries are one": {openIn("Etc/UTC", weekly("10:00", "12:00", "Monday"), weekly("11:00", "13:00", "Monday"), cronFor("30 12 * * 1", 90*time.Minute)), "2026-11-23T00:00:00Z", "2026-11-25T00:00:00Z",
			[]string{"11-23T10:00+00:00 11-23T14:00+00:00"}},
		"an excluded date is closed from midnight to midnight": {openIn("Europe/Berlin", weekly("22:00", "06:00", everyDay...), guardv1alpha1.Date("2026-12-24")), "2026-12-23T12:00:00Z", "2026-12-25T12:00:00Z",
			[]string{"12-23T22:00+01:00 12-24T00:00+01:00", "12-25T00:00+01:00 12-25T06:00+01:00"}},
		"Berlin, spring: the skipped hour is in no window": {openIn("Europe/Berlin", weekly("01:30", "02:30", "Sunday"), weekly("02:45", "04:00", "Sunday")), "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z",
			[]string{"03-29T01:30+01:00 03-29T04:00+02:00"}},
		"Berlin, spring: a window within the skipped hour does not come": {openIn("Europe/Berlin", weekly("02:10", "02:50", "Sunday")), "2026-03-28T12:00:00Z", "2026-04-05T12:00:00Z",
			[]string{"04-05T02:10+02:00 04-05T02:50+02:00"}},
		"Berlin, autumn: the repeated hour is in the window twice": {openIn("Europe/Berlin", weekly("01:30", "02:30", "Sunday")), "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z",
			[]string{"10-25T01:30+02:00 10-25T02:30+02:00", "10-25T02:00+01:00 10-25T02:30+01:00"}},
		"Berlin, autumn: a window over the whole change is an hour longer": {openIn("Europe/Berlin", weekly("22:00", "06:00", "Saturday")), "2026-10-24T12:00:00Z", "2026-10-25T12:00:00Z",
			[]string{"10-24T22:00+02:00 10-25T06:00+01:00"}},
		"New York, spring": {openIn("America/New_York", weekly("01:00", "03:30", "Sunday")), "2026-03-07T12:00:00Z", "2026-03-08T23:00:00Z",
			[]string{"03-08T01:00-05:00 03-08T03:30-04:00"}},
		"New York, autumn, cron: the schedule is met twice": {openIn("America/New_York", cronFor("30 1 * * *", 15*time.Minute)), "2026-11-01T04:00:00Z", "2026-11-01T16:00:00Z",
			[]string{"11-01T01:30-04:00 11-01T01:45-04:00", "11-01T01:30-05:00 11-01T01:45-05:00"}},
		"New York, spring, cron: a skipped time does not come": {openIn("America/New_York", cronFor("30 2 * * *", time.Hour)), "2026-03-08T04:00:00Z", "2026-03-09T16:00:00Z",
			[]string{"03-09T02:30-04:00 03-09T03:30-04:00"}},
		"cron: the duration is real time over a change": {openIn("Europe/London", cronFor("0 0 * * 0", 6*time.Hour)), "2026-10-24T12:00:00Z", "2026-10-25T20:00:00Z",
			[]string{"10-25T00:00+01:00 10-25T05:00+00:00"}},
		"Lord Howe, spring: the clock goes half an hour forward": {openIn("Australia/Lord_Howe", weekly("01:45", "02:45", "Sunday"), cronFor("0 3 * * 0", time.Hour)), "2026-10-03T00:00:00Z", "2026-10-04T12:00:00Z",
			[]string{"10-04T01:45+10:30 10-04T02:45+11:00", "10-04T03:00+11:00 10-04T04:00+11:00"}},
		"Lord Howe, autumn: the clock goes half an hour back": {openIn("Australia/Lord_Howe", weekly("01:15", "01:45", "Sunday")), "2026-04-04T00:00:00Z", "2026-04-05T12:00:00Z",
			[]string{"04-05T01:15+11:00 04-05T01:45+11:00", "04-05T01:30+10:30 04-05T01:45+10:30"}},
		"Santiago, autumn: the last hour of Saturday comes twice": {openIn("America/Santiago", weekly("23:30", "24:00", "Saturday")), "2026-04-04T12:00:00Z", "2026-04-05T12:00:00Z",
			[]string{"04-04T23:30-03:00 04-04T23:00-04:00", "04-04T23:30-04:00 04-05T00:00-04:00"}},
		"Santiago, spring: the midnight that does not exist": {openIn("America/Santiago", weekly("00:00", "02:00", "Sunday")), "2026-09-05T12:00:00Z", "2026-09-06T12:00:00Z",
			[]string{"09-06T01:00-03:00 09-06T02:00-03:00"}},
		"a leap day": {openIn("Etc/UTC", cronFor("0 12 29 2 *", time.Hour)), "2027-12-01T00:00:00Z", "2028-12-01T00:00:00Z",
			[]string{"02-29T12:00+00:00 02-29T13:00+00:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			schedule, err := NewSchedule(&test.spec)
			require.NoError(t, err)
			if diff := cmp.Diff(test.want, openings(t, schedule, at(t, test.start), at(t, test.end))); diff != "" {
				t.Errorf("openings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestScheduleWithoutChangeSaysSo(t *testing.T) {
	for name, spec := range map[string]guardv1alpha1.OperationWindowSpec{
		"always open":                 openIn("Europe/Berlin", weekly("00:00", "24:00", everyDay...)),
		"open by starts that overlap": openIn("Europe/Berlin", cronFor("* * * * *", time.Hour)),
		"opens beyond the horizon":    openIn("Etc/UTC", cronFor("0 0 29 2 *", time.Hour)),
	} {
		t.Run(name, func(t *testing.T) {
			schedule, err := NewSchedule(&spec)
			require.NoError(t, err)
			next, ok := schedule.NextChange(at(t, "2026-11-25T10:00:00Z"))
			require.False(t, ok, "a change at %s", next)
		})
	}
}

// dumbOpen is the second implementation: it reads what the clock shows, minute
// by minute, and knows nothing of offsets.
func dumbOpen(spec guardv1alpha1.OperationWindowSpec, location *time.Location, now time.Time) bool {
	local := now.In(location)
	for _, excluded := range spec.ExcludedDates {
		if local.Format(time.DateOnly) == string(excluded) {
			return false
		}
	}
	clock, today := local.Format("15:04"), local.Weekday().String()
	yesterday := time.Weekday((local.Weekday() + 6) % 7).String()
	for _, window := range spec.Weekly {
		for _, day := range window.Days {
			if window.From < window.To {
				if string(day) == today && window.From <= clock && clock < window.To {
					return true
				}
			} else if string(day) == today && window.From <= clock || string(day) == yesterday && clock < window.To {
				return true
			}
		}
	}
	for _, window := range spec.Cron {
		var minute, hour int
		var dayOfWeek string
		_, _ = fmt.Sscanf(window.Schedule, "%d %d * * %s", &minute, &hour, &dayOfWeek)
		for ago := time.Duration(0); ago < window.Duration.Duration; ago += time.Minute {
			start := local.Add(-ago)
			if start.Minute() == minute && start.Hour() == hour &&
				(dayOfWeek == "*" || dayOfWeek == fmt.Sprint(int(start.Weekday()))) {
				return true
			}
		}
	}
	return false
}

// changes of the clock around which the two implementations are compared.
var changes = []struct{ zone, day string }{
	{"Europe/Berlin", "2026-03-29"}, {"Europe/Berlin", "2026-10-25"},
	{"America/New_York", "2026-03-08"}, {"America/New_York", "2026-11-01"},
	{"Australia/Lord_Howe", "2026-04-05"}, {"Australia/Lord_Howe", "2026-10-04"},
	{"America/Santiago", "2026-04-05"}, {"America/Santiago", "2026-09-06"},
	{"Africa/Cairo", "2026-04-24"}, {"Africa/Cairo", "2026-10-30"},
	{"Asia/Beirut", "2026-03-29"}, {"Asia/Beirut", "2026-10-25"},
	{"Africa/Casablanca", "2026-02-15"}, {"Africa/Casablanca", "2026-03-22"},
	{"Pacific/Apia", "2011-12-30"}, // a whole day that did not exist
	{"Asia/Kathmandu", "2026-06-01"}, {"Etc/UTC", "2026-06-01"},
}

func TestScheduleAgreesWithTheClockMinuteByMinute(t *testing.T) {
	const seed = 20261125
	random := rand.New(rand.NewPCG(seed, seed))
	clock := func() string {
		return fmt.Sprintf("%02d:%02d", random.IntN(24), []int{0, 15, 30, 45, random.IntN(60)}[random.IntN(5)])
	}
	runs := 12
	if testing.Short() {
		runs = 2
	}
	for _, change := range changes {
		location, err := time.LoadLocation(change.zone)
		require.NoError(t, err)
		middle, err := time.ParseInLocation(time.DateOnly, change.day, location)
		require.NoError(t, err)
		for range runs {
			spec := guardv1alpha1.OperationWindowSpec{TimeZone: change.zone}
			for range 1 + random.IntN(2) {
				window := weekly(clock(), clock())
				for _, day := range everyDay {
					if random.IntN(3) > 0 {
						window.Days = append(window.Days, day)
					}
				}
				if window.From != window.To && len(window.Days) > 0 {
					spec.Weekly = append(spec.Weekly, window)
				}
			}
			if random.IntN(2) == 0 || len(spec.Weekly) == 0 {
				dayOfWeek := []string{"*", fmt.Sprint(random.IntN(7))}[random.IntN(2)]
				spec.Cron = append(spec.Cron, cronFor(fmt.Sprintf("%d %d * * %s", random.IntN(60), random.IntN(24), dayOfWeek),
					time.Duration(1+random.IntN(300))*time.Minute))
			}
			if random.IntN(4) == 0 {
				spec.ExcludedDates = []guardv1alpha1.Date{guardv1alpha1.Date(middle.AddDate(0, 0, random.IntN(3)-1).Format(time.DateOnly))}
			}
			schedule, err := NewSchedule(&spec)
			require.NoError(t, err)

			start, end := middle.Add(-36*time.Hour).Truncate(time.Minute), middle.Add(60*time.Hour)
			open := dumbOpen(spec, location, start)
			require.Equal(t, open, schedule.Open(start), "%s at %s: %+v", change.zone, start, spec)
			next, changes := schedule.NextChange(start)
			for now := start; now.Before(end); now = now.Add(time.Minute) {
				want := dumbOpen(spec, location, now)
				require.Equal(t, want, schedule.Open(now), "%s at %s: %+v", change.zone, now, spec)
				if want == open {
					require.False(t, changes && next.Equal(now), "a change at %s in %s that is none: %+v", now, change.zone, spec)
					continue
				}
				require.True(t, changes && next.Equal(now), "the change at %s in %s was expected at %s: %+v", now, change.zone, next, spec)
				open = want
				next, changes = schedule.NextChange(now)
			}
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	spec := openIn("Europe/Berlin", weekly("22:00", "06:00", everyDay...), cronFor("0 3 1 * *", 4*time.Hour))
	schedule, err := NewSchedule(&spec)
	require.NoError(b, err)
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	b.ReportAllocs()
	for b.Loop() {
		schedule.Open(now)
	}
}

func TestValidateOperationWindowNamesTheField(t *testing.T) {
	valid := func() *guardv1alpha1.OperationWindow {
		return &guardv1alpha1.OperationWindow{Spec: guardv1alpha1.OperationWindowSpec{
			TimeZone: "Europe/Berlin", Weekly: []guardv1alpha1.WeeklyWindow{weekly("22:00", "06:00", "Monday")},
			Inside: guardv1alpha1.FieldSet{Fields: []guardv1alpha1.FieldCategory{guardv1alpha1.AllFields}}}}
	}
	require.Empty(t, ValidateOperationWindow(valid()))
	for name, test := range map[string]struct {
		change func(*guardv1alpha1.OperationWindowSpec)
		want   string
	}{
		"unknown zone":         {func(s *guardv1alpha1.OperationWindowSpec) { s.TimeZone = "Europe/Atlantis" }, "spec.timeZone"},
		"the machine's zone":   {func(s *guardv1alpha1.OperationWindowSpec) { s.TimeZone = "Local" }, "spec.timeZone"},
		"no zone":              {func(s *guardv1alpha1.OperationWindowSpec) { s.TimeZone = "" }, "spec.timeZone"},
		"no entry":             {func(s *guardv1alpha1.OperationWindowSpec) { s.Weekly = nil }, "spec.weekly"},
		"no such hour":         {func(s *guardv1alpha1.OperationWindowSpec) { s.Weekly[0].From = "25:00" }, "spec.weekly[0].from"},
		"a start at 24:00":     {func(s *guardv1alpha1.OperationWindowSpec) { s.Weekly[0].From = "24:00" }, "spec.weekly[0].from"},
		"an empty window":      {func(s *guardv1alpha1.OperationWindowSpec) { s.Weekly[0].To = "22:00" }, "spec.weekly[0].to"},
		"no day":               {func(s *guardv1alpha1.OperationWindowSpec) { s.Weekly[0].Days = nil }, "spec.weekly[0].days"},
		"no such day":          {func(s *guardv1alpha1.OperationWindowSpec) { s.Weekly[0].Days[0] = "Mon" }, "spec.weekly[0].days[0]"},
		"30 February":          {cronOf("0 0 30 2 *", time.Hour), "spec.cron[0].schedule"},
		"31 June or November":  {cronOf("0 0 31 6,11 *", time.Hour), "spec.cron[0].schedule"},
		"six fields":           {cronOf("0 0 0 1 1 *", time.Hour), "spec.cron[0].schedule"},
		"every hour":           {cronOf("@every 1h", time.Hour), "spec.cron[0].schedule"},
		"a zone in the cron":   {cronOf("CRON_TZ=UTC 0 0 * * *", time.Hour), "spec.cron[0].schedule"},
		"negative duration":    {cronOf("0 0 * * *", -time.Hour), "spec.cron[0].duration"},
		"30 February excluded": {func(s *guardv1alpha1.OperationWindowSpec) { s.ExcludedDates = []guardv1alpha1.Date{"2026-02-30"} }, "spec.excludedDates[0]"},
		"a path above spec":    {func(s *guardv1alpha1.OperationWindowSpec) { s.Inside.Paths = []string{"metadata.labels"} }, "spec.inside.paths[0]"},
		"a broken path":        {func(s *guardv1alpha1.OperationWindowSpec) { s.Outside.Paths = []string{"spec.template[x"} }, "spec.outside.paths[0]"},
		"a broken selector": {func(s *guardv1alpha1.OperationWindowSpec) {
			s.Workloads.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}
		}, "spec.workloads.selector.matchExpressions[0].operator"},
	} {
		t.Run(name, func(t *testing.T) {
			window := valid()
			test.change(&window.Spec)
			errs := ValidateOperationWindow(window)
			require.Len(t, errs, 1)
			require.Equal(t, test.want, errs[0].Field)
			require.False(t, strings.HasSuffix(errs[0].Detail, "."), errs[0].Detail)
		})
	}
}

func cronOf(schedule string, duration time.Duration) func(*guardv1alpha1.OperationWindowSpec) {
	return func(s *guardv1alpha1.OperationWindowSpec) {
		s.Weekly, s.Cron = nil, []guardv1alpha1.CronWindow{cronFor(schedule, duration)}
	}
}
