package status

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/paging"
)

// mostPods bounds how many protected pods are read, some 160 MB of them. The webhook
// counts all, in guard_webhook_protected_pods_without_budget.
const mostPods = 20_000

// withoutBudget counts protected pods that no PodDisruptionBudget selects.
type withoutBudget struct {
	Pods int `json:"pods"`
	// Namespaces that they are in.
	Namespaces map[string]int `json:"namespaces,omitempty"`
	// Incomplete: the cluster has more protected pods than were read.
	Incomplete bool `json:"incomplete,omitempty"`
}

// countWithoutBudget reads budgets and protected pods, and counts those pods that are bound and
// have not finished.
func countWithoutBudget(ctx context.Context, kube kubernetes.Interface) (*withoutBudget, error) {
	budgets := map[string][]labels.Selector{}
	_, err := paging.Each(ctx, metav1.ListOptions{}, kube.PolicyV1().PodDisruptionBudgets(metav1.NamespaceAll).List, func(page *policyv1.PodDisruptionBudgetList) bool {
		for _, budget := range page.Items {
			if selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector); err == nil {
				budgets[budget.Namespace] = append(budgets[budget.Namespace], selector)
			}
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list the PodDisruptionBudgets: %w", err)
	}
	counted, read := &withoutBudget{Namespaces: map[string]int{}}, 0
	options := metav1.ListOptions{LabelSelector: guard.ExplicitDeletionLabel + "=" + guard.ExplicitDeletionRequired}
	_, err = paging.Each(ctx, options, kube.CoreV1().Pods(metav1.NamespaceAll).List, func(page *corev1.PodList) bool {
		for i := range page.Items {
			if read++; read > mostPods {
				counted.Incomplete = true
				return false
			}
			pod := &page.Items[i]
			if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
				continue
			}
			if !slices.ContainsFunc(budgets[pod.Namespace], func(s labels.Selector) bool { return s.Matches(labels.Set(pod.Labels)) }) {
				counted.Pods++
				counted.Namespaces[pod.Namespace]++
			}
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list the protected pods: %w", err)
	}
	return counted, nil
}

// sentence is for humans; empty when there is nothing to report.
func (w *withoutBudget) sentence() string {
	if w.Pods == 0 && !w.Incomplete {
		return ""
	}
	const shown = 5
	namespaces := slices.SortedFunc(maps.Keys(w.Namespaces), func(a, b string) int {
		return cmp.Or(cmp.Compare(w.Namespaces[b], w.Namespaces[a]), cmp.Compare(a, b))
	})
	var parts []string
	for i, namespace := range namespaces {
		if i == shown {
			parts = append(parts, fmt.Sprintf("and %d more", len(namespaces)-shown))
			break
		}
		parts = append(parts, fmt.Sprintf("%s %d", namespace, w.Namespaces[namespace]))
	}
	text := fmt.Sprintf("Protected pods without a PodDisruptionBudget: %d", w.Pods)
	if w.Incomplete {
		text += fmt.Sprintf(" of the first %d", mostPods)
	}
	if len(parts) > 0 {
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	return text + ". Nothing limits how many are deleted at once."
}
