package nodedeletion

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// pool returns so many nodes, of which the first are ready.
func pool(nodes, ready int) []Node {
	list := make([]Node, nodes)
	for i := range list {
		name := fmt.Sprintf("n%03d", i)
		list[i] = Node{Name: name, UID: types.UID(name), Labels: map[string]string{"pool": "a"}, Ready: i < ready}
	}
	return list
}

func policyOf(name string, max int, period time.Duration, minReady string, deletedAt ...time.Time) *guardv1alpha1.NodeDeletionPolicy {
	policy := &guardv1alpha1.NodeDeletionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: guardv1alpha1.NodeDeletionPolicySpec{
		NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"pool": "a"}},
	}}
	if max >= 0 {
		n := int32(max)
		policy.Spec.MaxDeletions = &n
	}
	if period > 0 {
		policy.Spec.Period = &metav1.Duration{Duration: period}
	}
	if minReady != "" {
		value := intstr.Parse(minReady)
		policy.Spec.MinReady = &value
	}
	for i, at := range deletedAt {
		policy.Status.Deletions = append(policy.Status.Deletions, guardv1alpha1.NodeDeletion{
			UID: types.UID(fmt.Sprintf("gone%d", i)), Node: fmt.Sprintf("gone%d", i), Time: metav1.NewMicroTime(at)})
	}
	return policy
}

func ago(d time.Duration) time.Time { return noon.Add(-d) }

