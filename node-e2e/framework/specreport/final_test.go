package specreport

import (
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
)

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
