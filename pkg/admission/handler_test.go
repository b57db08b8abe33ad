package admission

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clocktesting "k8s.io/utils/clock/testing"
	webhook "sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

var now = time.Date(2026, 5, 4, 10, 0, 0, 0, time.UTC)

// fixedRule returns the same decision for every request.
type fixedRule struct {
	name     RuleName
	decision Decision
}

func (r fixedRule) Name() RuleName                            { return r.name }
func (r fixedRule) Review(context.Context, *Request) Decision { return r.decision }

// accessTable allows what it holds: user, verb, resource, namespace/name.
type accessTable struct {
	allowed  map[string]bool
	err      error
	reviewed []string
}

func (a *accessTable) MayAccess(_ context.Context, user authenticationv1.UserInfo, attributes authorizationv1.ResourceAttributes) (bool, error) {
	question := strings.Join([]string{user.Username, attributes.Verb, attributes.Group, attributes.Resource, attributes.Namespace + "/" + attributes.Name}, " ")
	a.reviewed = append(a.reviewed, question)
	return a.allowed[question], a.err
}

func deleteReview(t *testing.T, annotations map[string]string) webhook.Request {
	t.Helper()
	raw, err := json.Marshal(&metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: annotations},
	})
	require.NoError(t, err)
	return webhook.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "ConfigMap"},
		Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "configmaps"},
		Namespace: "shop",
		Operation: admissionv1.Delete,
		UserInfo:  authenticationv1.UserInfo{Username: "ann"},
		OldObject: runtime.RawExtension{Raw: raw},
	}}
}

