package admission

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	clocktesting "k8s.io/utils/clock/testing"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"kubelet-guard.io/pkg/admission/admissiontest"
)

var now = time.Date(2026, 5, 4, 10, 0, 0, 0, time.UTC)

// fixedRule returns the same decision for every request.
func fixedRule(name RuleName, decision Decision) Rule {
	return Rule{Name: name, Review: func(context.Context, *Request) Decision { return decision }}
}

// accessTable allows what it holds: user, verb, resource, namespace/name.
type accessTable struct {
	authorizationclient.SubjectAccessReviewInterface
	allowed  map[string]bool
	err      error
	reviewed []string
}

func (a *accessTable) Create(_ context.Context, review *authorizationv1.SubjectAccessReview, _ metav1.CreateOptions) (*authorizationv1.SubjectAccessReview, error) {
	attributes := review.Spec.ResourceAttributes
	question := strings.Join([]string{review.Spec.User, attributes.Verb, attributes.Group, attributes.Resource, attributes.Namespace + "/" + attributes.Name}, " ")
	a.reviewed = append(a.reviewed, question)
	review.Status.Allowed = a.allowed[question]
	return review, a.err
}

func deleteReview(t *testing.T, annotations map[string]string) webhook.Request {
	t.Helper()
	review := admissiontest.Review(t, admissionv1.Delete, schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}, "configmaps",
		&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: annotations}}, nil)
	review.UserInfo.Username = "ann"
	// The review of an item of a DELETECOLLECTION has no name.
	review.Name = ""
	return webhook.Request{AdmissionRequest: review}
}

