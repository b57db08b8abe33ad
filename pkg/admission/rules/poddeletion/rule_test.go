package poddeletion

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/rules/nodedeletion"
)

// everyNode is the state of all nodes of a cluster.
func everyNode(health nodedeletion.Health, err error) func(context.Context, string, bool) (nodedeletion.Health, error) {
	return func(context.Context, string, bool) (nodedeletion.Health, error) { return health, err }
}

var noNodeLost = everyNode(nodedeletion.Health{}, nil)

// templates are the DaemonSets of the namespace shop, each with the number of its template.
type templates map[string]string

func (t templates) reader() client.Reader {
	builder := fake.NewClientBuilder()
	for name, generation := range t {
		builder.WithObjects(&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, Annotations: map[string]string{appsv1.DeprecatedTemplateGeneration: generation},
		}})
	}
	return builder.Build()
}

// newRule returns the rule on a cluster without a lost node.
func newRule(reservations *Reservations, clock clock.PassiveClock) *Rule {
	return NewRule(reservations, noNodeLost, templates{}.reader(), nil, DefaultDeletedNodeHold, clock)
}

func TestPodsOfNodesThatAreNotReady(t *testing.T) {
	for name, test := range map[string]struct {
		pod     *corev1.Pod
		node    nodedeletion.Health
		err     error
		verdict admission.Verdict
		message string
	}{
		"lost":                           {pod: newPod(unready), node: nodedeletion.Health{Lost: true}, verdict: admission.Allowed},
		"lost, but the pod is ready":     {pod: newPod(), node: nodedeletion.Health{Lost: true}, verdict: admission.Refused, message: "needs 1 healthy pods and has 0"},
		"mass failure":                   {pod: newPod(unready), node: nodedeletion.Health{MassFailure: "9 of 9 nodes of the cluster are not ready"}, verdict: admission.Refused, message: "needs 1 healthy pods and has 0; its node does not count as lost, since 9 of 9 nodes of the cluster are not ready"},
		"ready":                          {pod: newPod(unready), verdict: admission.Refused, message: "needs 1 healthy pods and has 0"},
		"nobody knows, the pod is not":   {pod: newPod(unready), err: errors.New("no nodes yet"), verdict: admission.Failed},
		"nobody knows, the pod is ready": {pod: newPod(), err: errors.New("no nodes yet"), verdict: admission.Refused, message: "needs 1 healthy pods and has 0"},
	} {
		t.Run(name, func(t *testing.T) {
			budget := allowing("web", 0)
			budget.Status.DesiredHealthy = 1
			s := newServer(budget)
			clock := testclock.NewFakePassiveClock(noon)
			decision := NewRule(newReservations(s, clock), everyNode(test.node, test.err), templates{}.reader(), nil, DefaultDeletedNodeHold, clock).
				Review(t.Context(), deletion(t, test.pod, ordinary, metav1.DeleteOptions{}))
			require.Equal(t, test.verdict, decision.Verdict)
			require.Contains(t, decision.Message, test.message)
			require.Zero(t, s.writes)
		})
	}
}

// markedByPodGC is what the pod garbage collector writes before it deletes a pod of a node
// that has no object.
func markedByPodGC(at time.Time) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Status.Phase = corev1.PodFailed
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: deletionByPodGC, LastTransitionTime: metav1.NewTime(at),
		})
	}
}