func TestHandle(t *testing.T) {
	const (
		advice   = ". In an emergency, users who may use the verb override on it can override this: kubectl annotate configmap/web -n shop --overwrite kubelet-guard.io/override='2026-05-04T10:15:00Z <reason>'"
		question = "ann override  configmaps shop/web"
		valid    = "2026-05-04T10:15:00Z wrong cluster"
	)
	refusal := Refuse(ReasonDeletionProtected, "configmap/web is protected", "Take the label off")
	forbidden := func(message string) *metav1.Status {
		return &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: message,
			Details: &metav1.StatusDetails{Name: "web", Kind: "configmaps", Causes: []metav1.StatusCause{{Type: "DeletionProtected", Message: message}}},
		}
	}
	success := &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusOK}

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
		{
			name:     "an allowed request passes, and its override is not judged",
			decision: Allow().Annotate("budget", "web"),
			override: valid,
			want:     admissionv1.AdmissionResponse{Allowed: true, Result: success, AuditAnnotations: map[string]string{"budget": "web"}},
			verdict:  Allowed,
		},
		{
			name:     "a refusal says what, why, the next step and how to override",
			decision: refusal,
			want: admissionv1.AdmissionResponse{
				Result:           forbidden("configmap/web is protected. Take the label off" + advice),
				AuditAnnotations: map[string]string{"CascadingDeletion": "Enforce Refused DeletionProtected: configmap/web is protected. Take the label off" + advice},
			},
			verdict: Refused,
		},
		{
			name:     "audit mode warns and lets a refused request pass",
			decision: refusal,
			mode:     Audit,
			want: admissionv1.AdmissionResponse{
				Allowed:          true,
				Result:           success,
				Warnings:         []string{"configmap/web is protected. Take the label off" + advice + " (the rule CascadingDeletion is in audit mode, so the request was let through)"},
				AuditAnnotations: map[string]string{"CascadingDeletion": "Audit Refused DeletionProtected: configmap/web is protected. Take the label off" + advice},
			},
			verdict: Refused,
		},
		{
			name:     "a valid override by a user with the permission lets a refused request pass",
			decision: refusal,
			override: valid,
			access:   accessTable{allowed: map[string]bool{question: true}},
			want: admissionv1.AdmissionResponse{
				Allowed:  true,
				Result:   success,
				Warnings: []string{"the rule CascadingDeletion was overridden until 2026-05-04T10:15:00Z: wrong cluster"},
				AuditAnnotations: map[string]string{
					"CascadingDeletion": "Enforce Overridden DeletionProtected: configmap/web is protected. Take the label off",
					"override":          "2026-05-04T10:15:00Z wrong cluster by ann",
				},
			},
			verdict:  Overridden,
			accepted: 1,
		},
		{
			name:     "an override by a user without the permission does not count",
			decision: refusal,
			override: valid,
			want: admissionv1.AdmissionResponse{
				Result:           forbidden("configmap/web is protected. Take the label off. The annotation kubelet-guard.io/override does not count: user \"ann\" may not use the verb override on configmap/web in namespace shop; a role with it is needed, and kubectl auth can-i override configmap/web -n shop checks it"),
				AuditAnnotations: map[string]string{"CascadingDeletion": "Enforce Refused DeletionProtected: configmap/web is protected. Take the label off. The annotation kubelet-guard.io/override does not count: user \"ann\" may not use the verb override on configmap/web in namespace shop; a role with it is needed, and kubectl auth can-i override configmap/web -n shop checks it"},
			},
			verdict:  Refused,
			rejected: 1,
		},
		{
			name:     "an expired override does not count, and the permission is not checked",
			decision: refusal,
			override: "2026-05-04T09:59:00Z wrong cluster",
			access:   accessTable{err: errors.New("must not be read")},
			want: admissionv1.AdmissionResponse{
				Result:           forbidden("configmap/web is protected. Take the label off. The annotation kubelet-guard.io/override does not count: it expired at 2026-05-04T09:59:00Z, and it is 2026-05-04T10:00:00Z now"),
				AuditAnnotations: map[string]string{"CascadingDeletion": "Enforce Refused DeletionProtected: configmap/web is protected. Take the label off. The annotation kubelet-guard.io/override does not count: it expired at 2026-05-04T09:59:00Z, and it is 2026-05-04T10:00:00Z now"},
			},
			verdict:  Refused,
			rejected: 1,
		},
		{
			name:     "a rule that cannot decide refuses where the entry fails closed",
			decision: Fail("list pods: %w", errors.New("timeout")),
			want: admissionv1.AdmissionResponse{
				Result: &metav1.Status{
					Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
					Message: "the rule CascadingDeletion cannot be decided for configmap/web in namespace shop: list pods: timeout",
					Details: &metav1.StatusDetails{Name: "web", Kind: "configmaps", Causes: []metav1.StatusCause{{Type: "Failed", Message: "the rule CascadingDeletion cannot be decided for configmap/web in namespace shop: list pods: timeout"}}},
				},
				AuditAnnotations: map[string]string{"CascadingDeletion": "Enforce Failed: the rule CascadingDeletion cannot be decided for configmap/web in namespace shop: list pods: timeout"},
			},
			verdict: Failed,
		},
		{
			name:     "a rule that cannot decide lets pass where the entry fails open",
			decision: Fail("list pods: timeout"),
			policy:   FailOpen,
			want: admissionv1.AdmissionResponse{
				Allowed:          true,
				Result:           success,
				Warnings:         []string{"the rule CascadingDeletion cannot be decided for configmap/web in namespace shop: list pods: timeout; the request was let through"},
				AuditAnnotations: map[string]string{"CascadingDeletion": "Enforce Failed: the rule CascadingDeletion cannot be decided for configmap/web in namespace shop: list pods: timeout"},
			},
			verdict: Failed,
		},
		{
			name:     "an override also counts when the rule cannot decide",
			decision: Fail("list pods: timeout"),
			override: valid,
			access:   accessTable{allowed: map[string]bool{question: true}},
			want: admissionv1.AdmissionResponse{
				Allowed:  true,
				Result:   success,
				Warnings: []string{"the rule CascadingDeletion was overridden until 2026-05-04T10:15:00Z: wrong cluster"},
				AuditAnnotations: map[string]string{
					"CascadingDeletion": "Enforce Overridden: the rule CascadingDeletion cannot be decided for configmap/web in namespace shop: list pods: timeout",
					"override":          "2026-05-04T10:15:00Z wrong cluster by ann",
				},
			},
			verdict:  Overridden,
			accepted: 1,
		},
		{
			name: "the zero decision is a defect and refuses",
			want: admissionv1.AdmissionResponse{
				Result: &metav1.Status{
					Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
					Message: "the rule CascadingDeletion returned the unknown verdict \"\"; this is a defect of the webhook",
					Details: &metav1.StatusDetails{Name: "web", Kind: "configmaps", Causes: []metav1.StatusCause{{Type: "Failed", Message: "the rule CascadingDeletion returned the unknown verdict \"\"; this is a defect of the webhook"}}},
				},
				AuditAnnotations: map[string]string{"CascadingDeletion": "Enforce Failed: the rule CascadingDeletion returned the unknown verdict \"\"; this is a defect of the webhook"},
			},
			verdict: Failed,
		},
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
				Entry{Path: "/x", FailurePolicy: policy, Rules: []Rule{fixedRule{CascadingDeletion, test.decision}}},
				modes, Overrides{Access: &test.access, Limit: DefaultOverrideLimit}, metrics, clocktesting.NewFakePassiveClock(now))
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
		handler, err := NewHandler(Entry{Path: "/x", FailurePolicy: FailClosed, Rules: rules}, modes, Overrides{Access: access, Limit: time.Hour}, metrics, clocktesting.NewFakePassiveClock(now))
		require.NoError(t, err)
		return handler.Handle(t.Context(), deleteReview(t, annotations))
	}

	t.Run("the first refusal ends the review", func(t *testing.T) {
		got := handle(t, Modes{Default: Enforce}, &accessTable{}, nil, fixedRule{CascadingDeletion, refuse("first")}, fixedRule{Replicas, refuse("second")})
		require.False(t, got.Allowed)
		require.Contains(t, got.Result.Message, "first")
		require.NotContains(t, got.AuditAnnotations, "Replicas")
	})
	t.Run("a rule in audit mode does not hide a later one that is enforced", func(t *testing.T) {
		got := handle(t, Modes{Default: Enforce, ByRule: map[RuleName]Mode{CascadingDeletion: Audit}}, &accessTable{}, nil,
			fixedRule{CascadingDeletion, refuse("first")}, fixedRule{Replicas, refuse("second")})
		require.False(t, got.Allowed)
		require.Contains(t, got.Result.Message, "second")
		require.Contains(t, got.AuditAnnotations, "CascadingDeletion")
	})
	t.Run("one override counts for all rules and the permission is checked once", func(t *testing.T) {
		access := &accessTable{allowed: map[string]bool{"ann override  configmaps shop/web": true}}
		got := handle(t, Modes{Default: Enforce}, access, map[string]string{"kubelet-guard.io/override": "2026-05-04T10:15:00Z x"},
			fixedRule{CascadingDeletion, refuse("first")}, fixedRule{Replicas, refuse("second")})
		require.True(t, got.Allowed)
		require.Len(t, access.reviewed, 1)
	})
}

func TestOverrideOfANamespaceIsAskedInIt(t *testing.T) {
	access := &accessTable{}
	overrides := Overrides{Access: access, Limit: time.Hour}
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
		"without a failure policy": {Entry{Path: "/x", Rules: []Rule{fixedRule{name: Replicas}}}, `webhook entry /x: failurePolicy "" is neither Fail nor Ignore`},
		"without rules":            {Entry{Path: "/x", FailurePolicy: FailOpen}, "webhook entry /x has no rules"},
		"with an unknown rule":     {Entry{Path: "/x", FailurePolicy: FailOpen, Rules: []Rule{fixedRule{name: "Other"}}}, `webhook entry /x: unknown rule "Other"`},
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