func TestHandle(t *testing.T) {
	const (
		advice   = ". In an emergency, users who may use the verb override on it can override this: kubectl annotate configmap/web -n shop --overwrite kubelet-guard.io/override='2026-05-04T10:15:00Z <reason>'"
		question = "ann override  configmaps shop/web"
		valid    = "2026-05-04T10:15:00Z wrong cluster"

		protected   = "configmap/web is protected. Take the label off"
		undecided   = "the rule CascadingDeletion cannot be decided for configmap/web in namespace shop: list pods: timeout"
		doesNot     = protected + ". The annotation kubelet-guard.io/override does not count: "
		overridden  = "the rule CascadingDeletion was overridden until 2026-05-04T10:15:00Z: wrong cluster"
		mayNot      = doesNot + "user \"ann\" may not use the verb override on configmap/web in namespace shop; a role with it is needed, and kubectl auth can-i override configmap/web -n shop checks it"
		expired     = doesNot + "it expired at 2026-05-04T09:59:00Z, and it is 2026-05-04T10:00:00Z now"
		unknown     = "the rule CascadingDeletion returned the unknown verdict \"\"; this is a defect of the webhook"
		auditRefuse = "Enforce Refused DeletionProtected: "
	)
	refusal := Refuse(ReasonDeletionProtected, "configmap/web is protected", "Take the label off")
	response := func(code int32, reason metav1.StatusReason, cause metav1.CauseType, message, audit string) admissionv1.AdmissionResponse {
		return admissionv1.AdmissionResponse{
			Result: &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message,
				Details: &metav1.StatusDetails{Name: "web", Kind: "configmaps", Causes: []metav1.StatusCause{{Type: cause, Message: message}}}},
			AuditAnnotations: map[string]string{"CascadingDeletion": audit + message},
		}
	}
	refused := func(message string) admissionv1.AdmissionResponse {
		return response(http.StatusForbidden, metav1.StatusReasonForbidden, "DeletionProtected", message, auditRefuse)
	}
	failed := func(message string) admissionv1.AdmissionResponse {
		return response(http.StatusInternalServerError, metav1.StatusReasonInternalError, "Failed", message, "Enforce Failed: ")
	}
	passed := func(warnings []string, audit map[string]string) admissionv1.AdmissionResponse {
		success := &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusOK}
		return admissionv1.AdmissionResponse{Allowed: true, Result: success, Warnings: warnings, AuditAnnotations: audit}
	}
	byOverride := func(audit string) admissionv1.AdmissionResponse {
		return passed([]string{overridden}, map[string]string{"CascadingDeletion": "Enforce Overridden" + audit, "override": valid + " by ann"})
	}

	tests := []struct {
		name     string
		decision Decision
		mode     Mode
		policy   FailurePolicy
		override string
		access   accessTable
		want     admissionv1.AdmissionResponse
		verdict  Verdict
		// overrides judged as Allowed and as Refused
		accepted, rejected float64
	}{
		{name: "an allowed request passes, and its override is not judged", decision: Allow().Annotate("budget", "web"), override: valid,
			want: passed(nil, map[string]string{"budget": "web"}), verdict: Allowed},
		{name: "a refusal says what, why, the next step and how to override", decision: refusal, want: refused(protected + advice), verdict: Refused},
		{name: "audit mode warns and lets a refused request pass", decision: refusal, mode: Audit,
			want: passed([]string{protected + advice + " (the rule CascadingDeletion is in audit mode, so the request was let through)"},
				map[string]string{"CascadingDeletion": "Audit Refused DeletionProtected: " + protected + advice}), verdict: Refused},
		{name: "a valid override by a user with the permission lets a refused request pass", decision: refusal, override: valid,
			access: accessTable{allowed: map[string]bool{question: true}}, want: byOverride(" DeletionProtected: " + protected), verdict: Overridden, accepted: 1},
		{name: "an override by a user without the permission does not count", decision: refusal, override: valid, want: refused(mayNot), verdict: Refused, rejected: 1},
		{name: "an expired override does not count, and the permission is not checked", decision: refusal, override: "2026-05-04T09:59:00Z wrong cluster",
			access: accessTable{err: errors.New("must not be read")}, want: refused(expired), verdict: Refused, rejected: 1},
		{name: "a rule that cannot decide refuses where the entry fails closed", decision: Fail("list pods: %w", errors.New("timeout")), want: failed(undecided), verdict: Failed},
		{name: "a rule that cannot decide lets pass where the entry fails open", decision: Fail("list pods: timeout"), policy: FailOpen,
			want: passed([]string{undecided + "; the request was let through"}, map[string]string{"CascadingDeletion": "Enforce Failed: " + undecided}), verdict: Failed},
		{name: "an override also counts when the rule cannot decide", decision: Fail("list pods: timeout"), override: valid,
			access: accessTable{allowed: map[string]bool{question: true}}, want: byOverride(": " + undecided), verdict: Overridden, accepted: 1},
		{name: "the zero decision is a defect and refuses", want: failed(unknown), verdict: Failed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			modes := Modes{Default: Enforce}
			if test.mode != "" {
				modes.ByRule = map[RuleName]Mode{CascadingDeletion: test.mode}
			}
			metrics, err := NewMetrics(prometheus.NewRegistry(), modes)
			require.NoError(t, err)
			policy := test.policy
			if policy == "" {
				policy = FailClosed
			}
			handler, err := NewHandler(
				Entry{Path: "/x", FailurePolicy: policy, Rules: []Rule{fixedRule(CascadingDeletion, test.decision)}},
				modes, Overrides{Reviews: &test.access, Limit: DefaultOverrideLimit}, metrics, clocktesting.NewFakePassiveClock(now))
			require.NoError(t, err)

			annotations := map[string]string{}
			if test.override != "" {
				annotations["kubelet-guard.io/override"] = test.override
			}
			got := handler.Handle(t.Context(), deleteReview(t, annotations))

			require.Equal(t, webhook.Response{AdmissionResponse: test.want}, got)
			count := func(rule RuleName, verdict Verdict) float64 {
				return testutil.ToFloat64(metrics.decisions.WithLabelValues(string(rule), string(verdict), string(modes.Of(rule)), "DELETE"))
			}
			require.Equal(t, 1.0, count(CascadingDeletion, test.verdict))
			require.Equal(t, test.accepted, count(Override, Allowed))
			require.Equal(t, test.rejected, count(Override, Refused))
		})
	}
}

