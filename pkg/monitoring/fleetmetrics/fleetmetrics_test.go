package fleetmetrics

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	crfake "sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelet-guard.io/pkg/admission/rules/poddeletion"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

type fixed struct {
	nodes map[string]string
	pods  map[string]int
	err   error
}

func (f fixed) Nodes(visit func(name, version string)) error {
	for name, version := range f.nodes {
		visit(name, version)
	}
	return f.err
}

func (f fixed) ProtectedPods(visit func(node string, pods int)) error {
	for node, pods := range f.pods {
		visit(node, pods)
	}
	return f.err
}

func (f fixed) WithoutBudget() (int, error) { return 0, f.err }

func TestCount(t *testing.T) {
	counts, err := Count(fixed{
		nodes: map[string]string{"a": "v1.36.3+guard.0.1.0", "b": "v1.36.3", "c": "v1.36.3", "d": "v1.36.3+vendor.1"},
		pods:  map[string]int{"a": 2, "b": 3, "gone": 1},
	})
	require.NoError(t, err)
	require.Equal(t, Counts{
		Nodes:          map[Kubelet]int{Guarded: 1, Unguarded: 3},
		ProtectedNodes: map[Kubelet]int{Guarded: 1, Unguarded: 1, Missing: 1},
		ProtectedPods:  map[Kubelet]int{Guarded: 2, Unguarded: 3, Missing: 1},
	}, counts)
}

func TestCollectorHasNoSeriesBeforeTheCachesAreFilled(t *testing.T) {
	require.Zero(t, testutil.CollectAndCount(NewCollector(fixed{err: errors.New("not filled")})))
}

func TestCollectorFollowsTheCluster(t *testing.T) {
	pod := func(name, node, label string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(name), Labels: map[string]string{guardv1alpha1.ExplicitDeletionLabel: label, "app": name}},
			Spec:       corev1.PodSpec{NodeName: node},
			Status:     corev1.PodStatus{Phase: phase},
		}
	}
	node := func(name, version string) *corev1.Node {
		return &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: version}},
		}
	}
	synctest.Test(t, func(t *testing.T) {
		nodes := crfake.NewClientBuilder().WithObjects(node("guarded", "v1.36.3+guard.0.1.0"), node("stock", "v1.36.3")).Build()
		pods := fake.NewClientset(
			pod("a", "guarded", "required", corev1.PodRunning),
			pod("b", "stock", "required", corev1.PodPending),
			pod("finished", "stock", "required", corev1.PodSucceeded),
			pod("unbound", "", "required", corev1.PodPending),
			pod("other", "stock", "", corev1.PodRunning),
		)
		budgets := poddeletion.NewIndex()
		budgets.Set(&policyv1.PodDisruptionBudget{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"},
			Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}},
		})
		lister := NewCluster(pods, nodes, budgets)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = lister.Start(ctx) }()
		defer func() { stop(); <-done }()
		synctest.Wait()

		registry := prometheus.NewRegistry()
		registry.MustRegister(NewCollector(lister))
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP guard_webhook_nodes Nodes of the cluster.
# TYPE guard_webhook_nodes gauge
guard_webhook_nodes{kubelet="Guarded"} 1
guard_webhook_nodes{kubelet="Unguarded"} 1
# HELP guard_webhook_nodes_with_protected_pods Nodes that run protected pods. With kubelet Unguarded the label of these pods stops nothing on the node.
# TYPE guard_webhook_nodes_with_protected_pods gauge
guard_webhook_nodes_with_protected_pods{kubelet="Guarded"} 1
guard_webhook_nodes_with_protected_pods{kubelet="Missing"} 0
guard_webhook_nodes_with_protected_pods{kubelet="Unguarded"} 1
# HELP guard_webhook_protected_pods Protected pods that are bound to a node and have not finished.
# TYPE guard_webhook_protected_pods gauge
guard_webhook_protected_pods{kubelet="Guarded"} 1
guard_webhook_protected_pods{kubelet="Missing"} 0
guard_webhook_protected_pods{kubelet="Unguarded"} 1
# HELP guard_webhook_protected_pods_without_budget Protected pods that are bound to a node and have not finished, and that no PodDisruptionBudget selects: nothing limits how many of them are deleted at once.
# TYPE guard_webhook_protected_pods_without_budget gauge
guard_webhook_protected_pods_without_budget 1
`)))
	})
}
