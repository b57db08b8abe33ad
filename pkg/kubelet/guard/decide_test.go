package guard

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
)

// decisions is the whole policy, one rule a line. A dash stands for both values.
// The order does not matter: every combination of facts is in exactly one line.
var decisions = []struct {
	mode                                           []Mode
	protected, evidence, exempted, allowed, living string
	verdict                                        Verdict
}{
	{[]Mode{Off}, "-", "-", "-", "-", "-", Unprotected},
	{[]Mode{Enforce, Audit}, "n", "-", "-", "-", "-", Unprotected},
	{[]Mode{Enforce, Audit}, "y", "y", "-", "-", "-", AllowedByEvidence},
	{[]Mode{Enforce, Audit}, "y", "n", "y", "-", "-", AllowedByExemption},
	{[]Mode{Enforce, Audit}, "y", "n", "n", "y", "-", AllowedByConfiguration},
	{[]Mode{Enforce, Audit}, "y", "n", "n", "n", "n", AllowedNothingRuns},
	{[]Mode{Audit}, "y", "n", "n", "n", "y", AllowedByAudit},
	{[]Mode{Enforce}, "y", "n", "n", "n", "y", Refused},
}

func TestDecide(t *testing.T) {
	fits := func(pattern string, fact bool) bool { return pattern == "-" || (pattern == "y") == fact }
	for _, mode := range []Mode{Enforce, Audit, Off} {
		for bits := range 1 << 5 {
			facts := Facts{
				Mode:      mode,
				Protected: bits&1 != 0, Evidence: bits&2 != 0, Exempted: bits&4 != 0,
				CauseAllowed: bits&8 != 0, Alive: bits&16 != 0,
			}
			t.Run(fmt.Sprintf("%+v", facts), func(t *testing.T) {
				var want []Verdict
				for _, d := range decisions {
					for _, m := range d.mode {
						if m == mode && fits(d.protected, facts.Protected) && fits(d.evidence, facts.Evidence) &&
							fits(d.exempted, facts.Exempted) && fits(d.allowed, facts.CauseAllowed) && fits(d.living, facts.Alive) {
							want = append(want, d.verdict)
						}
					}
				}
				assert.Equal(t, want, []Verdict{Decide(facts)})
			})
		}
	}
}