func TestHandleSeveralRules(t *testing.T) {
	refuse := func(message string) Decision { return Refuse(ReasonDeletionProtected, message, "") }
	handle := func(t *testing.T, modes Modes, access *accessTable, annotations map[string]string, rules ...Rule) webhook.Response {
		metrics, err := NewMetrics(prometheus.NewRegistry(), modes)
		require.NoError(t, err)
		handler, err := NewHandler(Entry{Path: "/x", FailurePolicy: FailClosed, Rules: rules}, modes, Overrides{Reviews: access, Limit: time.Hour}, metrics, clocktesting.NewFakePassiveClock(now))
		require.NoError(t, err)
		return handler.Handle(t.Context(), deleteReview(t, annotations))
	}

	t.Run("the first refusal ends the review", func(t *testing.T) {
		got := handle(t, Modes{Default: Enforce}, &accessTable{}, nil, fixedRule(CascadingDeletion, refuse("first")), fixedRule(Replicas, refuse("second")))
		require.False(t, got.Allowed)
		require.Contains(t, got.Result.Message, "first")
		require.NotContains(t, got.AuditAnnotations, "Replicas")
	})
	t.Run("a rule in audit mode does not hide a later one that is enforced", func(t *testing.T) {
		got := handle(t, Modes{Default: Enforce, ByRule: map[RuleName]Mode{CascadingDeletion: Audit}}, &accessTable{}, nil,
			fixedRule(CascadingDeletion, refuse("first")), fixedRule(Replicas, refuse("second")))
		require.False(t, got.Allowed)
		require.Contains(t, got.Result.Message, "second")
		require.Contains(t, got.AuditAnnotations, "CascadingDeletion")
	})
	t.Run("one override counts for all rules and the permission is checked once", func(t *testing.T) {
		access := &accessTable{allowed: map[string]bool{"ann override  configmaps shop/web": true}}
		got := handle(t, Modes{Default: Enforce}, access, map[string]string{"kubelet-guard.io/override": "2026-05-04T10:15:00Z x"},
			fixedRule(CascadingDeletion, refuse("first")), fixedRule(Replicas, refuse("second")))
		require.True(t, got.Allowed)
		require.Len(t, access.reviewed, 1)
	})
}

func TestOverrideOfANamespaceIsAskedInIt(t *testing.T) {
	access := &accessTable{}
	overrides := Overrides{Reviews: access, Limit: time.Hour}
	review := deleteReview(t, map[string]string{"kubelet-guard.io/override": "2026-05-04T10:15:00Z x"})
	review.Resource.Resource, review.Namespace = "namespaces", "web"
	_, err := overrides.judge(t.Context(), NewRequest(review.AdmissionRequest), now)
	require.ErrorContains(t, err, `user "ann" may not use the verb override`)
	require.Equal(t, []string{"ann override  namespaces web/web"}, access.reviewed)
}

func TestNewHandler(t *testing.T) {
	for name, test := range map[string]struct {
		entry Entry
		want  string
	}{
		"without a failure policy": {Entry{Path: "/x", Rules: []Rule{fixedRule(Replicas, Allow())}}, `webhook entry /x: failurePolicy "" is neither Fail nor Ignore`},
		"without rules":            {Entry{Path: "/x", FailurePolicy: FailOpen}, "webhook entry /x has no rules"},
		"with an unknown rule":     {Entry{Path: "/x", FailurePolicy: FailOpen, Rules: []Rule{fixedRule("Other", Allow())}}, `webhook entry /x: unknown rule "Other"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewHandler(test.entry, Modes{}, Overrides{}, nil, nil)
			require.EqualError(t, err, test.want)
		})
	}
}

func TestMetricsExistFromTheStart(t *testing.T) {
	registry := prometheus.NewRegistry()
	_, err := NewMetrics(registry, Modes{Default: Audit})
	require.NoError(t, err)
	count, err := testutil.GatherAndCount(registry, DecisionsMetric)
	require.NoError(t, err)
	require.Equal(t, len(RuleNames())*len(Verdicts())*(len(operations())+1), count)
	count, err = testutil.GatherAndCount(registry, DecisionDurationMetric)
	require.NoError(t, err)
	require.Equal(t, len(RuleNames()), count)
}

// The operation of a review is what its sender says.
func TestOperationsThatNoEntryHasAreOneSeries(t *testing.T) {
	registry := prometheus.NewRegistry()
	m, err := NewMetrics(registry, Modes{Default: Enforce})
	require.NoError(t, err)
	before, err := registry.Gather()
	require.NoError(t, err)
	for _, operation := range []admissionv1.Operation{"EVIL1", "EVIL2", ""} {
		m.observe(PodDeletion, Allowed, Enforce, operation, 0)
	}
	after, err := registry.Gather()
	require.NoError(t, err)
	for i, family := range after {
		require.Len(t, family.GetMetric(), len(before[i].GetMetric()), family.GetName())
	}
}
