package protection

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
)

// namespaceShop returns the client of an API server that has the namespace with this grant, or that
// fails.
func namespaceShop(grant string, failure error) client.Reader {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"kubelet-guard.io/protect-pods": grant}}}
	return fake.NewClientBuilder().WithObjects(namespace).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, next client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if failure != nil {
				return failure
			}
			return next.Get(ctx, key, object, options...)
		},
	}).Build()
}

// podsOf returns the client of an API server with so many protected pods.
func podsOf(t *testing.T, count int, more bool) metadata.Interface {
	pods := make([]metav1.PartialObjectMetadata, count)
	for i := range pods {
		pods[i].Name, pods[i].Labels = fmt.Sprint("db-", i), admission.ProtectedPods
	}
	return admissiontest.Pods(t, nil, more, pods...)
}

// review is that of an update, or of a deletion when there is no new object.
func review(t *testing.T, rule Rule, resource, subresource, kind, old string, object any) admission.Decision {
	t.Helper()
	operation := admissionv1.Update
	if object == nil {
		operation = admissionv1.Delete
	}
	review := admissiontest.Review(t, operation, corev1.SchemeGroupVersion.WithKind(kind), resource, old, object)
	review.SubResource = subresource
	return rule.Review(t.Context(), admission.NewRequest(review))
}

func TestReviewPod(t *testing.T) {
	pod := func(metadata, spec, status string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: db-0, " + metadata + "}, spec: {" + spec + "}, status: {" + status + "}}"
	}
	const label = "labels: {kubelet-guard.io/explicit-deletion: required}"
	keeps := func(why string) admission.Decision {
		return admission.Refuse(admission.ReasonProtectionRemoved,
			"pod/db-0 in namespace shop keeps the label kubelet-guard.io/explicit-deletion: "+why,
			"Delete the pod if it is to end. To take the label off all the same: kubectl guard unprotect pod/db-0 -n shop --override '<reason>'")
	}
	refused := keeps("without it, its node may stop it for any reason of its own")
	const running = "containerStatuses: [{name: c, state: {terminated: {exitCode: 0}}}, {name: d, state: {running: {}}}]"
	tests := []struct {
		name, old, new string
		want           admission.Decision
	}{
		{"the label goes from a running pod", pod(label, "nodeName: node-1", "phase: Running"), pod("", "nodeName: node-1", "phase: Running"), refused},
		{"the label gets another value", pod(label, "nodeName: node-1", "phase: Running"), pod("labels: {kubelet-guard.io/explicit-deletion: wanted}", "nodeName: node-1", ""), refused},
		{"the label stays", pod(label, "nodeName: node-1", "phase: Running"), pod(label, "nodeName: node-1", "phase: Running"), admission.Allow()},
		{"the pod was never protected", pod("", "nodeName: node-1", ""), pod(label, "nodeName: node-1", ""), admission.Allow()},
		{"the pod is on no node", pod(label, "", "phase: Pending"), pod("", "", "phase: Pending"), admission.Allow()},
		{"the pod has finished", pod(label, "nodeName: node-1", "phase: Succeeded"), pod("", "nodeName: node-1", "phase: Succeeded"), admission.Allow()},
		{"it has failed, as someone says, and its containers run", pod(label, "nodeName: node-1", "phase: Failed, "+running), pod("", "nodeName: node-1", "phase: Failed"), refused},
		{"it has succeeded, as someone says, and an init container runs", pod(label, "nodeName: node-1", "phase: Succeeded, "+strings.ReplaceAll(running, "containerS", "initContainerS")), pod("", "nodeName: node-1", ""), refused},
		{"it has failed, and its containers with it", pod(label, "nodeName: node-1", "phase: Failed, containerStatuses: [{name: c, state: {terminated: {exitCode: 1}}}]"), pod("", "nodeName: node-1", ""), admission.Allow()},
		{"the pod is being deleted", pod(label+`, deletionTimestamp: "2026-05-04T10:00:00Z"`, "nodeName: node-1", "phase: Running"), pod("", "nodeName: node-1", ""), admission.Allow()},
		{"a mirror pod is never protected", pod(label+", annotations: {kubernetes.io/config.mirror: x}", "nodeName: node-1", "phase: Running"), pod("", "nodeName: node-1", ""), admission.Allow()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, subresource := range []string{"", "status"} {
				rule := Rule{Cached: namespaceShop("allowed", nil)}
				require.Equal(t, test.want, review(t, rule, "pods", subresource, "Pod", test.old, test.new), "subresource %q", subresource)
			}
		})
	}
	t.Run("the pod is on no node, and has the label from its namespace", func(t *testing.T) {
		got := review(t, Rule{Cached: namespaceShop("default", nil)}, "pods", "", "Pod", pod(label, "", "phase: Pending"), pod("", "", "phase: Pending"))
		require.Equal(t, keeps("namespace shop gives it to all of its pods, and without it a node may stop it for any reason of its own"), got)
	})
	t.Run("the pod is on no node, and the namespace cannot be read", func(t *testing.T) {
		got := review(t, Rule{Cached: namespaceShop("", errors.New("timeout"))}, "pods", "", "Pod", pod(label, "", "phase: Pending"), pod("", "", "phase: Pending"))
		require.EqualError(t, got.Err, "find out whether the namespace protects its pods by default: timeout")
	})
}

