package poddeletion

import (
	"context"
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/pkg/admission"
)

// Changes keeps protected pods in their budgets: it refuses the deletion of a budget that
// selects some, a change that lets more of them go or leaves some out, and a change of
// labels that takes a pod out of every budget.
type Changes struct {
	index    *Index
	metadata metadata.Interface
}

// NewChanges returns the rule DisruptionBudget. The index has the budgets, the client reads pods.
func NewChanges(index *Index, metadata metadata.Interface) *Changes {
	return &Changes{index, metadata}
}

// Review judges the request.
func (c *Changes) Review(ctx context.Context, request *admission.Request) admission.Decision {
	resource := request.Resource
	switch {
	case resource.Group == "" && resource.Resource == "pods" && request.Operation == admissionv1.Update:
		return c.reviewPod(request)
	case resource.Group == policyv1.GroupName && resource.Resource == "poddisruptionbudgets" && request.SubResource == "" &&
		(request.Operation == admissionv1.Update || request.Operation == admissionv1.Delete):
		return c.reviewBudget(ctx, request)
	}
	return admission.Allow()
}

func (c *Changes) reviewBudget(ctx context.Context, request *admission.Request) admission.Decision {
	old, changed := &policyv1.PodDisruptionBudget{}, &policyv1.PodDisruptionBudget{}
	if err := request.DecodeOldObject(old); err != nil {
		return admission.Fail("%w", err)
	}
	if old.DeletionTimestamp != nil || request.UserInfo.Username == namespaceController {
		return admission.Allow()
	}
	keeps := labels.Nothing()
	if request.Operation == admissionv1.Update {
		if err := request.DecodeObject(changed); err != nil {
			return admission.Fail("%w", err)
		}
		keeps = selectorOf(changed)
	}
	if err := c.index.Filled(); err != nil {
		return admission.Fail("%w", err)
	}
	pods, more, err := c.protectedPods(ctx, old.Namespace, selectorOf(old))
	if err != nil {
		return admission.Fail("find the protected pods of the budget: %w", err)
	}
	pods = slices.DeleteFunc(pods, func(pod metav1.PartialObjectMetadata) bool {
		// Of several budgets one is to go, or nothing can be deleted.
		return slices.ContainsFunc(c.index.Selecting(pod.Namespace, pod.Labels), func(other *policyv1.PodDisruptionBudget) bool {
			return other.Name != old.Name
		})
	})
	if len(pods) == 0 {
		return admission.Allow()
	}
	next := "Scale their workload to 0 first"
	if request.Operation == admissionv1.Delete {
		return refuseChange(request, "was not deleted", describe(pods, more)+" are held to it", next)
	}
	leaving := slices.DeleteFunc(slices.Clone(pods), func(pod metav1.PartialObjectMetadata) bool { return keeps.Matches(labels.Set(pod.Labels)) })
	if len(leaving) > 0 {
		return refuseChange(request, "was not changed", "no budget would select "+describe(leaving, more)+" any more", next)
	}
	expected := max(int(old.Status.ExpectedPods), len(pods))
	before, after := desiredHealthy(old, expected), desiredHealthy(changed, expected)
	if after >= before {
		return admission.Allow()
	}
	return refuseChange(request, "was not changed", fmt.Sprintf("it would want %d healthy pods of %d and wants %d now, and %s are held to it", after, expected, before, describe(pods, more)), next)
}

func refuseChange(request *admission.Request, what, why, next string) admission.Decision {
	return admission.Refuse(admission.ReasonDisruptionBudget, fmt.Sprintf("%s %s: %s", request.Target(), what, why), next)
}

// describe returns "3 protected pods (such as web-0)".
func describe(pods []metav1.PartialObjectMetadata, more bool) string {
	count := fmt.Sprint(len(pods))
	if more {
		count = "at least " + count
	}
	return fmt.Sprintf("%s protected pods (such as %s)", count, pods[0].Name)
}

// desiredHealthy returns how many of the expected pods the budget wants healthy, as the
// disruption controller computes it (getExpectedPodCount in upstream's
// pkg/controller/disruption).
func desiredHealthy(budget *policyv1.PodDisruptionBudget, expected int) int {
	// The API server has validated both values.
	scaled := func(value *intstr.IntOrString) int {
		number, _ := intstr.GetScaledValueFromIntOrPercent(value, expected, true)
		return number
	}
	switch {
	case budget.Spec.MaxUnavailable != nil:
		return max(0, expected-scaled(budget.Spec.MaxUnavailable))
	case budget.Spec.MinAvailable != nil:
		return scaled(budget.Spec.MinAvailable)
	}
	return 0
}

// reviewPod judges a change of a pod's labels. Service accounts may make it: operators move
// labels such as role=primary from pod to pod, and to hold that would break a switchover.
func (c *Changes) reviewPod(request *admission.Request) admission.Decision {
	var pod, old corev1.Pod
	if err := request.DecodeObjects(&old, &pod); err != nil {
		return admission.Fail("%w", err)
	}
	byMachine := slices.ContainsFunc(request.UserInfo.Groups, func(group string) bool {
		return group == "system:serviceaccounts" || group == "system:nodes"
	})
	if byMachine || !admission.IsProtected(&old) || old.DeletionTimestamp != nil || old.Spec.NodeName == "" || admission.IsFinished(&old) && !admission.AnyRunning(&old) || admission.IsMirror(&old) {
		return admission.Allow()
	}
	if err := c.index.Filled(); err != nil {
		return admission.Fail("%w", err)
	}
	before := c.index.Selecting(old.Namespace, old.Labels)
	if len(before) == 0 || len(c.index.Selecting(old.Namespace, pod.Labels)) > 0 {
		return admission.Allow()
	}
	return admission.Refuse(admission.ReasonDisruptionBudget,
		fmt.Sprintf("the labels of %s were not changed: it is protected and poddisruptionbudget %s would not select it any more, nor would another", request.Target(), before[0].Name),
		fmt.Sprintf("Keep the labels that the budget selects: kubectl get poddisruptionbudget %s -n %s -o yaml", before[0].Name, old.Namespace))
}

// protectedPods returns the metadata of the protected pods that the selector selects and that have
// not finished, or of as many as one page holds; then more is true.
func (c *Changes) protectedPods(ctx context.Context, namespace string, selector labels.Selector) (pods []metav1.PartialObjectMetadata, more bool, err error) {
	requirements, selectable := selector.Requirements()
	if !selectable {
		return nil, false, nil
	}
	list, err := admission.ListUnfinishedPods(ctx, c.metadata, namespace, admission.ProtectedPods.AsSelector().Add(requirements...).String())
	if err != nil {
		return nil, false, err
	}
	running := slices.DeleteFunc(list.Items, func(pod metav1.PartialObjectMetadata) bool { return pod.DeletionTimestamp != nil })
	return running, list.Continue != "", nil
}
