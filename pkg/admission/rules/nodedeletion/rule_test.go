package nodedeletion

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

func deletionOf(t testing.TB, node Node, dryRun bool) *admission.Request {
	t.Helper()
	object := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, UID: node.UID, Labels: node.Labels}}
	if node.Ready {
		object.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	}
	if node.Terminating {
		now := metav1.Now()
		object.DeletionTimestamp = &now
	}
	review := admissiontest.Review(t, admissionv1.Delete, corev1.SchemeGroupVersion.WithKind("Node"), "nodes", object, nil)
	// The review of an item of a DELETECOLLECTION has no name.
	review.Name, review.DryRun, review.UserInfo.Username = "", &dryRun, "someone"
	return admission.NewRequest(review)
}

func TestReviewChargesAllPoliciesOrNone(t *testing.T) {
	nodes := pool(10, 10)
	s := newAPIServer(t, nodes, policyOf("a", 5, time.Hour, ""), policyOf("b", 1, time.Hour, ""))
	rule := s.rule()

	decision := rule.Review(context.Background(), deletionOf(t, nodes[0], false))
	require.Equal(t, admission.Allowed, decision.Verdict, "%+v", decision)
	require.Equal(t, "a,b", decision.Annotations["charged"])
	require.Equal(t, "someone", s.policy("a").Status.Deletions[0].User)

	decision = rule.Review(context.Background(), deletionOf(t, nodes[1], false))
	require.Equal(t, admission.Refused, decision.Verdict)
	require.Equal(t, admission.ReasonNodeLimit, decision.Reason)
	require.Contains(t, decision.Message, "node/n001 may not be deleted now: NodeDeletionPolicy b")
	require.Equal(t, []string{"n000"}, s.ledger("a"))
	require.Equal(t, []string{"n000"}, s.ledger("b"))

	decision = rule.Review(context.Background(), deletionOf(t, nodes[0], false))
	require.Equal(t, admission.Allowed, decision.Verdict, "a second review of the same node")
	require.Equal(t, []string{"n000"}, s.ledger("b"))
}

func TestReviewLetsPassWithoutCharge(t *testing.T) {
	nodes := pool(3, 3)
	terminating, elsewhere := nodes[0], nodes[1]
	terminating.Terminating, elsewhere.Labels = true, nil
	for name, test := range map[string]struct {
		node   Node
		dryRun bool
	}{
		"a dry run":                     {nodes[2], true},
		"a node that is terminating":    {terminating, false},
		"a node that no policy selects": {elsewhere, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAPIServer(t, nodes, policyOf("a", 1, time.Hour, ""))
			decision := s.rule().Review(context.Background(), deletionOf(t, test.node, test.dryRun))
			require.Equal(t, admission.Allowed, decision.Verdict, "%+v", decision)
			require.Empty(t, s.ledger("a"))
		})
	}
}

func TestReviewRefusesDryRunsAlike(t *testing.T) {
	nodes := pool(3, 3)
	s := newAPIServer(t, nodes, policyOf("a", 0, time.Hour, ""))
	require.Equal(t, admission.Refused, s.rule().Review(context.Background(), deletionOf(t, nodes[0], true)).Verdict)
}

func TestReviewOfAnInvalidPolicyLetsNoNodeGo(t *testing.T) {
	nodes := pool(3, 3)
	s := newAPIServer(t, nodes, policyOf("a", 1, time.Hour, "most"))
	decision := s.rule().Review(context.Background(), deletionOf(t, nodes[0], false))
	require.Equal(t, admission.ReasonMalformed, decision.Reason)
	require.Contains(t, decision.Message, "spec.minReady")
}

func TestReviewBelowTheFloorSaysHowToGoOn(t *testing.T) {
	nodes := pool(10, 2)
	s := newAPIServer(t, nodes, policyOf("a", -1, time.Hour, "50%"))
	decision := s.rule().Review(context.Background(), deletionOf(t, nodes[9], false))
	require.Equal(t, admission.ReasonReadyFloor, decision.Reason)
	require.Contains(t, decision.Message, "8 of 10 are not ready")
	require.Contains(t, decision.NextStep, `kubectl patch nodedeletionpolicy a --type=merge -p '{"spec":{"minReady":2}}'`)
	require.Empty(t, s.ledger("a"))
	s.change("a", func(policy *guardv1alpha1.NodeDeletionPolicy) { policy.Spec.MinReady = ptr.To(intstr.FromInt32(2)) })
	decision = s.rule().Review(context.Background(), deletionOf(t, nodes[9], false))
	require.Equal(t, admission.Allowed, decision.Verdict, "%+v", decision)
}

func TestReviewForgetsNothingForOthers(t *testing.T) {
	nodes := pool(3, 3)
	earlier := time.Now().Add(-30 * time.Minute)
	s := newAPIServer(t, nodes, policyOf("a", 5, time.Hour, "", earlier))
	ahead := NewRule(s, s.index, NewLiveLedgers(s, s, s), admission.Enforce, testingclock.NewFakeClock(time.Now().Add(time.Hour)))
	decision := ahead.Review(context.Background(), deletionOf(t, nodes[0], false))
	require.Equal(t, admission.Allowed, decision.Verdict, "%+v", decision)
	require.Equal(t, []string{"gone0", "n000"}, s.ledger("a"))
}

