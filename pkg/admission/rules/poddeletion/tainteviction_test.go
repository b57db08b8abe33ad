package poddeletion

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// evictions are the pods of node-1, of which deletes are noted.
type evictions struct {
	pods    []corev1.Pod
	err     error
	deleted []string
}

func (e *evictions) OnNode(_ context.Context, node string) ([]corev1.Pod, error) {
	if node != "node-1" {
		return nil, errors.New("a node without such taints was read")
	}
	return e.pods, nil
}

func (e *evictions) Delete(_ context.Context, pod *corev1.Pod) error {
	e.deleted = append(e.deleted, pod.Name)
	return e.err
}

// tried says that taint eviction wanted to delete the pod.
func tried(ago time.Duration) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: deletionByTaintManager, LastTransitionTime: metav1.NewTime(noon.Add(-ago)),
		})
	}
}

func tolerating(key string, seconds *int64) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
			Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds,
		})
	}
}

func TestDeletionsByTaintsThatAreRepeated(t *testing.T) {
	unreachable := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: ptr.To(metav1.NewTime(noon.Add(-time.Minute)))}
	byHand := corev1.Taint{Key: "broken", Effect: corev1.TaintEffectNoExecute}
	for name, test := range map[string]struct {
		pod    *corev1.Pod
		taints []corev1.Taint
		want   bool
	}{
		"refused before":                         {newPod(tried(time.Minute)), []corev1.Taint{unreachable}, true},
		"refused before, taint without a time":   {newPod(tried(time.Minute)), []corev1.Taint{byHand}, true},
		"its time is over":                       {newPod(tried(time.Minute), tolerating(unreachable.Key, ptr.To[int64](60))), []corev1.Taint{unreachable}, true},
		"the shorter of two times is over":       {newPod(tried(time.Minute), tolerating(unreachable.Key, ptr.To[int64](300)), tolerating("", ptr.To[int64](60))), []corev1.Taint{unreachable}, true},
		"of two taints one is not tolerated":     {newPod(tried(time.Minute), tolerating(unreachable.Key, nil)), []corev1.Taint{unreachable, byHand}, true},
		"its time is not over, of a later taint": {newPod(tried(time.Hour), tolerating(unreachable.Key, ptr.To[int64](61))), []corev1.Taint{unreachable}, false},
		"tolerates it":                           {newPod(tried(time.Minute), tolerating(unreachable.Key, nil)), []corev1.Taint{unreachable}, false},
		"never tried":                            {newPod(), []corev1.Taint{unreachable}, false},
		"the control plane still tries":          {newPod(tried(time.Second)), []corev1.Taint{unreachable}, false},
		"disrupted by somebody else":             {newPod(disrupted), []corev1.Taint{unreachable}, false},
		"terminating":                            {newPod(tried(time.Minute), deletedAt(noon)), []corev1.Taint{unreachable}, false},
		"finished":                               {newPod(tried(time.Minute), inPhase(corev1.PodFailed)), []corev1.Taint{unreachable}, false},
	} {
		t.Run(name, func(t *testing.T) {
			pods := &evictions{pods: []corev1.Pod{*test.pod}}
			require.NoError(t, newTaintEviction(pods, test.taints).repeat(t.Context()))
			require.Equal(t, test.want, len(pods.deleted) == 1)
		})
	}
}

func TestOnlyNodesThatEvictAreAskedAbout(t *testing.T) {
	pods := &evictions{err: errors.New("nobody is deleted")}
	require.NoError(t, newTaintEviction(pods, nil).repeat(t.Context()))
	require.NoError(t, newTaintEviction(pods, []corev1.Taint{{Key: "busy", Effect: corev1.TaintEffectNoSchedule}}).repeat(t.Context()))
}

func TestRefusedRepetitionsAreNoErrors(t *testing.T) {
	taints := []corev1.Taint{{Key: "broken", Effect: corev1.TaintEffectNoExecute}}
	pod := schema.GroupResource{Resource: "pods"}
	for name, test := range map[string]struct {
		err    error
		failed bool
	}{
		"refused again":   {apierrors.NewForbidden(pod, "web-1", errors.New("budget")), false},
		"gone":            {apierrors.NewNotFound(pod, "web-1"), false},
		"another of name": {apierrors.NewConflict(pod, "web-1", errors.New("uid")), false},
		"no answer":       {errors.New("connection refused"), true},
	} {
		t.Run(name, func(t *testing.T) {
			pods := &evictions{pods: []corev1.Pod{*newPod(tried(time.Minute)), *newPod(named("web-2"), tried(time.Minute))}, err: test.err}
			err := newTaintEviction(pods, taints).repeat(t.Context())
			require.Equal(t, test.failed, err != nil, "%v", err)
			if !test.failed {
				require.Equal(t, []string{"web-1", "web-2"}, pods.deleted)
			}
		})
	}
}

func newTaintEviction(pods EvictedPods, taints []corev1.Taint) *TaintEviction {
	nodes := fake.NewClientBuilder().WithObjects(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: corev1.NodeSpec{Taints: taints}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-2"}},
	).Build()
	return NewTaintEviction(nodes, pods, testclock.NewFakePassiveClock(noon))
}
