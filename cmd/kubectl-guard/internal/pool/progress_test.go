package pool

import (
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/pkg/rollout"
)

// The kubelet of a node that is being changed may be why it is not ready: its pool is not
// finished, and no further pool may start.
func TestANodeInTheMiddleOfItsChangeIsNotAway(t *testing.T) {
	for phase, away := range map[rollout.Phase]bool{
		rollout.Waiting: true, rollout.Installing: false, rollout.Done: false, rollout.RolledBack: true,
	} {
		progress := Progress{available: true, Nodes: []NodeProgress{
			{Node: "a", Step: StepDone, Ready: true},
			{Node: "b", Step: stepOf(phase), Report: &rollout.Report{Phase: phase}},
		}}
		require.Equal(t, away, len(progress.Absent()) == 1, phase)
		require.Equal(t, phase != rollout.Installing, progress.Finished(), phase)
		require.Equal(t, phase != rollout.Installing, progress.Settled(), phase)
	}
}

func TestAReportOfAnotherPoolDoesNotCount(t *testing.T) {
	t.Parallel()
	request := rollout.Request{Target: rollout.Audit, Image: "installer:1"}
	p := &Pool{Pool: rollout.Pool{Name: "blue"}, Set: &appsv1.DaemonSet{}, shared: map[string][]string{"n": {"wide"}}}
	for pool, want := range map[string]Step{"blue": StepFailed, "small": StepPending, "wide": StepPending} {
		node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		node.Annotations = map[string]string{rollout.ReportAnnotation: rollout.Report{RequestID: request.ID(), Pool: pool, Phase: rollout.Failed}.Annotation()}
		p.Nodes = []corev1.Node{node}
		progress := p.Progress(request).Nodes[0]
		require.Equal(t, want, progress.Step, pool)
		require.Equal(t, pool == "wide", progress.InOtherPool(), "%s: only a pool that selects the node, too, is its owner", pool)
	}
}