func TestPodsOfDeletedNodes(t *testing.T) {
	gc, owner := user("pod-garbage-collector"), user("statefulset-controller")
	owned, marked := ownedBy("apps/v1", "StatefulSet"), markedByPodGC(noon)
	lost := nodedeletion.Health{Deleted: true, Lost: true}
	mass := nodedeletion.Health{Deleted: true, MassFailure: "protected pods are on 9 nodes that were deleted, and 9 of 10 nodes are not ready or deleted"}
	for name, test := range map[string]struct {
		pod       *corev1.Pod
		node      nodedeletion.Health
		user      authenticationv1.UserInfo
		after     time.Duration
		budget    *policyv1.PodDisruptionBudget
		verdict   admission.Verdict
		message   string
		annotated string
	}{
		"ready, no budget":                          {pod: newPod(marked), node: lost, user: gc, verdict: admission.Refused, message: "node node-1 was deleted, which may have been a mistake: the pod was ready then and is kept until 2026-03-01T13:00:00Z"},
		"ready, no budget, a moment before":         {pod: newPod(marked), node: lost, user: gc, after: DefaultDeletedNodeHold - time.Second, verdict: admission.Refused, message: "kept until"},
		"ready, no budget, nobody knows since when": {pod: newPod(markedByPodGC(time.Time{})), node: lost, user: gc, verdict: admission.Refused, message: "kept until"},
		"ready, no budget, an hour later":           {pod: newPod(marked), node: lost, user: gc, after: DefaultDeletedNodeHold, verdict: admission.Allowed, annotated: "NodeLost"},
		"not ready":                                 {pod: newPod(unready, marked), node: lost, user: gc, verdict: admission.Allowed, annotated: "NodeLost"},
		"by its StatefulSet":                        {pod: newPod(owned, marked), node: lost, user: owner, verdict: admission.Refused, message: "kept until"},
		"by its StatefulSet, an hour later":         {pod: newPod(owned, marked), node: lost, user: owner, after: DefaultDeletedNodeHold, verdict: admission.Allowed, annotated: "NodeLost"},
		"by a user":                                 {pod: newPod(marked), node: lost, user: ordinary, verdict: admission.Allowed},
		"many nodes":                                {pod: newPod(marked), node: mass, user: gc, after: 24 * time.Hour, verdict: admission.Refused, message: "may have been a mistake: protected pods are on 9 nodes that were deleted"},
		"many nodes, not ready, no budget":          {pod: newPod(unready, marked), node: mass, user: gc, verdict: admission.Refused, message: "9 nodes"},
		"a spent budget":                            {pod: newPod(marked), node: lost, user: gc, budget: allowing("web", 0), verdict: admission.Refused, message: "held to poddisruptionbudget web"},
		"a spent budget, an hour later":             {pod: newPod(marked), node: lost, user: gc, after: DefaultDeletedNodeHold, budget: allowing("web", 0), verdict: admission.Allowed, annotated: "NodeLost"},
		"a spent budget, not ready":                 {pod: newPod(unready, marked), node: lost, user: gc, budget: allowing("web", 0), verdict: admission.Allowed, annotated: "NodeLost"},
		"a budget that allows it":                   {pod: newPod(marked), node: lost, user: gc, budget: allowing("web", 1), verdict: admission.Allowed, annotated: "web: charged, 0 left"},
		"said to have failed, its node is there":    {pod: newPod(owned, inPhase(corev1.PodFailed)), user: owner, budget: allowing("web", 0), verdict: admission.Refused, message: "held to poddisruptionbudget web"},
		"said to have failed, no budget":            {pod: newPod(owned, inPhase(corev1.PodFailed)), user: owner, verdict: admission.Allowed},
		"all containers ended":                      {pod: newPod(marked, containersEnded), node: lost, user: gc, verdict: admission.Allowed, annotated: "Finished"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer()
			if test.budget != nil {
				s = newServer(test.budget)
			}
			clock := testclock.NewFakePassiveClock(noon.Add(test.after))
			decision := NewRule(newReservations(s, clock), everyNode(test.node, nil), templates{}.reader(), nil, DefaultDeletedNodeHold, clock).
				Review(t.Context(), deletion(t, test.pod, test.user, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}))
			require.Equal(t, test.verdict, decision.Verdict, decision.Message)
			require.Contains(t, decision.Message, test.message)
			if test.verdict == admission.Allowed {
				require.Equal(t, test.annotated, decision.Annotations["budget"])
			}
		})
	}
}

