package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/node-e2e/node"
)

func killed(seconds float64) node.Fate { return node.Fate{Killed: true, Seconds: seconds} }

// asPromised is an incident that the stock kubelet answers with a kill and the
// guarded one as it should.
func asPromised() (stock, guarded node.IncidentResult) {
	stock = node.IncidentResult{Incident: "label changed", Observed: true, Protected: killed(2.04), Unprotected: killed(2.1)}
	guarded = node.IncidentResult{Incident: "label changed", Observed: true, Protected: node.Fate{Refused: 1}, Unprotected: killed(1.9),
		Deletion: node.Deletion{Honoured: true, Seconds: 0.31}}
	return stock, guarded
}

func TestTableShowsBothFates(t *testing.T) {
	stock, guarded := asPromised()
	var b strings.Builder
	writeTable(&b, "v1.36.3", "v1.36.3+guard.0.1.0", compare([]node.IncidentResult{stock}, []node.IncidentResult{guarded}))
	assert.Contains(t, b.String(), "label changed                               killed in 2.0 s  kept, refused 1x  in 0.3 s  both killed\n")
	assert.Contains(t, b.String(), "1 incidents: the stock kubelet killed 1 protected pods, the guarded kubelet 0.\n")
	for line := range strings.Lines(b.String()) {
		assert.LessOrEqual(t, len(strings.TrimRight(line, "\n")), 100, "line %q", line)
	}
}

func TestVerdictNamesWhatIsWrong(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(stock, guarded *node.IncidentResult)
		want   string
	}{
		{"nothing", func(_, _ *node.IncidentResult) {}, ""},
		{"lost pod", func(_, g *node.IncidentResult) { g.Protected = killed(2) }, "label changed: the guarded kubelet killed a protected pod"},
		{"deletion ignored", func(_, g *node.IncidentResult) { g.Deletion = node.Deletion{} }, "label changed: the guarded kubelet did not honour an explicit deletion"},
		{"unprotected pod kept", func(_, g *node.IncidentResult) { g.Unprotected = node.Fate{} }, "label changed: the unprotected pod's fate differs"},
		{"failed on stock", func(s, _ *node.IncidentResult) { s.Failure = "timed out" }, "label changed: the spec failed on stock"},
		{"ended early on guarded", func(_, g *node.IncidentResult) { g.Observed = false }, "label changed: the pods' fate was not seen on guarded"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stock, guarded := asPromised()
			tc.change(&stock, &guarded)
			err := verdict(compare([]node.IncidentResult{stock}, []node.IncidentResult{guarded}))
			if tc.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tc.want)
		})
	}
}

func TestVerdictWantsEveryIncidentOnBothKubelets(t *testing.T) {
	stock, guarded := asPromised()
	assert.EqualError(t, verdict(compare([]node.IncidentResult{stock}, nil)), "label changed: did not run on guarded")
	assert.EqualError(t, verdict(compare(nil, []node.IncidentResult{guarded})), "label changed: did not run on stock")
	assert.EqualError(t, verdict(nil), "no incident ran")
}
