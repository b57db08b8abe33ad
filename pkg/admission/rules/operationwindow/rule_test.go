package operationwindow

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// reader returns the client of an API server that has the objects, or that fails.
func reader(t *testing.T, failure error, objects ...client.Object) client.Reader {
	t.Helper()
	known := runtime.NewScheme()
	require.NoError(t, guardv1alpha1.AddToScheme(known))
	require.NoError(t, appsv1.AddToScheme(known))
	builder := fake.NewClientBuilder().WithScheme(known).WithObjects(objects...)
	if failure != nil {
		builder.WithInterceptorFuncs(interceptor.Funcs{
			Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
				return failure
			},
			List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error { return failure },
		})
	}
	return builder.Build()
}

// stored is the workload at the API server.
type stored struct {
	workload client.Object
	err      error
}

func (s stored) reader(t *testing.T) client.Reader {
	if s.workload == nil {
		return reader(t, s.err)
	}
	return reader(t, s.err, s.workload)
}

// review is that of a change of web.
func review(t *testing.T, operation admissionv1.Operation, resource, subresource, before, after string) admissionv1.AdmissionRequest {
	review := admissiontest.Review(t, operation, appsv1.SchemeGroupVersion.WithKind("Deployment"), resource, before, after)
	review.Namespace, review.Name, review.SubResource = "shop", "web", subresource
	return review
}

func TestRuleReview(t *testing.T) {
	nightly := guardv1alpha1.OperationWindow{ObjectMeta: metav1.ObjectMeta{Name: "nightly", Namespace: "shop"}, Spec: guardv1alpha1.OperationWindowSpec{
		TimeZone:  "Europe/Berlin",
		Weekly:    []guardv1alpha1.WeeklyWindow{weekly("22:00", "06:00", everyDay...)},
		Inside:    fields(guardv1alpha1.AllFields),
		Workloads: guardv1alpha1.WorkloadSelector{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "web"}}},
	}}
	const (
		one   = "{metadata: {labels: {tier: web}}, spec: {replicas: 1}}"
		two   = "{metadata: {labels: {tier: web}}, spec: {replicas: 2}}"
		bare  = "{metadata: {}, spec: {replicas: 2}}"
		owned = "{metadata: {labels: {tier: web}, ownerReferences: [{apiVersion: v1, kind: ConfigMap, name: x, controller: true}]}, spec: {replicas: 1}}"
		ofWeb = "{metadata: {labels: {tier: web}, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, controller: true}]}, spec: {replicas: 1}}"
	)
	for name, test := range map[string]struct {
		resource, subresource string
		operation             admissionv1.Operation
		before, after         string
		failure               error // of the list of windows
		workload              stored
		now                   string
		want                  admission.Verdict
	}{
		"closed":                         {"deployments", "", admissionv1.Update, one, two, nil, stored{}, "2026-11-25T12:00:00Z", admission.Refused},
		"open":                           {"deployments", "", admissionv1.Update, one, two, nil, stored{}, "2026-11-25T22:00:00Z", admission.Allowed},
		"the label goes with the change": {"deployments", "", admissionv1.Update, one, bare, nil, stored{}, "2026-11-25T12:00:00Z", admission.Refused},
		"no change of the spec":          {"deployments", "", admissionv1.Update, two, bare, nil, stored{}, "2026-11-25T12:00:00Z", admission.Allowed},
		"another workload":               {"deployments", "", admissionv1.Update, bare, one, nil, stored{}, "2026-11-25T12:00:00Z", admission.Allowed},
		"with an owner":                  {"deployments", "", admissionv1.Update, owned, two, nil, stored{}, "2026-11-25T12:00:00Z", admission.Refused},
		"of an operator":                 {"statefulsets", "", admissionv1.Update, owned, two, nil, stored{}, "2026-11-25T12:00:00Z", admission.Refused},
		"a ReplicaSet, by someone":       {"replicasets", "", admissionv1.Update, ofWeb, two, nil, stored{}, "2026-11-25T12:00:00Z", admission.Refused},
		"status":                         {"deployments", "status", admissionv1.Update, one, two, nil, stored{}, "2026-11-25T12:00:00Z", admission.Allowed},
		"a creation":                     {"deployments", "", admissionv1.Create, one, two, nil, stored{}, "2026-11-25T12:00:00Z", admission.Allowed},
		"scale": {"deployments", "scale", admissionv1.Update, "{spec: {replicas: 1}}", "{spec: {replicas: 2}}", nil,
			stored{workload: &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{"tier": "web"}}}}, "2026-11-25T12:00:00Z", admission.Refused},
		"scale of another": {"deployments", "scale", admissionv1.Update, "{spec: {replicas: 1}}", "{spec: {replicas: 2}}", nil,
			stored{workload: &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}}, "2026-11-25T12:00:00Z", admission.Allowed},
		"scale of a workload with an owner": {"statefulsets", "scale", admissionv1.Update, "{spec: {replicas: 1}}", "{spec: {replicas: 2}}", nil,
			stored{workload: &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{"tier": "web"}, OwnerReferences: []metav1.OwnerReference{{Controller: new(true)}}}}}, "2026-11-25T12:00:00Z", admission.Refused},
		"scale without an answer": {"deployments", "scale", admissionv1.Update, "{spec: {replicas: 1}}", "{spec: {replicas: 2}}", nil,
			stored{err: errors.New("no answer")}, "2026-11-25T12:00:00Z", admission.Failed},
		"windows without an answer": {"deployments", "", admissionv1.Update, one, two, errors.New("no answer"), stored{}, "2026-11-25T12:00:00Z", admission.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			rule := NewRule(reader(t, test.failure, nightly.DeepCopy()), test.workload.reader(t), clocktesting.NewFakePassiveClock(at(t, test.now)))
			decision := rule.Review(t.Context(), admission.NewRequest(review(t, test.operation, test.resource, test.subresource, test.before, test.after)))
			require.Equal(t, test.want, decision.Verdict, "%+v", decision)
			if test.want == admission.Refused {
				require.Equal(t, admission.ReasonWindowClosed, decision.Reason)
				require.Contains(t, decision.Message, "spec.replicas")
				require.Contains(t, decision.NextStep, "kubectl get operationwindows -n shop")
			}
		})
	}
}

