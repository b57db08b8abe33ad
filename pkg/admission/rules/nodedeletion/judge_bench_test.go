package nodedeletion

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// oneLedger is a Ledgers that has read the policy from a cache, or decodes it.
type oneLedger struct {
	Ledgers
	policy *guardv1alpha1.NodeDeletionPolicy
	raw    []byte
}

func (l oneLedger) Get(context.Context, string) (*guardv1alpha1.NodeDeletionPolicy, error) {
	if l.raw == nil {
		return l.policy.DeepCopy(), nil
	}
	policy := &guardv1alpha1.NodeDeletionPolicy{}
	return policy, json.Unmarshal(l.raw, policy)
}

// BenchmarkJudge is what one judgement by a policy costs in a cluster of 5,000 nodes: of a ledger
// that the cache has, the same after a node of the pool has changed, one that is refused by
// the limit, and one that had to be decoded, as after each write.
func BenchmarkJudge(b *testing.B) {
	const nodes = 5000
	for _, deletions := range []int{20, 500, 1000} {
		// One more fits in.
		policy := policyOf("p", -1, time.Hour, "80%")
		policy.Spec.NodeSelector = metav1.LabelSelector{MatchLabels: map[string]string{"pool": "a"}}
		for i := range deletions - 1 {
			policy.Status.Deletions = append(policy.Status.Deletions, guardv1alpha1.NodeDeletion{
				UID: types.UID(fmt.Sprintf("3f0d4c1e-8d0e-4f0b-9a57-%012d", i)), Node: fmt.Sprintf("ip-10-0-%d.compute.internal", i),
				Time: metav1.NewMicroTime(time.Now().Add(-time.Minute).UTC()), User: "system:serviceaccount:kube-system:node-controller"})
		}
		index := NewIndex()
		for i := range nodes {
			node := nodeObject(fmt.Sprint("node-", i), "a", true)
			node.UID = types.UID(fmt.Sprintf("3f0d4c1e-8d0e-4f0b-9a57-%012d", i+nodes))
			node.Labels["kubernetes.io/os"] = "linux"
			index.OnAdd(node, true)
		}
		raw, err := json.Marshal(policy)
		require.NoError(b, err)
		limited := policy.DeepCopy()
		limited.Spec.MaxDeletions = new(int32(1))
		node := Node{Name: "node-17", UID: types.UID(fmt.Sprintf("3f0d4c1e-8d0e-4f0b-9a57-%012d", nodes+17)), Labels: map[string]string{"pool": "a"}, Ready: true}
		for _, test := range []struct {
			name    string
			ledgers oneLedger
			before  func(i int)
			refused bool
		}{
			{name: "cached", ledgers: oneLedger{policy: policy}},
			{name: "pool changed", ledgers: oneLedger{policy: policy}, before: func(i int) { index.OnUpdate(nil, nodeObject("node-1", "a", i%2 == 0)) }},
			{name: "refused by the limit", ledgers: oneLedger{policy: limited}, refused: true},
			{name: "decoded", ledgers: oneLedger{raw: raw}},
		} {
			b.Run(fmt.Sprintf("deletions=%d/%s", deletions, test.name), func(b *testing.B) {
				rule := NewRule(nil, index, test.ledgers, admission.Enforce, clock.RealClock{})
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if test.before != nil {
						test.before(i)
					}
					_, refusal, err := rule.judge(context.Background(), "p", node)
					if err != nil || (refusal != nil) != test.refused {
						b.Fatal(refusal, err)
					}
				}
			})
		}
	}
}
