package rollout

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

func TestDaemonSetCarriesPoolAndRequest(t *testing.T) {
	pool := Pool{Name: "blue", Selector: "pool=blue", MaxUnavailable: 2}
	request := Request{Target: Enforce, Image: image}
	ds, err := DaemonSet(pool, request)
	require.NoError(t, err)

	gotRequest, err := RequestOf(ds)
	require.NoError(t, err)
	assert.Equal(t, request, gotRequest)

	// What pausing does to the strategy must not lose the pool.
	ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
	gotPool, err := PoolOf(ds)
	require.NoError(t, err)
	assert.Equal(t, pool, gotPool)
	assert.Equal(t, "100%", RollingUpdate(gotPool).RollingUpdate.MaxUnavailable.String(), "the slots are the pace")
	gotPool.MaxUnready = ptr.To(intstr.FromInt32(7))
	assert.Equal(t, 7, RollingUpdate(gotPool).RollingUpdate.MaxUnavailable.IntValue())

	assert.Equal(t, image, ds.Spec.Template.Spec.Containers[0].Image)
	for _, env := range ds.Spec.Template.Spec.Containers[0].Env {
		if env.Name == RequestEnv {
			assert.Equal(t, "metadata.annotations['kubelet-guard.io/rollout-request']", env.ValueFrom.FieldRef.FieldPath)
		}
	}
}

func TestDaemonSetIsTheSameForTheSameArguments(t *testing.T) {
	pool := Pool{Name: "blue", Selector: "zone notin (b,a),pool=blue", MaxUnavailable: 1}
	request := Request{Target: Audit, Image: image, KubeletChecksums: map[string]string{"amd64": sum, "arm64": sum, "s390x": sum}}
	first, err := DaemonSet(pool, request)
	require.NoError(t, err)
	for range 20 {
		again, err := DaemonSet(pool, request)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
}

const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestPoolSelectsAsKubectlDoes(t *testing.T) {
	nodes := map[string]map[string]string{
		"a1": {"pool": "a", "size": "1"},
		"a9": {"pool": "a", "size": "9", "gpu": ""},
		"b1": {"pool": "b", "size": "1"},
		"no": {},
	}
	for selector, c := range map[string]struct {
		selected     []string
		requirements []corev1.NodeSelectorRequirement
	}{
		"pool=a":         {[]string{"a1", "a9"}, []corev1.NodeSelectorRequirement{{Key: "pool", Operator: "In", Values: []string{"a"}}}},
		"pool in (b, a)": {[]string{"a1", "a9", "b1"}, []corev1.NodeSelectorRequirement{{Key: "pool", Operator: "In", Values: []string{"a", "b"}}}},
		"pool!=a":        {[]string{"b1", "no"}, []corev1.NodeSelectorRequirement{{Key: "pool", Operator: "NotIn", Values: []string{"a"}}}},
		"gpu":            {[]string{"a9"}, []corev1.NodeSelectorRequirement{{Key: "gpu", Operator: "Exists"}}},
		"!gpu,pool":      {[]string{"a1", "b1"}, []corev1.NodeSelectorRequirement{{Key: "gpu", Operator: "DoesNotExist"}, {Key: "pool", Operator: "Exists"}}},
		"size>1":         {[]string{"a9"}, []corev1.NodeSelectorRequirement{{Key: "size", Operator: "Gt", Values: []string{"1"}}}},
		"":               {nil, nil},
		"pool=a=b":       {nil, nil},
	} {
		t.Run(selector, func(t *testing.T) {
			pool := Pool{Name: "p", Selector: selector, MaxUnavailable: 1}
			var selected []string
			for _, name := range []string{"a1", "a9", "b1", "no"} {
				if pool.Matches(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: nodes[name]}}) {
					selected = append(selected, name)
				}
			}
			assert.Equal(t, c.selected, selected)
			ds, err := DaemonSet(pool, Request{Target: Observe, Image: image})
			if c.requirements == nil {
				assert.ErrorContains(t, err, "selector: Invalid value")
				return
			}
			require.NoError(t, err)
			terms := ds.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
			require.Len(t, terms, 1)
			assert.Equal(t, append(c.requirements, corev1.NodeSelectorRequirement{Key: "kubernetes.io/os", Operator: "In", Values: []string{"linux"}}), terms[0].MatchExpressions)
		})
	}
}