func TestReplicaSetsFollowTheirDeployment(t *testing.T) {
	request := review(t, admissionv1.Update, "replicasets", "",
		"{metadata: {ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, controller: true}]}, spec: {replicas: 1}}", "{metadata: {}, spec: {replicas: 2}}")
	request.UserInfo.Username = "system:serviceaccount:kube-system:deployment-controller"
	rule := NewRule(reader(t, errors.New("must not be read")), reader(t, nil), clocktesting.NewFakePassiveClock(at(t, "2026-11-25T12:00:00Z")))
	require.Equal(t, admission.Allow(), rule.Review(t.Context(), admission.NewRequest(request)))
}

func TestStatus(t *testing.T) {
	now := at(t, "2026-11-25T12:00:00Z")
	enforced := map[string]string{guardv1alpha1.OperationWindowsLabel: guardv1alpha1.OperationWindowsEnforced}
	night := []guardv1alpha1.WeeklyWindow{weekly("22:00", "06:00", everyDay...)}
	day := []guardv1alpha1.WeeklyWindow{weekly("09:00", "17:00", everyDay...)}
	until := func(text string) *metav1.Time { at := metav1.NewTime(at(t, text)); return &at }
	for name, test := range map[string]struct {
		namespace string
		labels    map[string]string
		mode      admission.Mode
		zone      string
		weekly    []guardv1alpha1.WeeklyWindow
		want      guardv1alpha1.OperationWindowStatus
		reasons   []string
	}{
		"closed until the evening": {"shop", enforced, admission.Enforce, "Europe/Berlin", night,
			guardv1alpha1.OperationWindowStatus{State: "Closed", Until: until("2026-11-25T21:00:00Z")}, []string{"Valid=True Valid", "Effective=True Enforced"}},
		"open until the evening": {"shop", enforced, admission.Enforce, "Europe/Berlin", day,
			guardv1alpha1.OperationWindowStatus{State: "Open", Until: until("2026-11-25T16:00:00Z")}, []string{"Valid=True Valid", "Effective=True Enforced"}},
		"in a namespace without the label": {"shop", nil, admission.Enforce, "Europe/Berlin", day,
			guardv1alpha1.OperationWindowStatus{State: "Open", Until: until("2026-11-25T16:00:00Z")}, []string{"Valid=True Valid", "Effective=False NamespaceNotEnforced"}},
		"in kube-system": {"kube-system", enforced, admission.Enforce, "Europe/Berlin", day,
			guardv1alpha1.OperationWindowStatus{State: "Open", Until: until("2026-11-25T16:00:00Z")}, []string{"Valid=True Valid", "Effective=True Enforced"}},
		"in the webhook's own namespace": {"kubelet-guard-system", enforced, admission.Enforce, "Europe/Berlin", day,
			guardv1alpha1.OperationWindowStatus{State: "Open", Until: until("2026-11-25T16:00:00Z")}, []string{"Valid=True Valid", "Effective=False SystemNamespace"}},
		"in audit mode": {"shop", enforced, admission.Audit, "Europe/Berlin", day,
			guardv1alpha1.OperationWindowStatus{State: "Open", Until: until("2026-11-25T16:00:00Z")}, []string{"Valid=True Valid", "Effective=False AuditMode"}},
		"not valid": {"shop", enforced, admission.Enforce, "Mars/Olympus", day,
			guardv1alpha1.OperationWindowStatus{State: "Closed"}, []string{"Valid=False Invalid", "Effective=True Enforced"}},
	} {
		t.Run(name, func(t *testing.T) {
			window := &guardv1alpha1.OperationWindow{
				ObjectMeta: metav1.ObjectMeta{Name: "w", Namespace: test.namespace, Generation: 4},
				Spec:       guardv1alpha1.OperationWindowSpec{TimeZone: test.zone, Weekly: test.weekly},
			}
			got := Status(window, test.labels, test.mode, now)
			test.want.ObservedGeneration = 4
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(guardv1alpha1.OperationWindowStatus{}, "Conditions")); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			var reasons []string
			for _, condition := range got.Conditions {
				reasons = append(reasons, condition.Type+"="+string(condition.Status)+" "+condition.Reason)
			}
			require.Equal(t, test.reasons, reasons)
			window.Status = got
			require.Equal(t, got, Status(window, test.labels, test.mode, now.Add(time.Minute)), "the status must not change when nothing has")
		})
	}
}