func TestReviewWritesWhatTheAPIServerRefusesBy(t *testing.T) {
	nodes := pool(5, 5)
	s := newAPIServer(t, nodes, policyOf("a", 2, time.Hour, "", time.Now().Add(-2*time.Hour), time.Now().Add(-30*time.Minute)))
	require.Equal(t, admission.Allowed, s.rule().Review(context.Background(), deletionOf(t, nodes[0], false)).Verdict)
	status := s.policy("a").Status
	require.EqualValues(t, 2, *status.DeletionsCounted)
	require.WithinDuration(t, time.Now().Add(30*time.Minute), status.NextDeletionExpires.Time, 5*time.Second)
	rule := s.rule()
	require.NoError(t, rule.refund(context.Background(), []string{"a"}, nodes[0]))
	require.EqualValues(t, 1, *s.policy("a").Status.DeletionsCounted, "after a refund")

	s = newAPIServer(t, nodes, policyOf("a", 2, time.Hour, ""))
	audit := NewRule(s, s.index, NewLiveLedgers(s, s, s), admission.Audit, clock.RealClock{})
	require.Equal(t, admission.Allowed, audit.Review(context.Background(), deletionOf(t, nodes[0], false)).Verdict)
	require.Nil(t, s.policy("a").Status.DeletionsCounted)
}

func TestReviewTakesChargesBackWhenALaterPolicyRefuses(t *testing.T) {
	nodes := pool(10, 10)
	s := newAPIServer(t, nodes, policyOf("a", 5, time.Hour, ""), policyOf("b", 1, time.Hour, ""))
	once := sync.OnceFunc(func() {
		// Another replica is faster at b, after this one has judged both.
		s.change("b", func(policy *guardv1alpha1.NodeDeletionPolicy) {
			policy.Status.Deletions, _ = Charge(nil, nodes[9], "other", time.Now())
		})
	})
	s.beforeWrite = func(string) { once() }
	decision := s.rule().Review(context.Background(), deletionOf(t, nodes[0], false))
	require.Equal(t, admission.Refused, decision.Verdict)
	require.Empty(t, decision.Warnings)
	require.Empty(t, s.ledger("a"))
	require.Equal(t, []string{"n009"}, s.ledger("b"))
}

func TestReviewTakesChargesBackWhenALaterLedgerCannotBeWritten(t *testing.T) {
	nodes := pool(10, 10)
	s := newAPIServer(t, nodes, policyOf("a", 5, time.Hour, ""), policyOf("b", 1, time.Hour, ""))
	s.writeErr = map[string]error{"b": errors.New("no answer")}
	decision := s.rule().Review(context.Background(), deletionOf(t, nodes[0], false))
	require.Equal(t, admission.Failed, decision.Verdict)
	require.ErrorContains(t, decision.Err, "NodeDeletionPolicy b")
	require.Empty(t, s.ledger("a"))
}

func TestReviewRefusesWhenOtherWritersNeverPause(t *testing.T) {
	nodes := pool(10, 10)
	s := newAPIServer(t, nodes, policyOf("a", 5, time.Hour, ""), policyOf("b", 5, time.Hour, ""))
	s.beforeWrite = func(name string) {
		if name == "b" {
			s.change("b", func(policy *guardv1alpha1.NodeDeletionPolicy) { policy.Status.Nodes++ })
		}
	}
	decision := s.rule().Review(context.Background(), deletionOf(t, nodes[0], false))
	require.Equal(t, admission.Refused, decision.Verdict, "%+v", decision)
	require.Contains(t, decision.Message, "so many nodes are being deleted at once")
	require.Empty(t, s.ledger("a"))
}

func TestReviewDoesNotWaitLongerThanTheAPIServer(t *testing.T) {
	nodes := pool(10, 10)
	s := newAPIServer(t, nodes, policyOf("a", 5, time.Hour, ""))
	rule := s.rule()
	rule.charging <- struct{}{}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	decision := rule.Review(ctx, deletionOf(t, nodes[0], false))
	require.Equal(t, admission.Refused, decision.Verdict, "%+v", decision)
	require.Empty(t, s.ledger("a"))
}

func TestReplicasCannotSpendOneDeletionTwice(t *testing.T) {
	const limit = 7
	nodes := pool(60, 60)
	s := newAPIServer(t, nodes, policyOf("a", limit, time.Hour, ""), policyOf("b", -1, time.Hour, "50%"))
	replicas := []*Rule{s.rule(), s.rule()}
	var (
		wait sync.WaitGroup
		mu   sync.Mutex
		seen = map[admission.Verdict]int{}
	)
	for i, node := range nodes {
		wait.Go(func() {
			decision := replicas[i%len(replicas)].Review(context.Background(), deletionOf(t, node, false))
			mu.Lock()
			defer mu.Unlock()
			seen[decision.Verdict]++
		})
	}
	wait.Wait()
	require.Equal(t, map[admission.Verdict]int{admission.Allowed: limit, admission.Refused: len(nodes) - limit}, seen)
	require.Len(t, s.ledger("a"), limit)
	require.ElementsMatch(t, s.ledger("a"), s.ledger("b"))
}

func BenchmarkReview(b *testing.B) {
	for _, size := range []int{100, 5000} {
		b.Run(fmt.Sprintf("%d nodes", size), func(b *testing.B) {
			nodes := pool(size, size)
			s := newAPIServer(b, nodes, policyOf("a", 3, time.Hour, "80%"))
			rule, request := s.rule(), deletionOf(b, nodes[0], true)
			for b.Loop() {
				rule.Review(context.Background(), request)
			}
		})
	}
}

func TestTrimNodeKeepsWhatIsRead(t *testing.T) {
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"pool": "a"}, Annotations: map[string]string{"a": "b"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.0.0.0/24"},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse}, ready},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.36.3+guard.0.1.0", OSImage: "os"},
			Images:     []corev1.ContainerImage{{Names: []string{"image"}}},
		},
	}
	trimmed, err := TrimNode(node)
	require.NoError(t, err)
	require.Equal(t, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"pool": "a"}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{ready},
			NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.36.3+guard.0.1.0"},
		},
	}, trimmed)
}