func TestReviewNamespace(t *testing.T) {
	namespace := func(grant string) string {
		return "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {kubelet-guard.io/protect-pods: " + grant + "}}}"
	}
	refused := func(pods string) admission.Decision {
		return admission.Refuse(admission.ReasonProtectionRemoved,
			"namespace/shop keeps the grant kubelet-guard.io/protect-pods=allowed: pods that replace its protected ones would be refused. Protected pods: "+pods,
			"List them (kubectl get pods -n shop -l kubelet-guard.io/explicit-deletion=required), and stop them first")
	}
	tests := []struct {
		name, old, new string
		pods           metadata.Interface
		want           admission.Decision
	}{
		{"the grant goes while one protected pod runs", namespace("allowed"), namespace(`""`), podsOf(t, 1, false), refused("1 (db-0)")},
		{"the grant goes while many run", namespace("allowed"), namespace("never"), podsOf(t, 500, true), refused("at least 500 (such as db-0)")},
		{"the grant goes and none runs", namespace("default"), namespace(`""`), podsOf(t, 0, false), admission.Allow()},
		{"the grant changes its kind", namespace("default"), namespace("allowed"), nil, admission.Allow()},
		{"the grant comes", namespace(`""`), namespace("allowed"), nil, admission.Allow()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, subresource := range []string{"", "status", "finalize"} {
				require.Equal(t, test.want, review(t, Rule{Metadata: test.pods}, "namespaces", subresource, "Namespace", test.old, test.new), "subresource %q", subresource)
			}
		})
	}
	t.Run("the pods cannot be listed", func(t *testing.T) {
		got := review(t, Rule{Metadata: admissiontest.Pods(t, errors.New("timeout"), false)}, "namespaces", "", "Namespace", namespace("allowed"), namespace(`""`))
		require.Equal(t, admission.Failed, got.Verdict)
		require.EqualError(t, got.Err, "find the protected pods of the namespace: timeout")
	})
}

func TestReviewNamespaceDeletion(t *testing.T) {
	namespace := func(grant, metadata string) string {
		return "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {kubelet-guard.io/protect-pods: " + grant + "}" + metadata + "}}"
	}
	for name, test := range map[string]struct {
		old  string
		pods metadata.Interface
		want admission.Decision
	}{
		"with a protected pod": {namespace("default", ""), podsOf(t, 1, false), admission.Refuse(admission.ReasonDependentsExist,
			"namespace/shop was not deleted: its protected pods would be deleted with it, past their budgets: 1 (db-0)",
			"List them (kubectl get pods -n shop -l kubelet-guard.io/explicit-deletion=required), and stop them first")},
		"without one":       {namespace("allowed", ""), podsOf(t, 0, false), admission.Allow()},
		"without the grant": {namespace("never", ""), nil, admission.Allow()},
		"that terminates":   {namespace("allowed", `, deletionTimestamp: "2026-05-04T10:00:00Z"`), nil, admission.Allow()},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, review(t, Rule{Metadata: test.pods}, "namespaces", "", "Namespace", test.old, nil))
		})
	}
	require.Equal(t, admission.Allow(), review(t, Rule{}, "pods", "", "Pod", "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop}}", nil))
}
