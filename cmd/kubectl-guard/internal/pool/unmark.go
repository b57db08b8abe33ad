package pool

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// UnmarkNodes is unmark for many nodes. It tries all, and its error has at most ten.
func UnmarkNodes(ctx context.Context, kube kubernetes.Interface, list []corev1.Node, all bool) error {
	errs := make([]error, len(list))
	factory.InParallel(len(list), func(i int) { errs[i] = unmarkNode(ctx, kube, &list[i], all) })
	return printer.FirstErrors(errs)
}

// unmarkNode takes the mark of a failure off a node, and with all whatever else a roll-out
// and a guarded kubelet have written to its Node.
func unmarkNode(ctx context.Context, kube kubernetes.Interface, node *corev1.Node, all bool) error {
	_, reported := node.Annotations[rollout.ReportAnnotation]
	_, marked := node.Labels[rollout.StateLabel]
	metadata := map[string]any{}
	if marked {
		metadata["labels"] = map[string]any{rollout.StateLabel: nil}
	}
	switch {
	case all && reported:
		metadata["annotations"] = map[string]any{rollout.ReportAnnotation: nil, rollout.ResumeAnnotation: nil}
	case !all && reported:
		// The installer tries again what has this value.
		if report, err := rollout.ReportOf(node); err == nil && report.Attempt != "" {
			metadata["annotations"] = map[string]any{rollout.ResumeAnnotation: report.Attempt}
		}
	}
	if len(metadata) > 0 {
		if err := patchNode(ctx, kube, node, types.MergePatchType, map[string]any{"metadata": metadata}); err != nil {
			return fmt.Errorf("node %s: take the mark of the roll-out off: %w", node.Name, err)
		}
	}
	if !all {
		return nil
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == guard.NodeHoldingPods {
			// A kubelet without guard leaves it as it was, for ever.
			removal := map[string]any{"type": guard.NodeHoldingPods, "$patch": "delete"}
			if err := patchNode(ctx, kube, node, types.StrategicMergePatchType, map[string]any{"status": map[string]any{"conditions": []any{removal}}}, "status"); err != nil {
				return fmt.Errorf("node %s: remove the condition %s, which no kubelet updates any more: %w", node.Name, guard.NodeHoldingPods, err)
			}
		}
	}
	return nil
}

// patchNode patches a node. One that is gone needs nothing.
func patchNode(ctx context.Context, kube kubernetes.Interface, node *corev1.Node, kind types.PatchType, content map[string]any, subresources ...string) error {
	patch, err := json.Marshal(content)
	if err != nil {
		return err
	}
	_, err = kube.CoreV1().Nodes().Patch(ctx, node.Name, kind, patch, metav1.PatchOptions{FieldManager: factory.FieldManager}, subresources...)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
