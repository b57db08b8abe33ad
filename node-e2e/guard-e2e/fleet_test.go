package main

import (
	"testing"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"
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

func TestPartsFollowThePairsOfWorkers(t *testing.T) {
	require.Equal(t, withoutPair, partsFor(0))
	require.Equal(t, wholeFleet, partsFor(1))
	require.Equal(t, fleetParts, partsFor(2))
	require.Equal(t, fleetParts, partsFor(3))
}

func TestPartFilter(t *testing.T) {
	require.Empty(t, wholeFleet[0].filter(""))
	require.Equal(t, "(a || b)", wholeFleet[0].filter("a || b"))
	require.Equal(t, "(!away && !rollout) && (a || b)", fleetParts[1].filter("a || b"))
}
