package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/node-e2e/specreport"
)

func TestEverySpecIsInOnePart(t *testing.T) {
	for _, labels := range [][]string{nil, {"away"}, {"rollout"}, {"rollout", "faults"}, {"other"}, {"away", "other"}} {
		var runs []string
		for _, part := range fleetParts {
			filter, err := types.ParseLabelFilter(part.filter(""))
			require.NoError(t, err)
			if filter(labels) {
				runs = append(runs, part.name)
			}
		}
		require.Len(t, runs, 1, "parts that run a spec with the labels %v", labels)
	}
}

func TestPartFilter(t *testing.T) {
	require.Empty(t, wholeFleet[0].filter(""))
	require.Equal(t, "(a || b)", wholeFleet[0].filter("a || b"))
	require.Equal(t, "(!away && !rollout) && (a || b)", fleetParts[1].filter("a || b"))
}

func TestCopyResults(t *testing.T) {
	log := filepath.Join(t.TempDir(), "part.log")
	require.NoError(t, os.WriteFile(log, []byte("Running Suite\nFAILED: a node: it went\n\nFOUND: 3 of 4\nPASS\n2 passed, 1 failed\n"), 0o644))
	var out bytes.Buffer
	counts, err := copyResults(&out, log)
	require.NoError(t, err)
	require.Equal(t, specreport.Counts{Passed: 2, Failed: 1}, counts)
	require.Equal(t, "FAILED: a node: it went\nFOUND: 3 of 4\n", out.String())

	require.NoError(t, os.WriteFile(log, []byte("panic: no cluster\n"), 0o644))
	_, err = copyResults(&out, log)
	require.ErrorContains(t, err, "does not tell")
}
