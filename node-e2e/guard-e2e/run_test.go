package main

import (
	"testing"

	"github.com/onsi/ginkgo/v2/types"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/node-e2e/node"
)

func TestSplit(t *testing.T) {
	parts := split(whole("a || b", node.Stock, node.Guarded))
	require.Equal(t, []nodePart{
		{kubelet: node.Stock, name: "stock", labels: "a || b"},
		{kubelet: node.Guarded, name: "guarded", labels: "(a || b) && (!incident && !chaos && !control-plane)"},
		{kubelet: node.Guarded, name: "incidents", labels: "(a || b) && (incident || chaos || control-plane)"},
	}, parts)

	// Every spec is in one part.
	for _, labels := range [][]string{{}, {"guarded"}, {"incident"}, {"guarded", "chaos"}, {"transparency", "own-machine"}} {
		found := 0
		for _, part := range split(whole("", node.Guarded)) {
			filter, err := types.ParseLabelFilter(part.labels)
			require.NoError(t, err)
			if filter(labels) {
				found++
			}
		}
		require.Equal(t, 1, found, labels)
	}
}