func TestPodsOfDaemonSets(t *testing.T) {
	daemons := user("daemon-set-controller")
	ofTemplate := func(generation string) *corev1.Pod {
		pod := newPod(ownedBy("apps/v1", "DaemonSet"))
		pod.Labels[templateGenerationLabel] = generation
		return pod
	}
	for name, test := range map[string]struct {
		pod       *corev1.Pod
		user      authenticationv1.UserInfo
		sets      templates
		verdict   admission.Verdict
		annotated string
	}{
		"of the last template, since its node does not fit": {ofTemplate("2"), daemons, templates{"web": "2"}, admission.Refused, "web: Refuse"},
		"of an old template":                      {ofTemplate("1"), daemons, templates{"web": "2"}, admission.Allowed, "OutdatedDaemonPod"},
		"of an old template, by a user":           {ofTemplate("1"), ordinary, templates{"web": "2"}, admission.Refused, "web: Refuse"},
		"the DaemonSet is gone":                   {ofTemplate("1"), daemons, nil, admission.Refused, "web: Refuse"},
		"the DaemonSet does not say its template": {ofTemplate("1"), daemons, templates{"web": ""}, admission.Refused, "web: Refuse"},
		"owned by something else":                 {newPod(ownedBy("apps/v1", "StatefulSet")), daemons, templates{"web": "2"}, admission.Refused, "web: Refuse"},
	} {
		t.Run(name, func(t *testing.T) {
			clock := testclock.NewFakePassiveClock(noon)
			decision := NewRule(newReservations(newServer(allowing("web", 0)), clock), noNodeLost, test.sets.reader(), nil, DefaultDeletedNodeHold, clock).
				Review(t.Context(), deletion(t, test.pod, test.user, metav1.DeleteOptions{}))
			require.Equal(t, test.verdict, decision.Verdict, decision.Message)
			require.Equal(t, test.annotated, decision.Annotations["budget"])
		})
	}
}

func TestControllersThatAnAdministratorNames(t *testing.T) {
	const account = "system:serviceaccount:kruise-system:kruise-manager"
	operator := authenticationv1.UserInfo{Username: account, Groups: []string{"system:serviceaccounts"}}
	owned := ownedBy("apps.kruise.io/v1beta1", "StatefulSet")
	named, err := ParseControllers(map[string]string{"StatefulSet.apps.kruise.io": account})
	require.NoError(t, err)
	for name, test := range map[string]struct {
		named   Controllers
		pod     *corev1.Pod
		user    authenticationv1.UserInfo
		verdict admission.Verdict
		hint    bool
	}{
		"named":                              {named, newPod(owned), operator, admission.Allowed, false},
		"named, said to have failed":         {named, newPod(owned, inPhase(corev1.PodFailed)), operator, admission.Refused, false},
		"named for another kind":             {named, newPod(ownedBy("example.com/v1", "StatefulSet")), operator, admission.Refused, true},
		"not named":                          {nil, newPod(owned), operator, admission.Refused, true},
		"not named, by a person":             {nil, newPod(owned), ordinary, admission.Refused, false},
		"by another account":                 {named, newPod(owned), user("generic-garbage-collector"), admission.Refused, false},
		"an operator, a pod of a Deployment": {nil, newPod(ownedBy("apps/v1", "ReplicaSet")), operator, admission.Refused, false},
	} {
		t.Run(name, func(t *testing.T) {
			clock := testclock.NewFakePassiveClock(noon)
			decision := NewRule(newReservations(newServer(allowing("web", 0)), clock), noNodeLost, templates{}.reader(), test.named, DefaultDeletedNodeHold, clock).
				Review(t.Context(), deletion(t, test.pod, test.user, metav1.DeleteOptions{}))
			require.Equal(t, test.verdict, decision.Verdict, decision.Message)
			require.Equal(t, test.hint, strings.Contains(decision.NextStep, "--workload-controllers="), decision.NextStep)
		})
	}
	for name, wrong := range map[string]map[string]string{
		"no group":         {"Widget": account},
		"no user":          {"Widget.example.com": ""},
		"one that is ours": {"StatefulSet.apps": account},
	} {
		_, err := ParseControllers(wrong)
		require.Error(t, err, name)
	}
}

