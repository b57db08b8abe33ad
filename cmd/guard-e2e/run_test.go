package main

import (
	"testing"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"

	e2e "kubelet-guard.io/node-e2e"
)

func TestSplit(t *testing.T) {
	parts := split(whole("a || b", e2e.Stock, e2e.Guarded))
	require.Equal(t, []nodePart{
		{kubelet: e2e.Stock, name: "stock", labels: "a || b"},
		{kubelet: e2e.Guarded, name: "guarded", labels: "(a || b) && (!incident && !chaos && !control-plane)"},
		{kubelet: e2e.Guarded, name: "incidents", labels: "(a || b) && (incident || chaos || control-plane)"},
	}, parts)

	// Every spec is in one part.
	for _, labels := range [][]string{{}, {"guarded"}, {"incident"}, {"guarded", "chaos"}, {"transparency", "own-machine"}} {
		found := 0
		for _, part := range split(whole("", e2e.Guarded)) {
			filter, err := types.ParseLabelFilter(part.labels)
			require.NoError(t, err)
			if filter(labels) {
				found++
			}
		}
		require.Equal(t, 1, found, labels)
	}
}