func TestPoolThatIsWrongNamesTheField(t *testing.T) {
	for want, pool := range map[string]Pool{
		"name: Invalid value":                {Name: "Blue", Selector: "a=b", MaxUnavailable: 1},
		"name: Too long":                     {Name: "a1234567890123456789012345678901234567890", Selector: "a=b", MaxUnavailable: 1},
		"maxUnavailable: Invalid value":      {Name: "blue", Selector: "a=b"},
		"must be at most 100":                {Name: "blue", Selector: "a=b", MaxUnavailable: 101},
		"must be at most 5":                  {Name: "blue", Selector: "a=b", MaxUnavailable: 6, MaxUnavailableLimit: 5},
		"maxUnavailableLimit: Invalid value": {Name: "blue", Selector: "a=b", MaxUnavailable: 1, MaxUnavailableLimit: -1},
		"maxUnready: Invalid value":          {Name: "blue", Selector: "a=b", MaxUnavailable: 1, MaxUnready: ptr.To(intstr.FromString("0%"))},
	} {
		assert.ErrorContains(t, pool.Validate(), want)
	}
	assert.NoError(t, Pool{Name: "blue", Selector: "a=b", MaxUnavailable: 500, MaxUnavailableLimit: 500}.Validate())
}

func TestNodesThatHaveJoined(t *testing.T) {
	ds := &appsv1.DaemonSet{}
	node := &corev1.Node{}
	node.CreationTimestamp.Time = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	assert.False(t, Joined(ds, node), "it is not known when the request was made")
	ds.Annotations = map[string]string{StartedAnnotation: "2026-01-01T00:00:00Z"}
	assert.True(t, Joined(ds, node))
	ds.Annotations[StartedAnnotation] = "2026-01-02T00:00:00Z"
	assert.False(t, Joined(ds, node))
}

func TestReportSurvivesItsAnnotation(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	report, err := ReportOf(node)
	require.NoError(t, err)
	assert.Nil(t, report)

	want := Report{RequestID: "1", Pool: "blue", Target: Audit, Phase: RolledBack, Reason: ReasonUnguarded, Message: "m", Before: Kubelet{Version: "v1.36.3"}}
	node.Annotations = map[string]string{ReportAnnotation: want.Annotation()}
	report, err = ReportOf(node)
	require.NoError(t, err)
	assert.Equal(t, &want, report)

	node.Annotations[ReportAnnotation] = "{"
	_, err = ReportOf(node)
	assert.ErrorContains(t, err, "node n: annotation kubelet-guard.io/rollout-report")
}

func TestPoolLeavesNodesOut(t *testing.T) {
	pool := Pool{Name: "p", Selector: "pool=a", MaxUnavailable: 1, Without: []string{"a2"}}
	node := func(name, system string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pool": "a", "kubernetes.io/os": system}}}
	}
	assert.True(t, pool.Matches(node("a1", "linux")))
	assert.False(t, pool.Matches(node("a2", "linux")), "left out")
	assert.False(t, pool.Matches(node("a3", "windows")), "no kubelet for it")
	ds, err := DaemonSet(pool, Request{Target: Audit, Image: image})
	require.NoError(t, err)
	term := ds.Spec.Template.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0]
	assert.Equal(t, []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: "NotIn", Values: []string{"a2"}}}, term.MatchFields)
	assert.Empty(t, ds.Spec.Template.Spec.SchedulingGates)

	pool.Without = make([]string, MaxWithout+1)
	assert.ErrorContains(t, pool.Validate(), "without: Too many")
}

func TestInstallersThatOnlyLookWaitAtAGate(t *testing.T) {
	ds, err := DaemonSet(Pool{Name: "p", Selector: "pool=a", MaxUnavailable: 1}, Request{Target: Observe, Image: image})
	require.NoError(t, err)
	assert.Equal(t, []corev1.PodSchedulingGate{{Name: LookGate}}, ds.Spec.Template.Spec.SchedulingGates)
}
