package specreport

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
)

// write has a log write the reports of these specs, and reads the JSON one.
func write(t *testing.T, log *Log, specs types.SpecReports) (types.Report, error) {
	t.Helper()
	dir := t.TempDir()
	config := log.TakeReports(types.ReporterConfig{
		JSONReport: filepath.Join(dir, "report.json"), JUnitReport: filepath.Join(dir, "junit.xml"), NoColor: true,
	})
	require.Equal(t, types.ReporterConfig{NoColor: true}, config, "what Ginkgo writes itself")
	for _, spec := range specs {
		log.specEnded(spec)
	}
	failed := log.suiteEnded(types.Report{SuiteDescription: "A suite", SpecReports: specs})
	junit, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	require.NoError(t, err)
	require.Contains(t, string(junit), `<testsuite name="A suite"`)
	report, err := Read(filepath.Join(dir, "report.json"))
	require.NoError(t, err)
	return report, failed
}

func TestLog(t *testing.T) {
	passes := spec("comes back", types.SpecStatePassed, 2*time.Second)
	fails := failed("stays", "it went")

	t.Run("a spec failed", func(t *testing.T) {
		var progress bytes.Buffer
		report, err := write(t, &Log{progress: &progress}, types.SpecReports{passes, fails, spec("is left out", types.SpecStateSkipped, 0)})
		require.NoError(t, err, "Ginkgo knows of this failure")
		require.Equal(t, "A node comes back: ok, 2.0 s\nA node stays: FAILED after 1.5 s: it went\n", progress.String())
		require.Equal(t, Counts{Passed: 1, Failed: 1}, Count(report))
		require.Equal(t, []string{"A node stays: it went"}, Failures(report))
	})

	t.Run("a spec failed for good at an earlier attempt", func(t *testing.T) {
		log := &Log{progress: &bytes.Buffer{}}
		log.final.Add(passes, "a container was stopped")
		report, err := write(t, log, types.SpecReports{passes, fails})
		require.EqualError(t, err, "1 specs passed at their last attempt, but an earlier one failed for good")
		require.Equal(t, Counts{Failed: 2}, Count(report))
		require.Equal(t, []string{"A node comes back: failed for good at an earlier attempt: a container was stopped", "A node stays: it went"}, Failures(report))
	})
}

func TestEntries(t *testing.T) {
	type figure struct{ Pods int }
	changed := &figure{Pods: 1}
	measured := spec("is measured", types.SpecStatePassed, 0)
	for _, value := range []any{changed, figure{Pods: 2}} {
		measured.ReportEntries = append(measured.ReportEntries, types.ReportEntry{Name: "figure", Visibility: ginkgo.ReportEntryVisibilityNever, Value: types.WrapEntryValue(value)})
	}
	measured.ReportEntries = append(measured.ReportEntries, types.ReportEntry{Name: "text", Value: types.WrapEntryValue("plain")})
	changed.Pods = 7
	report, err := write(t, &Log{progress: &bytes.Buffer{}}, types.SpecReports{measured})
	require.NoError(t, err)

	figures, err := Entries[figure](report.SpecReports[0], "figure")
	require.NoError(t, err)
	require.Equal(t, []figure{{7}, {2}}, figures, "the values at the end of the suite, of all attempts")
	none, err := Entries[figure](report.SpecReports[0], "other")
	require.NoError(t, err)
	require.Empty(t, none)
	_, err = Entries[figure](report.SpecReports[0], "text")
	require.ErrorContains(t, err, `entry "text" of "A node is measured"`)
}

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	_, err := Read(file)
	require.ErrorIs(t, err, os.ErrNotExist)
	for content, want := range map[string]string{
		`[{"SuiteDescr`: "unexpected end of JSON input",
		`[]`:            "has 0 suites, not one",
	} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		_, err := Read(file)
		require.ErrorContains(t, err, want)
	}
}

func TestSlowest(t *testing.T) {
	report := func(suite string, took ...time.Duration) types.Report {
		r := types.Report{SuiteDescription: suite}
		for _, t := range took {
			r.SpecReports = append(r.SpecReports, spec("is slow", types.SpecStatePassed, t))
		}
		return r
	}
	require.Empty(t, Slowest(report("Fleet", 30*time.Second)))
	require.Equal(t, []string{
		"  83 s  Node: A node is slow",
		"  31 s  Fleet: A node is slow",
	}, Slowest(report("Fleet", time.Second, 31*time.Second), report("Node", 83*time.Second)))
	require.Len(t, Slowest(report("Fleet", make([]time.Duration, 5)...), report("Node", repeat(time.Minute, 25)...)), 20)
}

func repeat(d time.Duration, n int) []time.Duration {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = d
	}
	return all
}

func TestFinal(t *testing.T) {
	cleared := spec("keeps its pods", types.SpecStatePassed, time.Second)
	report := types.Report{SpecReports: types.SpecReports{
		cleared,
		spec("comes back", types.SpecStatePassed, time.Second),
		failed("is drained", "timed out"),
		spec("is frozen", types.SpecStateSkipped, time.Second),
	}}
	var final Final
	same, overruled := final.Overrule(report)
	require.Zero(t, overruled)
	require.Equal(t, report, same)

	final.Add(cleared, "pod a was killed")
	final.Add(cleared, "pod a was killed")
	final.Add(cleared, "pod b was killed")
	final.Add(report.SpecReports[2], "pod c was killed")
	final.Add(report.SpecReports[3], "pod d was killed")
	result, overruled := final.Overrule(report)
	require.Equal(t, 2, overruled)
	require.Equal(t, []string{
		"A node keeps its pods: failed for good at an earlier attempt: pod a was killed; pod b was killed",
		"A node is drained: timed out",
		"A node is frozen: failed for good at an earlier attempt: pod d was killed",
	}, Failures(result))
	require.Equal(t, Counts{Passed: 1, Failed: 3}, Count(result))
	require.True(t, report.SpecReports[0].State.Is(types.SpecStatePassed), "the report that was given stays as it is")
}
