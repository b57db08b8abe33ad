package protect

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/resource"

	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/workload"
)

// read returns the objects that the arguments name.
func (o *options) read(c *factory.Clients) ([]*unstructured.Unstructured, error) {
	infos, err := resource.NewBuilder(o.Flags).Unstructured().
		NamespaceParam(c.Namespace).DefaultNamespace().
		ResourceTypeOrNameArgs(false, o.arguments...).
		LabelSelectorParam(o.selector).
		RequestChunksOf(500).
		Flatten().Do().Infos()
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, info := range infos {
		object, ok := info.Object.(*unstructured.Unstructured)
		if !ok || info.Namespace == "" {
			return nil, fmt.Errorf("%s: not a pod and not a workload in a namespace", info.ObjectName())
		}
		objects = append(objects, object)
	}
	return objects, nil
}

// pods returns each pod once, and which of the objects are workloads.
func (o *options) pods(ctx context.Context, c *factory.Clients, objects []*unstructured.Unstructured) ([]corev1.Pod, []*unstructured.Unstructured, error) {
	mapper, err := o.Flags.ToRESTMapper()
	if err != nil {
		return nil, nil, err
	}
	finder := &workload.Finder{Client: c.Kube, Metadata: c.Metadata, Mapper: mapper}
	var (
		pods      []corev1.Pod
		workloads []*unstructured.Unstructured
		seen      = map[types.UID]bool{}
	)
	for _, object := range objects {
		var found []corev1.Pod
		if isPod(object) {
			var pod corev1.Pod
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &pod); err != nil {
				return nil, nil, fmt.Errorf("read pod %s: %w", object.GetName(), err)
			}
			found = []corev1.Pod{pod}
		} else {
			if found, err = finder.Pods(ctx, object); err != nil {
				return nil, nil, err
			}
			if len(found) == 0 {
				o.Warn("%s has no pods", describe(object))
			}
			workloads = append(workloads, object)
		}
		for _, pod := range found {
			if !seen[pod.UID] {
				seen[pod.UID] = true
				pods = append(pods, pod)
			}
		}
	}
	return pods, workloads, nil
}

func isPod(object *unstructured.Unstructured) bool {
	return object.GroupVersionKind().GroupKind() == schema.GroupKind{Kind: "Pod"}
}

// describe is kind.group/name, as kubectl names objects.
func describe(object *unstructured.Unstructured) string {
	kind := strings.ToLower(object.GetKind())
	if group := object.GroupVersionKind().Group; group != "" {
		kind += "." + group
	}
	return kind + "/" + object.GetName()
}