func TestRule(t *testing.T) {
	clock := testclock.NewFakePassiveClock(noon)
	t.Run("a refusal names pod, budget, reason and next step", func(t *testing.T) {
		budget := allowing("web", 0)
		budget.Status.CurrentHealthy, budget.Status.DesiredHealthy = 3, 3
		rule := newRule(newReservations(newServer(budget), clock), clock)
		require.Equal(t, admission.Decision{
			Verdict:     admission.Refused,
			Reason:      admission.ReasonDisruptionBudget,
			Message:     "pod/web-1 in namespace shop is protected, and its deletion is held to poddisruptionbudget web, which needs 3 healthy pods and has 3",
			NextStep:    "Try again once ALLOWED DISRUPTIONS is above 0: kubectl get poddisruptionbudget web -n shop --watch",
			Annotations: map[string]string{"budget": "web: Refuse"},
		}, rule.Review(t.Context(), deletion(t, newPod(), ordinary, metav1.DeleteOptions{})))
	})
	t.Run("a refusal because of several budgets names them", func(t *testing.T) {
		decision := newRule(newReservations(newServer(allowing("a", 1), allowing("b", 1)), clock), clock).
			Review(t.Context(), deletion(t, newPod(), ordinary, metav1.DeleteOptions{}))
		require.Equal(t, admission.ReasonDisruptionBudget, decision.Reason)
		require.Equal(t, "pod/web-1 in namespace shop is protected, and several poddisruptionbudgets select it (a,b), of which Kubernetes keeps only one up to date, so that it can be neither deleted nor evicted", decision.Message)
		require.Equal(t, "Change them so that one selects the pod, or delete the others: kubectl get poddisruptionbudgets -n shop -o wide", decision.NextStep)
	})
	t.Run("what was charged is in the audit log", func(t *testing.T) {
		rule := newRule(newReservations(newServer(allowing("web", 2)), clock), clock)
		require.Equal(t, admission.Allow().Annotate("budget", "web: charged, 1 left"),
			rule.Review(t.Context(), deletion(t, newPod(), ordinary, metav1.DeleteOptions{})))
	})
	t.Run("a dry run is allowed and not charged", func(t *testing.T) {
		s := newServer(allowing("web", 2))
		rule := newRule(newReservations(s, clock), clock)
		require.Equal(t, admission.Allow().Annotate("budget", "web: not charged, dry run"),
			rule.Review(t.Context(), deletion(t, newPod(), ordinary, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})))
		require.Zero(t, s.writes)
	})
	t.Run("the second review of a forced delete sees a terminating pod", func(t *testing.T) {
		s := newServer(allowing("web", 0))
		rule := newRule(newReservations(s, clock), clock)
		require.Equal(t, admission.Allow().Annotate("budget", "Terminating"),
			rule.Review(t.Context(), deletion(t, newPod(deletedAt(noon)), ordinary, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})))
		require.Zero(t, s.reads)
	})
	t.Run("without an answer of the API server it fails", func(t *testing.T) {
		s := newServer(allowing("web", 2))
		s.failWrite = func(*policyv1.PodDisruptionBudget) error { return errors.New("etcd is away") }
		decision := newRule(newReservations(s, clock), clock).Review(t.Context(), deletion(t, newPod(), ordinary, metav1.DeleteOptions{}))
		require.Equal(t, admission.Failed, decision.Verdict)
		require.ErrorContains(t, decision.Err, "etcd is away")
	})
}
