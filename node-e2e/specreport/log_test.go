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
		code              int
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
			code:     1,
			progress: "A node comes back: ok, 2.0 s\nA node stays: FAILED after 1.5 s: it went\n",
			results:  "\nFAILED: A node stays: it went\nFOUND: 3 s\n1 passed, 1 failed\n",
		},
		"failed although all specs passed": {
			specs:    types.SpecReports{passes},
			findings: []string{"FAILED: a container was stopped"},
			code:     1,
			progress: "A node comes back: ok, 2.0 s\n",
			results:  "\nFAILED: a container was stopped\n1 passed, 1 failed\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var progress, results bytes.Buffer
			log := &Log{Format: Format{Decimals: 1, MessageLimit: 20}, progress: &progress, results: &results}
			for _, spec := range tc.specs {
				log.specEnded(spec)
			}
			log.suiteEnded(types.Report{SpecReports: tc.specs}, tc.findings)
			log.Finish(tc.code)
			require.Equal(t, tc.progress, progress.String())
			require.Equal(t, tc.results, results.String())
		})
	}

	t.Run("broken before the first spec", func(t *testing.T) {
		var results bytes.Buffer
		(&Log{results: &results}).Finish(1)
		require.Equal(t, "0 passed, 1 failed\n", results.String())
	})
}
