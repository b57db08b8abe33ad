package specreport

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
)

// spec is an It of the container "A node" that took so long.
func spec(text string, state types.SpecState, took time.Duration) types.SpecReport {
	return types.SpecReport{
		ContainerHierarchyTexts: []string{"A node"},
		LeafNodeType:            types.NodeTypeIt,
		LeafNodeText:            text,
		State:                   state,
		RunTime:                 took,
		NumAttempts:             1,
	}
}

func failed(text, message string) types.SpecReport {
	s := spec(text, types.SpecStateFailed, 1500*time.Millisecond)
	s.Failure.Message = message
	return s
}

func TestProgress(t *testing.T) {
	repeated := spec("comes back", types.SpecStatePassed, 2*time.Second)
	repeated.NumAttempts = 2
	unable := spec("comes back", types.SpecStateSkipped, 0)
	unable.Failure.Message = "no second node"
	beforeSuite := types.SpecReport{LeafNodeType: types.NodeTypeBeforeSuite, State: types.SpecStateFailed, Failure: types.Failure{Message: "no cluster"}}
	incident := spec("label changed", types.SpecStatePassed, 2*time.Second)
	incident.LeafNodeLabels = []string{"guarded", "incident"}
	for name, tc := range map[string]struct {
		spec types.SpecReport
		want string
	}{
		"passed":               {spec("comes back", types.SpecStatePassed, 1240*time.Millisecond), "A node comes back: ok, 1.2 s"},
		"passed when repeated": {repeated, "A node comes back: ok at attempt 2, 2.0 s"},
		"failed":               {failed("comes back", "timed out\n\twaiting for a node"), "A node comes back: FAILED after 1.5 s: timed out waiting for a node"},
		"failed at length":     {failed("comes back", strings.Repeat("ä", 401)), "A node comes back: FAILED after 1.5 s: " + strings.Repeat("ä", 400) + "..."},
		"an incident":          {incident, "label changed: ok, 2.0 s"},
		"failed before specs":  {beforeSuite, "BeforeSuite: FAILED after 0.0 s: no cluster"},
		"skipped by itself":    {unable, "A node comes back: skipped: no second node"},
		"left out by a filter": {spec("comes back", types.SpecStateSkipped, 0), ""},
		"pending":              {spec("comes back", types.SpecStatePending, 0), ""},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, Progress(tc.spec)) })
	}
}

func TestRepeated(t *testing.T) {
	attempt := failed("comes back", "timed out")
	attempt.NumAttempts, attempt.MaxFlakeAttempts = 1, 2
	require.Equal(t, "A node comes back: failed at attempt 1 and is repeated: timed out", Repeated(attempt))
	attempt.NumAttempts = 2
	require.Empty(t, Repeated(attempt))
}

func TestCount(t *testing.T) {
	unable := spec("waits", types.SpecStateSkipped, 0)
	unable.Failure.Message = "no second node"
	report := types.Report{SpecReports: types.SpecReports{
		{LeafNodeType: types.NodeTypeBeforeSuite, State: types.SpecStatePassed},
		spec("comes back", types.SpecStatePassed, 0),
		spec("goes", types.SpecStatePassed, 0),
		failed("stays", "it went"),
		spec("is left out", types.SpecStateSkipped, 0),
		unable,
		{LeafNodeType: types.NodeTypeAfterSuite, State: types.SpecStateTimedout, Failure: types.Failure{Message: "still there"}},
	}}
	require.Equal(t, Counts{Passed: 2, Failed: 2, Skipped: 1}, Count(report))
	require.Equal(t, "2 passed, 2 failed, 1 skipped", Count(report).String())
	require.Equal(t, []string{"A node stays: it went", "AfterSuite: still there"}, Failures(report))
}

func TestPlus(t *testing.T) {
	require.Equal(t, Counts{Passed: 4, Failed: 6, Skipped: 8}, Counts{Passed: 1, Failed: 2, Skipped: 3}.Plus(Counts{Passed: 3, Failed: 4, Skipped: 5}))
	require.Equal(t, "12 passed, 0 failed", Counts{Passed: 12}.String())
}

func TestArtifacts(t *testing.T) {
	parent := t.TempDir()
	a := NewArtifacts(parent, failed("keeps /etc, and more!", "it went"))
	require.Equal(t, filepath.Join(parent, "keeps-etc-and-more"), a.Dir)
	a.Keep("kubelet.log", []byte("line\n"), nil)
	a.Keep("pods.yaml", nil, errors.New("connection refused"))
	for name, want := range map[string]string{
		"failure.txt":     "0001-01-01T00:00:00Z\nit went\n",
		"kubelet.log":     "line\n",
		"pods.yaml.error": "connection refused\n",
	} {
		got, err := os.ReadFile(filepath.Join(a.Dir, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got), name)
	}
}
