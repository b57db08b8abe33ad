package specreport

import (
	"bytes"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
)

func TestLog(t *testing.T) {
	passes := spec("comes back", types.SpecStatePassed, 2*time.Second)
	fails := failed("stays", "it went")
	for name, tc := range map[string]struct {
		specs             types.SpecReports
		findings          []string
		stand             string
		code, want        int
		progress, results string
	}{
		"all passed": {
			specs:    types.SpecReports{passes, spec("is left out", types.SpecStateSkipped, 0)},
			progress: "A node comes back: ok, 2.0 s\n",
			results:  "\n1 passed, 0 failed\n",
		},
		"one failed": {
			specs:    types.SpecReports{passes, fails},
			findings: []string{"FOUND: 3 s"},
			code:     2,
			want:     2,
			progress: "A node comes back: ok, 2.0 s\nA node stays: FAILED after 1.5 s: it went\n",
			results:  "\nFAILED: A node stays: it went\nFOUND: 3 s\n1 passed, 1 failed\n",
		},
		"failed for good at an earlier attempt": {
			specs:    types.SpecReports{passes, fails},
			stand:    "a container was stopped",
			progress: "A node comes back: ok, 2.0 s\nA node stays: FAILED after 1.5 s: it went\n",
			results:  "\nFAILED: A node comes back: at an earlier attemp...\nFAILED: A node stays: it went\n0 passed, 2 failed\n",
			want:     1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var progress, results bytes.Buffer
			log := &Log{Format: Format{Decimals: 1, MessageLimit: 20}, progress: &progress, results: &results}
			for _, spec := range tc.specs {
				log.specEnded(spec)
			}
			if tc.stand != "" {
				log.final.Add(passes, tc.stand)
			}
			log.suiteEnded(types.Report{SpecReports: tc.specs}, tc.findings)
			require.Equal(t, tc.want, log.Finish(tc.code))
			require.Equal(t, tc.progress, progress.String())
			require.Equal(t, tc.results, results.String())
		})
	}

	t.Run("broken before the first spec", func(t *testing.T) {
		var results bytes.Buffer
		require.Equal(t, 1, (&Log{results: &results}).Finish(1))
		require.Equal(t, "0 passed, 1 failed\n", results.String())
	})
}
