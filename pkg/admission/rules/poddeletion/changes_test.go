package poddeletion

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
)

// podsOf returns the client of an API server with protected pods that have these labels, or of one
// that fails.
func podsOf(t *testing.T, failure error, labels ...map[string]string) metadata.Interface {
	pods := make([]metav1.PartialObjectMetadata, len(labels))
	for i, set := range labels {
		pods[i].Namespace, pods[i].Name, pods[i].Labels = "shop", fmt.Sprint("web-", i+1), maps.Clone(set)
		maps.Copy(pods[i].Labels, admission.ProtectedPods)
	}
	return admissiontest.Pods(t, failure, false, pods...)
}

// change is the review of a change, or of a deletion when there is no new object.
func change(t *testing.T, kind schema.GroupVersionKind, resource string, old, changed any, user authenticationv1.UserInfo) *admission.Request {
	t.Helper()
	operation := admissionv1.Update
	if changed == nil {
		operation = admissionv1.Delete
	}
	review := admissiontest.Review(t, operation, kind, resource, old, changed)
	review.UserInfo = user
	return admission.NewRequest(review)
}

func TestChangesOfBudgets(t *testing.T) {
	web := map[string]string{"app": "web"}
	three := podsOf(t, nil, web, web, web)
	with := func(changes ...func(*policyv1.PodDisruptionBudget)) *policyv1.PodDisruptionBudget {
		budget := newBudget("web", matching("app", "web"))
		budget.Spec.MinAvailable, budget.Spec.MaxUnavailable = ptr.To(intstr.FromInt32(2)), nil
		budget.Status.ExpectedPods = 3
		for _, change := range changes {
			change(budget)
		}
		return budget
	}
	minimum := func(value intstr.IntOrString) func(*policyv1.PodDisruptionBudget) {
		return func(budget *policyv1.PodDisruptionBudget) { budget.Spec.MinAvailable = &value }
	}
	unavailable := func(value intstr.IntOrString) func(*policyv1.PodDisruptionBudget) {
		return func(budget *policyv1.PodDisruptionBudget) {
			budget.Spec.MinAvailable, budget.Spec.MaxUnavailable = nil, &value
		}
	}
	selecting := func(value string) func(*policyv1.PodDisruptionBudget) {
		return func(budget *policyv1.PodDisruptionBudget) { budget.Spec.Selector = matching("app", value) }
	}
	for name, test := range map[string]struct {
		changed *policyv1.PodDisruptionBudget
		old     *policyv1.PodDisruptionBudget
		others  []*policyv1.PodDisruptionBudget
		pods    metadata.Interface
		user    authenticationv1.UserInfo
		verdict admission.Verdict
		message string
	}{
		"deleted":                            {pods: three, verdict: admission.Refused, message: "poddisruptionbudget.policy/web in namespace shop was not deleted: 3 protected pods (such as web-1) are held to it"},
		"deleted by the garbage collector":   {pods: three, user: user("generic-garbage-collector"), verdict: admission.Refused, message: "was not deleted"},
		"deleted with its namespace":         {pods: three, user: user("namespace-controller"), verdict: admission.Allowed},
		"deleted, no protected pods":         {verdict: admission.Allowed},
		"deleted, another selects the pods":  {pods: three, others: []*policyv1.PodDisruptionBudget{newBudget("all", matching("app", "web"))}, verdict: admission.Allowed},
		"deleted, another selects others":    {pods: three, others: []*policyv1.PodDisruptionBudget{newBudget("db", matching("app", "db"))}, verdict: admission.Refused, message: "was not deleted"},
		"deleted, nobody knows its pods":     {pods: podsOf(t, errors.New("no answer")), verdict: admission.Failed},
		"already terminating":                {old: with(func(b *policyv1.PodDisruptionBudget) { b.DeletionTimestamp = ptr.To(metav1.NewTime(noon)) }), pods: three, verdict: admission.Allowed},
		"wants one less":                     {changed: with(minimum(intstr.FromInt32(1))), pods: three, verdict: admission.Refused, message: "was not changed: it would want 1 healthy pods of 3 and wants 2 now, and 3 protected pods (such as web-1) are held to it"},
		"wants one less, no protected pods":  {changed: with(minimum(intstr.FromInt32(1))), verdict: admission.Allowed},
		"wants one more":                     {changed: with(minimum(intstr.FromInt32(3))), pods: three, verdict: admission.Allowed},
		"the same as a share":                {changed: with(minimum(intstr.FromString("50%"))), pods: three, verdict: admission.Allowed},
		"a smaller share":                    {changed: with(minimum(intstr.FromString("30%"))), pods: three, verdict: admission.Refused, message: "would want 1 healthy pods of 3"},
		"the same as unavailable":            {changed: with(unavailable(intstr.FromInt32(1))), pods: three, verdict: admission.Allowed},
		"more unavailable":                   {changed: with(unavailable(intstr.FromInt32(5))), pods: three, verdict: admission.Refused, message: "would want 0 healthy pods of 3"},
		"not counted yet":                    {old: with(func(b *policyv1.PodDisruptionBudget) { b.Status.ExpectedPods = 0 }), changed: with(unavailable(intstr.FromInt32(2))), pods: three, verdict: admission.Refused, message: "would want 1 healthy pods of 3"},
		"selects others":                     {changed: with(selecting("db")), pods: three, verdict: admission.Refused, message: "was not changed: no budget would select 3 protected pods (such as web-1) any more"},
		"selects others, none are protected": {changed: with(selecting("db")), verdict: admission.Allowed},
	} {
		t.Run(name, func(t *testing.T) {
			old := test.old
			if old == nil {
				old = with()
			}
			index := NewIndex()
			for _, budget := range append(test.others, old) {
				index.Set(budget)
			}
			var changed any
			if test.changed != nil {
				changed = test.changed
			}
			if test.pods == nil {
				test.pods = podsOf(t, nil)
			}
			decision := NewChanges(index, test.pods).Review(t.Context(), change(t, policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"), "poddisruptionbudgets", old, changed, test.user))
			require.Equal(t, test.verdict, decision.Verdict, decision.Message)
			require.Contains(t, decision.Message, test.message)
		})
	}
}

func TestChangesOfLabels(t *testing.T) {
	labelled := func(value string) func(*corev1.Pod) { return func(pod *corev1.Pod) { pod.Labels["app"] = value } }
	operator := authenticationv1.UserInfo{Username: "system:serviceaccount:db:operator", Groups: []string{"system:serviceaccounts"}}
	for name, test := range map[string]struct {
		old, changed *corev1.Pod
		user         authenticationv1.UserInfo
		verdict      admission.Verdict
	}{
		"out of its budget":                  {newPod(), newPod(labelled("x")), ordinary, admission.Refused},
		"out of its budget, by an operator":  {newPod(), newPod(labelled("x")), operator, admission.Allowed},
		"into another":                       {newPod(), newPod(labelled("db")), ordinary, admission.Allowed},
		"a label that no budget selects by":  {newPod(), newPod(func(pod *corev1.Pod) { pod.Labels["tier"] = "front" }), ordinary, admission.Allowed},
		"was in none":                        {newPod(labelled("x")), newPod(labelled("y")), ordinary, admission.Allowed},
		"not protected":                      {newPod(func(pod *corev1.Pod) { pod.Labels = map[string]string{"app": "web"} }), newPod(labelled("x")), ordinary, admission.Allowed},
		"terminating":                        {newPod(deletedAt(noon)), newPod(deletedAt(noon), labelled("x")), ordinary, admission.Allowed},
		"finished":                           {newPod(inPhase(corev1.PodFailed), containersEnded), newPod(labelled("x")), ordinary, admission.Allowed},
		"said to have failed, while it runs": {newPod(inPhase(corev1.PodFailed)), newPod(labelled("x")), ordinary, admission.Refused},
		"never scheduled":                    {newPod(func(pod *corev1.Pod) { pod.Spec.NodeName = "" }), newPod(labelled("x")), ordinary, admission.Allowed},
	} {
		t.Run(name, func(t *testing.T) {
			index := NewIndex()
			index.Set(newBudget("web", matching("app", "web")))
			index.Set(newBudget("db", matching("app", "db")))
			decision := NewChanges(index, nil).Review(t.Context(), change(t, corev1.SchemeGroupVersion.WithKind("Pod"), "pods", test.old, test.changed, test.user))
			require.Equal(t, test.verdict, decision.Verdict, decision.Message)
			if test.verdict == admission.Refused {
				require.Equal(t, "the labels of pod/web-1 in namespace shop were not changed: it is protected and poddisruptionbudget web would not select it any more, nor would another", decision.Message)
			}
		})
	}
}
