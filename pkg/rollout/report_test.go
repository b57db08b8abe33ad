package rollout

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
)

func TestContradiction(t *testing.T) {
	const stock, guarded = "v1.36.3", "v1.36.3+guard.0.1.0"
	for name, c := range map[string]struct {
		phase        Phase
		target       Target
		reported, is string
		want         Reason
	}{
		"guarded":                               {Done, Audit, guarded, guarded, ""},
		"not guarded":                           {Done, Enforce, guarded, stock, ReasonUnguarded},
		"guarded by another build":              {Done, Audit, guarded, "v1.36.4+guard.0.1.0", ReasonOtherKubelet},
		"it has never registered":               {Done, Audit, guarded, "", ReasonUnguarded},
		"stock":                                 {Done, Stock, stock, stock, ""},
		"stock, which was upgraded since":       {Done, Stock, stock, "v1.36.4", ""},
		"stock, and the guard runs":             {Done, Stock, stock, guarded, ReasonGuarded},
		"a node that is changed has old status": {Installing, Audit, guarded, stock, ""},
		"a node that does not say it is done":   {RolledBack, Audit, guarded, stock, ""},
		"a node that was only inspected":        {Observed, Observe, stock, guarded, ""},
	} {
		t.Run(name, func(t *testing.T) {
			node := &corev1.Node{Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: c.is}}}
			reason, why := Report{Phase: c.phase, Target: c.target, Now: Kubelet{Version: c.reported}}.Contradiction(node)
			assert.Equal(t, c.want, reason)
			assert.Equal(t, c.want == "", why == "", why)
		})
	}
}
