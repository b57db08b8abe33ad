package poddeletion

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	corefake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// podsOfNode1 returns the client of an API server that has these pods, of which only those of node-1
// may be read, and that responds to deletions with the error.
func podsOfNode1(t *testing.T, failure error, pods ...*corev1.Pod) *corefake.Clientset {
	client := corefake.NewClientset()
	for _, pod := range pods {
		require.NoError(t, client.Tracker().Add(pod))
	}
	client.PrependReactor("list", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		require.Equal(t, "spec.nodeName=node-1", action.(clienttesting.ListAction).GetListRestrictions().Fields.String())
		return false, nil, nil
	})
	client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		require.Equal(t, podUID, string(*action.(clienttesting.DeleteActionImpl).DeleteOptions.Preconditions.UID))
		return failure != nil, nil, failure
	})
	return client
}

// deleted returns the names of the pods whose deletion was requested.
func deleted(client *corefake.Clientset) []string {
	var names []string
	for _, action := range client.Actions() {
		if deletion, ok := action.(clienttesting.DeleteAction); ok {
			names = append(names, deletion.GetName())
		}
	}
	return names
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
		"disrupted by someone else":              {newPod(disrupted), []corev1.Taint{unreachable}, false},
		"terminating":                            {newPod(tried(time.Minute), deletedAt(noon)), []corev1.Taint{unreachable}, false},
		"finished":                               {newPod(tried(time.Minute), inPhase(corev1.PodFailed)), []corev1.Taint{unreachable}, false},
	} {
		t.Run(name, func(t *testing.T) {
			pods := podsOfNode1(t, nil, test.pod)
			require.NoError(t, newTaintEviction(pods, test.taints).repeat(t.Context()))
			require.Equal(t, test.want, len(deleted(pods)) == 1)
		})
	}
}

func TestOnlyNodesThatEvictAreAskedAbout(t *testing.T) {
	pods := podsOfNode1(t, nil, newPod(tried(time.Minute)))
	require.NoError(t, newTaintEviction(pods, nil).repeat(t.Context()))
	require.NoError(t, newTaintEviction(pods, []corev1.Taint{{Key: "busy", Effect: corev1.TaintEffectNoSchedule}}).repeat(t.Context()))
	require.Empty(t, pods.Actions())
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
			pods := podsOfNode1(t, test.err, newPod(tried(time.Minute)), newPod(named("web-2"), tried(time.Minute)))
			err := newTaintEviction(pods, taints).repeat(t.Context())
			require.Equal(t, test.failed, err != nil, "%v", err)
			if !test.failed {
				require.ElementsMatch(t, []string{"web-1", "web-2"}, deleted(pods))
			}
		})
	}
}

func newTaintEviction(pods *corefake.Clientset, taints []corev1.Taint) *TaintEviction {
	nodes := fake.NewClientBuilder().WithObjects(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: corev1.NodeSpec{Taints: taints}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-2"}},
	).Build()
	return NewTaintEviction(nodes, pods.CoreV1(), testclock.NewFakePassiveClock(noon))
}
