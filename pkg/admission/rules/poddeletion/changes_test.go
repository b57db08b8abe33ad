package poddeletion

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/admission"
)

// podList are the protected pods of a namespace that have not finished.
type podList struct {
	pods []map[string]string
	err  error
}

func (l podList) Selected(_ context.Context, namespace string, selector labels.Selector) ([]metav1.PartialObjectMetadata, bool, error) {
	var found []metav1.PartialObjectMetadata
	for _, pod := range l.pods {
		if selector.Matches(labels.Set(pod)) {
			found = append(found, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "web-1", Labels: pod}})
		}
	}
	return found, false, l.err
}

// change is the review of a change, or of a deletion when there is no new object.
func change(t *testing.T, resource metav1.GroupVersionResource, kind string, old, changed metav1.Object, user authenticationv1.UserInfo) *admission.Request {
	t.Helper()
	request := admissionv1.AdmissionRequest{
		Operation: admissionv1.Delete, UserInfo: user, Namespace: old.GetNamespace(), Name: old.GetName(),
		Kind: metav1.GroupVersionKind{Group: resource.Group, Version: "v1", Kind: kind}, Resource: resource,
	}
	raw, err := json.Marshal(old)
	require.NoError(t, err)
	request.OldObject = runtime.RawExtension{Raw: raw}
	if changed != nil {
		request.Operation = admissionv1.Update
		raw, err := json.Marshal(changed)
		require.NoError(t, err)
		request.Object = runtime.RawExtension{Raw: raw}
	}
	return admission.NewRequest(request)
}

func TestChangesOfBudgets(t *testing.T) {
	resource := metav1.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}
	web := map[string]string{"app": "web"}
	three := podList{pods: []map[string]string{web, web, web}}
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
		pods    podList
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
		"deleted, nobody knows its pods":     {pods: podList{err: errors.New("no answer")}, verdict: admission.Failed},
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
			var changed metav1.Object
			if test.changed != nil {
				changed = test.changed
			}
			decision := NewChanges(index, test.pods).Review(t.Context(), change(t, resource, "PodDisruptionBudget", old, changed, test.user))
			require.Equal(t, test.verdict, decision.Verdict, decision.Message)
			require.Contains(t, decision.Message, test.message)
		})
	}
}

func TestChangesOfLabels(t *testing.T) {
	resource := metav1.GroupVersionResource{Version: "v1", Resource: "pods"}
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
			decision := NewChanges(index, podList{}).Review(t.Context(), change(t, resource, "Pod", test.old, test.changed, test.user))
			require.Equal(t, test.verdict, decision.Verdict, decision.Message)
			if test.verdict == admission.Refused {
				require.Equal(t, "the labels of pod/web-1 in namespace shop were not changed: it is protected and poddisruptionbudget web would not select it any more, nor would another", decision.Message)
			}
		})
	}
}
