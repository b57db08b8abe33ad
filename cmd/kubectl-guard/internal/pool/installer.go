package pool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/pkg/paging"
	"kubelet-guard.io/pkg/rollout"
)

// EachInstaller reads the pods of a pool page by page.
func (p *Pool) EachInstaller(ctx context.Context, kube kubernetes.Interface, use func(*corev1.Pod)) error {
	return p.eachInstallerPage(ctx, kube, "", func(page *corev1.PodList) bool {
		for i := range page.Items {
			use(&page.Items[i])
		}
		return true
	})
}

// eachInstallerPage reads the pods of a pool that match a field selector.
func (p *Pool) eachInstallerPage(ctx context.Context, kube kubernetes.Interface, fields string, use func(*corev1.PodList) bool) error {
	options := metav1.ListOptions{LabelSelector: rollout.PoolLabel + "=" + p.Name, FieldSelector: fields}
	if _, err := paging.Each(ctx, options, kube.CoreV1().Pods(rollout.Namespace).List, use); err != nil {
		return fmt.Errorf("pool %s: list its installers: %w", p.Name, err)
	}
	return nil
}

// InstallerNode is the node of a DaemonSet's pod, also before it is bound.
func InstallerNode(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	affinity := pod.Spec.Affinity
	if affinity == nil || affinity.NodeAffinity == nil || affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, match := range term.MatchFields {
			if match.Key == "metadata.name" && len(match.Values) == 1 {
				return match.Values[0]
			}
		}
	}
	return ""
}

// NotRunningReason returns why a pod does not run, or nothing.
func NotRunningReason(pod *corev1.Pod) string {
	for _, status := range pod.Status.ContainerStatuses {
		if waiting := status.State.Waiting; waiting != nil {
			return strings.TrimSuffix(waiting.Reason+": "+waiting.Message, ": ")
		}
		if ended := status.State.Terminated; ended != nil {
			return strings.TrimSuffix(fmt.Sprintf("ended with exit code %d: %s", ended.ExitCode, ended.Message), ": ")
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return strings.TrimSuffix(condition.Reason+": "+condition.Message, ": ")
		}
	}
	return ""
}

// OpenGates lets at most n installers that wait for it be scheduled, and returns their nodes.
func (p *Pool) OpenGates(ctx context.Context, kube kubernetes.Interface, n int) ([]string, error) {
	var nodes []string
	var failed error
	// Those with a gate are on no node yet.
	err := p.eachInstallerPage(ctx, kube, "spec.nodeName=", func(page *corev1.PodList) bool {
		for i := range page.Items {
			pod := &page.Items[i]
			if len(nodes) == n {
				return false
			}
			gated := slices.ContainsFunc(pod.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == rollout.LookGate })
			if !gated || pod.DeletionTimestamp != nil {
				continue
			}
			_, err := kube.CoreV1().Pods(rollout.Namespace).Patch(ctx, pod.Name, types.MergePatchType, []byte(`{"spec":{"schedulingGates":null}}`), metav1.PatchOptions{FieldManager: factory.FieldManager})
			if err != nil && !apierrors.IsNotFound(err) {
				failed = fmt.Errorf("pool %s: let installer %s start: %w", p.Name, pod.Name, err)
				return false
			}
			nodes = append(nodes, InstallerNode(pod))
		}
		return len(nodes) < n
	})
	return nodes, cmp.Or(failed, err)
}
