package rollout

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/pool"
	"kubelet-guard.io/pkg/rollout"
)

// gated is an installer that waits to be admitted to its node.
func gated(node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: rollout.Namespace, Name: "installer-" + node, Labels: map[string]string{rollout.PoolLabel: "blue"}},
		Spec: corev1.PodSpec{
			SchedulingGates: []corev1.PodSchedulingGate{{Name: rollout.LookGate}},
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}},
			}}},
		},
	}
}

func TestANodeThatPullsKeepsOthersFromPullingForAWhile(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	o := &startOptions{waiter: waiter{Factory: &factory.Factory{Now: func() time.Time { return now }}}, maxPulls: 2}
	c := &factory.Clients{Kube: fake.NewClientset(gated("a"), gated("b"), gated("c"), gated("d"), gated("e"))}
	p := &poolPlan{Pool: &pool.Pool{Pool: rollout.Pool{Name: "blue"}}}
	admitted := map[string]time.Time{}
	for _, next := range []struct {
		steps map[string]pool.Step
		after time.Duration
		want  int
	}{
		{nil, 0, 2},
		{map[string]pool.Step{"a": pool.StepPending, "b": pool.StepPending}, time.Second, 2},
		{map[string]pool.Step{"a": pool.StepDone, "b": pool.StepPending}, time.Second, 3},
		{map[string]pool.Step{"b": pool.StepFailed, "c": pool.StepPending}, time.Second, 4},
		{map[string]pool.Step{"c": pool.StepPending, "d": pool.StepPending}, time.Second, 4},
		{map[string]pool.Step{"c": pool.StepPending, "d": pool.StepPending}, slowPull, 5},
	} {
		now = now.Add(next.after)
		p.found = pool.Progress{}
		for node, step := range next.steps {
			p.found.Nodes = append(p.found.Nodes, pool.NodeProgress{Node: node, Step: step})
		}
		require.NoError(t, o.admit(t.Context(), c, p, admitted))
		require.Len(t, admitted, next.want)
	}
}
