package protect

import (
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/cmd/kubectl-guard/internal/workload"
	"kubelet-guard.io/pkg/kubelet/guard"
)

// adviseTemplates prints how to make the change permanent.
func (o *options) adviseTemplates(workloads []*unstructured.Unstructured) {
	for _, object := range workloads {
		set, path, ok := workload.TemplateLabels(object)
		_, labelled := set[guard.ExplicitDeletionLabel]
		name := describe(object)
		switch {
		case !ok:
			fmt.Fprintf(o.Out, "\n%s has no pod template that is known here. Pods that replace these get the labels that it sets.\n", name)
		case o.protect && set[guard.ExplicitDeletionLabel] != guard.ExplicitDeletionRequired:
			fmt.Fprintf(o.Out, "\nPods that replace these come without the label. To make it permanent, add it to\n%s of %s:\n\n%s\n",
				strings.Join(path, "."), name, howTo(object, path, guard.ExplicitDeletionRequired))
		case !o.protect && labelled:
			fmt.Fprintf(o.Out, "\nPods that replace these come with the label. To make the change permanent, remove it from\n%s of %s:\n\n%s\n",
				strings.Join(path, "."), name, howTo(object, path, nil))
		}
	}
}

// howTo is a command that changes the template, with what comes of it.
func howTo(object *unstructured.Unstructured, path []string, value any) string {
	if owner := metav1.GetControllerOf(object); owner != nil {
		return fmt.Sprintf("It is controlled by %s %s: change the template there.", owner.Kind, owner.Name)
	}
	var patch any = map[string]any{guard.ExplicitDeletionLabel: value}
	for i := len(path) - 1; i >= 0; i-- {
		patch = map[string]any{path[i]: patch}
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return err.Error()
	}
	kind := object.GroupVersionKind()
	// Quoted for a shell, so that the line can be copied.
	command := fmt.Sprintf("  kubectl patch -n %s %s --type=merge \\\n    -p '%s'\n\n", object.GetNamespace(), describe(object), text)
	strategy, _, _ := unstructured.NestedString(object.Object, "spec", "updateStrategy", "type")
	switch {
	case kind.Kind == "Job" && kind.Group == "batch":
		return "The template of a Job cannot be changed: set the label where the Job is made."
	case kind.Kind == "CronJob" && kind.Group == "batch":
		return command + "Jobs that run are not touched; the next ones take it."
	case strategy == "OnDelete", kind.Kind == "ReplicaSet" && kind.Group == "apps", kind.Kind == "ReplicationController":
		return command + "Running pods are not touched; those that replace them take it."
	case kind.Group == "apps":
		return command + "This starts a roll-out: it replaces the running pods by its usual rules."
	}
	return command + "It is up to the workload's controller whether this replaces the running pods."
}

// adviseOwners is for pods that were named themselves and have a controller.
func (o *options) adviseOwners(changes []protectionChange, pods []corev1.Pod, objects []*unstructured.Unstructured) {
	named := map[types.UID]bool{}
	for _, object := range objects {
		if isPod(object) {
			named[object.GetUID()] = true
		}
	}
	advised := map[types.UID]bool{}
	for i := range pods {
		owner := metav1.GetControllerOf(&pods[i])
		changed := changes[i].Change == changeDone || changes[i].Change == changeDry
		if !changed || !named[pods[i].UID] || owner == nil || advised[owner.UID] {
			continue
		}
		advised[owner.UID] = true
		fmt.Fprintf(o.Out, "\nPods that %s %s makes later get the labels of its pod template, not of these.\n", owner.Kind, owner.Name)
	}
}
