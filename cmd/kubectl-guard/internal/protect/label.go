package protect

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"kubelet-guard.io/cmd/kubectl-guard/internal/dryrun"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// guardedVersion is in the version of every guarded kubelet.
const guardedVersion = "+guard."

// change is the outcome for a pod's label. The zero value is invalid.
type change string

const (
	changeDone     change = "Changed"
	changeUnneeded change = "Unchanged"
	changeSkipped  change = "Skipped"
	changeFailed   change = "Failed"
	// changeDry: a dry run, of either kind, found nothing against it.
	changeDry change = "WouldChange"
)

// protectionChange is one item of the output of protect and unprotect.
type protectionChange struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	Node      string    `json:"node,omitempty"`
	Change    change    `json:"change"`
	// Reason of Skipped and Failed.
	Reason string `json:"reason,omitempty"`
}

// warnUnguarded names the nodes on which the label protects from nothing.
func (o *options) warnUnguarded(ctx context.Context, c *factory.Clients, pods []corev1.Pod) {
	names := sets.New[string]()
	for i := range pods {
		if node := pods[i].Spec.NodeName; node != "" {
			names.Insert(node)
		}
	}
	sorted := sets.List(names)
	versions := make([]string, len(sorted))
	factory.InParallel(len(sorted), func(i int) {
		// The label is set all the same, so an error only leaves out a warning.
		if node, err := c.Kube.CoreV1().Nodes().Get(ctx, sorted[i], metav1.GetOptions{}); err == nil {
			versions[i] = node.Status.NodeInfo.KubeletVersion
		}
	})
	for i, version := range versions {
		if version != "" && !strings.Contains(version, guardedVersion) {
			o.Warn("node %s runs kubelet %s, which has no guard: the label has no effect there", sorted[i], version)
		}
	}
}

// apply changes the label of one pod.
func (o *options) apply(ctx context.Context, c *factory.Clients, pod *corev1.Pod) (protectionChange, error) {
	result := protectionChange{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Node: pod.Spec.NodeName}
	value, labelled := pod.Labels[guard.ExplicitDeletionLabel]
	switch {
	case o.protect && pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
		result.Change, result.Reason = changeSkipped, "a static pod is never protected"
		return result, nil
	case o.protect && (pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed):
		result.Change, result.Reason = changeSkipped, fmt.Sprintf("it has ended (%s)", pod.Status.Phase)
		return result, nil
	case o.protect && value == guard.ExplicitDeletionRequired, !o.protect && !labelled:
		result.Change = changeUnneeded
		return result, nil
	case o.dryRun == dryrun.Client:
		result.Change = changeDry
		return result, nil
	}
	var newValue any
	if o.protect {
		newValue = guard.ExplicitDeletionRequired
	}
	metadata := map[string]any{
		// A later pod of the same name is not meant.
		"uid":    pod.UID,
		"labels": map[string]any{guard.ExplicitDeletionLabel: newValue},
	}
	if o.override != "" {
		// In the same request: the override counts for the object as it will be.
		metadata["annotations"] = map[string]any{
			guardv1alpha1.OverrideAnnotation: guardv1alpha1.FormatOverride(o.Now().Add(o.overrideFor), o.override),
		}
	}
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return result, err
	}
	options := metav1.PatchOptions{FieldManager: factory.FieldManager}
	if o.dryRun == dryrun.Server {
		options.DryRun = []string{metav1.DryRunAll}
	}
	if _, err := c.Kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, options); err != nil {
		result.Change, result.Reason = changeFailed, err.Error()
		return result, fmt.Errorf("pod %s/%s: change its label: %w", pod.Namespace, pod.Name, err)
	}
	result.Change = changeDone
	if o.dryRun == dryrun.Server {
		result.Change = changeDry
	}
	return result, nil
}

// report prints one line. Failures are errors, which are printed at the end.
func (o *options) report(change protectionChange) {
	done, undone := "protected", "already protected"
	if !o.protect {
		done, undone = "no longer protected", "was not protected"
	}
	switch change.Change {
	case changeDone, changeDry:
		fmt.Fprintf(o.Out, "pod/%s %s%s\n", change.Name, done, o.dryRun.Suffix())
	case changeUnneeded:
		fmt.Fprintf(o.Out, "pod/%s %s\n", change.Name, undone)
	case changeSkipped:
		fmt.Fprintf(o.Out, "pod/%s skipped: %s\n", change.Name, change.Reason)
	}
}