func TestJudge(t *testing.T) {
	ready, unready := pool(1, 1)[0], Node{Name: "broken", UID: "broken"}
	for name, test := range map[string]struct {
		policy *guardv1alpha1.NodeDeletionPolicy
		nodes  []Node
		node   Node
		want   string
	}{
		"below the limit":                          {policyOf("p", 3, time.Hour, "", ago(time.Minute), ago(30*time.Minute)), pool(10, 10), ready, ""},
		"deletions before the period do not count": {policyOf("p", 1, time.Hour, "", ago(time.Hour)), pool(10, 10), ready, ""},
		"at the limit": {policyOf("p", 2, time.Hour, "", ago(10*time.Minute), ago(30*time.Minute)), pool(10, 10), ready,
			"NodeLimit: NodeDeletionPolicy p limits deletions to 2 in 1h, and there were 2. The next is allowed at 2026-11-25T12:30:00Z, in 30m"},
		"above the limit, as after it was lowered": {policyOf("p", 1, 90*time.Minute, "", ago(10*time.Minute), ago(30*time.Minute)), pool(10, 10), ready,
			"NodeLimit: NodeDeletionPolicy p limits deletions to 1 in 1h30m, and there were 2. The next is allowed at 2026-11-25T13:20:00Z, in 1h20m"},
		"a limit of none": {policyOf("p", 0, time.Hour, ""), pool(10, 10), ready,
			"NodeLimit: NodeDeletionPolicy p lets no node be deleted (maxDeletions is 0)"},
		"a deletion of the future counts": {policyOf("p", 1, time.Hour, "", noon.Add(time.Second)), pool(10, 10), ready,
			"NodeLimit: NodeDeletionPolicy p limits deletions to 1 in 1h, and there were 1. The next is allowed at 2026-11-25T13:00:01Z, in 1h0m1s"},
		"a deletion of the next day counts from now on": {policyOf("p", 1, time.Hour, "", noon.Add(24*time.Hour)), pool(10, 10), ready,
			"NodeLimit: NodeDeletionPolicy p limits deletions to 1 in 1h, and there were 1. The next is allowed at 2026-11-25T13:00:00Z, in 1h. A clock is or was wrong: the ledger has deletions with a time that was ahead (1), counted from when that was noticed. Compare the clocks of the API servers' machines and of the webhook's"},
		"above the floor": {policyOf("p", -1, 0, "9"), pool(10, 10), ready, ""},
		"at the floor": {policyOf("p", -1, 0, "10"), pool(10, 10), ready,
			"ReadyFloor: NodeDeletionPolicy p keeps 10 nodes of its pool ready, and only 10 are; the pool had 10 nodes in the last 1h. The next deletion is allowed when another node is ready"},
		"a node that is not ready, above the floor":     {policyOf("p", -1, 0, "5"), pool(10, 5), unready, ""},
		"a node that is not ready, at the floor":        {policyOf("p", -1, 0, "5"), pool(100, 5), unready, ""},
		"two that are not ready may go below the floor": {policyOf("p", -1, 0, "100%"), pool(10, 8), unready, ""},
		"two of two": {policyOf("p", -1, 0, "100%"), pool(2, 0), unready, ""},
		"a node that is not ready, without a floor":          {policyOf("p", 5, time.Hour, ""), pool(10, 0), unready, ""},
		"a node that is not ready and was charged, below it": {policyOf("p", -1, time.Hour, "90%", ago(time.Minute)), pool(10, 0), Node{UID: "gone0"}, ""},
		"a node that is not ready is held to a floor that is broken": {policyOf("p", -1, 0, "90%"), pool(10, 7), unready,
			"ReadyFloor: NodeDeletionPolicy p keeps 9 nodes of its pool ready, and only 7 are; 3 of 10 are not ready, which looks like a mass failure: the nodes may be well, and what reports on them not. The next deletion is allowed when 9 are ready, or no more than 2 are not"},
		"a node that is not ready is held to the limit": {policyOf("p", 1, time.Hour, "10", ago(time.Minute)), pool(10, 5), unready,
			"NodeLimit: NodeDeletionPolicy p limits deletions to 1 in 1h, and there were 1. The next is allowed at 2026-11-25T12:59:00Z, in 59m"},
		"a share is rounded up": {policyOf("p", -1, 0, "75%"), pool(3, 3), ready,
			"ReadyFloor: NodeDeletionPolicy p keeps 3 nodes of its pool ready, and only 3 are; the pool had 3 nodes in the last 1h. The next deletion is allowed when another node is ready"},
		"a share is of the pool before its deletions": {policyOf("p", -1, time.Hour, "90%", ago(10*time.Minute)), pool(9, 9), ready,
			"ReadyFloor: NodeDeletionPolicy p keeps 9 nodes of its pool ready, and only 9 are; the pool had 10 nodes in the last 1h. The next deletion is allowed when another node is ready"},
		"a share of a pool that shrank is lower when the deletions are old": {policyOf("p", -1, time.Hour, "90%", ago(10*time.Minute), ago(20*time.Minute)), pool(19, 19), ready,
			"ReadyFloor: NodeDeletionPolicy p keeps 19 nodes of its pool ready, and only 19 are; the pool had 21 nodes in the last 1h. The next deletion is allowed when another node is ready, or at 2026-11-25T12:40:00Z, in 40m, when earlier deletions count no longer"},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			if refusal := Measure(test.policy, test.nodes, noon).Judge("p", test.node, noon); refusal != nil {
				got = string(refusal.Reason) + ": " + refusal.Message
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMeasureTakesChargedNodesAsGone(t *testing.T) {
	policy, nodes := policyOf("p", 5, time.Hour, "50%"), pool(4, 3)
	nodes[1].Terminating = true
	policy.Status.Deletions, _ = Charge(nil, nodes[0], "me", noon)
	usage := Measure(policy, nodes, noon.Add(time.Minute))
	require.Equal(t, Pool{Nodes: 2, Ready: 1, Deleted: 2}, usage.Pool)
	require.Equal(t, 2, usage.Floor)
	require.Nil(t, usage.Judge("p", nodes[0], noon), "a second review of the same node")
	require.NotNil(t, usage.Judge("p", nodes[2], noon))
}

func TestLedger(t *testing.T) {
	nodes := pool(3, 3)
	ledger, added := Charge(nil, nodes[0], "me", noon)
	require.True(t, added)
	again, added := Charge(ledger, nodes[0], "you", noon.Add(time.Second))
	require.False(t, added)
	require.Equal(t, ledger, again)
	// The clock of another replica is behind.
	ledger, _ = Charge(ledger, nodes[1], "me", ago(time.Minute))
	require.Equal(t, []string{"n001", "n000"}, []string{ledger[0].Node, ledger[1].Node})
	left, changed := Refund(ledger, nodes[0].UID)
	require.True(t, changed)
	require.Len(t, left, 1)
	require.Len(t, ledger, 2, "the ledger it was given")
	_, changed = Refund(left, nodes[0].UID)
	require.False(t, changed)
}

func TestAReplicaThatIsAheadForgetsNothing(t *testing.T) {
	policy, nodes := policyOf("p", 5, time.Hour, "", ago(10*time.Minute), ago(5*time.Minute)), pool(3, 3)
	require.True(t, record(policy, nodes[0], "me", noon.Add(2*time.Hour)))
	require.Len(t, policy.Status.Deletions, 3)
	require.Len(t, Measure(policy, nodes, noon).Deletions, 3, "what the others count")
	require.False(t, record(policy, nodes[0], "me", noon.Add(2*time.Hour)))
}

func TestRecordChargesANodeAgainWhenItsDeletionCountsNoLonger(t *testing.T) {
	policy, nodes := policyOf("p", 5, time.Hour, ""), pool(1, 1)
	require.True(t, record(policy, nodes[0], "me", noon))
	require.True(t, record(policy, nodes[0], "you", noon.Add(time.Hour)))
	require.Len(t, policy.Status.Deletions, 1)
	require.Equal(t, "you", policy.Status.Deletions[0].User)
}

func TestRecordMakesRoomInAFullLedger(t *testing.T) {
	policy, nodes := policyOf("p", -1, time.Hour, "0"), pool(1, 1)
	for i := range ledgerSize {
		at := ago(time.Minute)
		if i < 10 {
			at = ago(time.Hour)
		}
		policy.Status.Deletions = append(policy.Status.Deletions, guardv1alpha1.NodeDeletion{UID: types.UID(fmt.Sprint(i)), Time: metav1.NewMicroTime(at)})
	}
	require.True(t, record(policy, nodes[0], "me", noon))
	require.Len(t, policy.Status.Deletions, ledgerSize-9)
}

func TestTheStatusMendsATimeThatIsAhead(t *testing.T) {
	ahead := noon.Add(24 * time.Hour)
	policy := policyOf("p", 1, time.Hour, "", ahead)
	policy.Status = Status(policy, nil, pool(3, 3), admission.Enforce, noon)
	require.Equal(t, noon, policy.Status.Deletions[0].Time.Time)
	require.Equal(t, ahead, policy.Status.Deletions[0].WrittenTime.Time)
	later := noon.Add(30 * time.Minute)
	refusal := Measure(policy, pool(3, 3), later).Judge("p", pool(3, 3)[0], later)
	require.Equal(t, noon.Add(time.Hour), refusal.Next, "one period from when it was noticed")
	require.Contains(t, refusal.Message, "A clock is or was wrong")
	require.Equal(t, policy.Status, Status(policy, nil, pool(3, 3), admission.Enforce, later))
}

func TestTheStatusKeepsWhatAnotherClockMayStillCount(t *testing.T) {
	policy := policyOf("p", 1, time.Hour, "", ago(time.Hour))
	status := Status(policy, nil, pool(3, 3), admission.Enforce, noon)
	require.Len(t, status.Deletions, 1)
	require.Nil(t, status.NextDeletionExpires)
	require.Equal(t, noon.Add(pruneMargin), nextChange(policy, noon))
	require.Empty(t, Status(policy, nil, pool(3, 3), admission.Enforce, noon.Add(pruneMargin)).Deletions)
	require.Equal(t, noon, nextChange(policy, ago(time.Second)))
	require.Zero(t, nextChange(policyOf("p", 1, time.Hour, ""), noon))
}

func TestStatusCountsThePool(t *testing.T) {
	policy := policyOf("p", 5, time.Hour, "60%", ago(2*time.Hour), ago(10*time.Minute), ago(5*time.Minute))
	policy.Generation = 2
	got := Status(policy, []guardv1alpha1.NodeDeletionPolicy{*policy}, pool(8, 7), admission.Enforce, noon)
	expires := metav1.NewTime(noon.Add(50 * time.Minute))
	want := guardv1alpha1.NodeDeletionPolicyStatus{
		ObservedGeneration: 2, Deletions: policy.Status.Deletions[1:], Nodes: 8, ReadyNodes: 7,
		DeletionsAllowed: 1, DeletionsCounted: ptr.To(int32(2)), NextDeletionExpires: &expires,
		Conditions: []metav1.Condition{{Type: "Valid", Status: metav1.ConditionTrue, Reason: "Valid", Message: "The policy is understood", ObservedGeneration: 2, LastTransitionTime: metav1.NewTime(noon)}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	require.Nil(t, Status(policy, nil, pool(8, 7), admission.Audit, noon).DeletionsCounted, "nothing by which the API server could refuse")
	policy.Status = got
	require.Equal(t, got, Status(policy, nil, pool(8, 7), admission.Enforce, noon.Add(time.Second)), "the status must not change when nothing has")
}

func TestValidateNodeDeletionPolicyNamesTheField(t *testing.T) {
	other := policyOf("other", 1, time.Hour, "")
	other.Spec.NodeSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "pool", Operator: "In", Values: []string{"b"}}, {Key: "gpu", Operator: "Exists"}}}
	others := []guardv1alpha1.NodeDeletionPolicy{*other, *policyOf("p", 3, time.Hour, "80%")}
	for name, test := range map[string]struct {
		policy *guardv1alpha1.NodeDeletionPolicy
		want   []string
	}{
		"valid":                  {policyOf("p", 3, time.Hour, "80%"), nil},
		"negative limit":         {limited(-1), []string{"spec.maxDeletions"}},
		"too high a limit":       {policyOf("p", 501, time.Hour, ""), []string{"spec.maxDeletions"}},
		"too short a period":     {policyOf("p", 1, time.Second, ""), []string{"spec.period"}},
		"too long a period":      {policyOf("p", 1, 721*time.Hour, ""), []string{"spec.period"}},
		"more than all":          {policyOf("p", 1, time.Hour, "101%"), []string{"spec.minReady"}},
		"a negative floor":       {policyOf("p", 1, time.Hour, "-1"), []string{"spec.minReady"}},
		"no number":              {policyOf("p", 1, time.Hour, "most"), []string{"spec.minReady"}},
		"no limit at all":        {policyOf("p", -1, time.Hour, ""), []string{"spec"}},
		"the selector of others": {selecting("gpu,pool=b"), []string{"spec.nodeSelector"}},
		"part of that selector":  {selecting("pool=b"), nil},
		"a broken selector":      {selecting("pool=-b-"), []string{"spec.nodeSelector.matchLabels"}},
	} {
		t.Run(name, func(t *testing.T) {
			var fields []string
			for _, err := range ValidateNodeDeletionPolicy(test.policy, others) {
				fields = append(fields, err.Field)
			}
			require.Equal(t, test.want, fields)
		})
	}
}

func limited(max int32) *guardv1alpha1.NodeDeletionPolicy {
	policy := policyOf("p", 0, time.Hour, "")
	policy.Spec.MaxDeletions = &max
	return policy
}

func selecting(text string) *guardv1alpha1.NodeDeletionPolicy {
	policy := policyOf("p", 1, time.Hour, "")
	switch text {
	case "pool=-b-":
		policy.Spec.NodeSelector = metav1.LabelSelector{MatchLabels: map[string]string{"pool": "-b-"}}
	default:
		selector, err := metav1.ParseToLabelSelector(text)
		if err != nil {
			panic(err)
		}
		policy.Spec.NodeSelector = *selector
	}
	return policy
}
