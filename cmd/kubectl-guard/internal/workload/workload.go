// Package workload finds the pods that run for a workload, by following owner
// references. Selectors alone would also catch pods that merely have the same labels.
package workload

import (
	"cmp"
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"kubelet-guard.io/pkg/paging"
)

// maxOwners bounds the way from a pod up to its workload. CronJob, Job, pod takes
// two steps; operators add one or two.
const maxOwners = 8

// Finder finds pods of workloads. It remembers owners that it has read, and is
// not safe for concurrent use.
type Finder struct {
	Client   kubernetes.Interface
	Metadata metadata.Interface
	Mapper   meta.RESTMapper

	owners map[types.UID]*metav1.OwnerReference
}

// Pods returns the pods whose chain of controllers leads to the workload, in the
// order of their names.
func (f *Finder) Pods(ctx context.Context, workload *unstructured.Unstructured) ([]corev1.Pod, error) {
	selector, err := Selector(workload)
	if err != nil {
		return nil, err
	}
	var (
		found  []corev1.Pod
		failed error
	)
	options := metav1.ListOptions{LabelSelector: selector.String()}
	_, err = paging.Each(ctx, options, f.Client.CoreV1().Pods(workload.GetNamespace()).List, func(page *corev1.PodList) bool {
		for i := range page.Items {
			var owned bool
			if owned, failed = f.owned(ctx, &page.Items[i], workload.GetUID()); failed != nil {
				return false
			}
			if owned {
				found = append(found, page.Items[i])
			}
		}
		return true
	})
	if err = cmp.Or(err, failed); err != nil {
		return nil, fmt.Errorf("find the pods of %s %s/%s: %w", workload.GetKind(), workload.GetNamespace(), workload.GetName(), err)
	}
	return found, nil
}

// Selector returns the pod selector that the workload declares, or one that
// matches everything when it declares none, such as a CronJob.
func Selector(workload *unstructured.Unstructured) (labels.Selector, error) {
	field, found, err := unstructured.NestedMap(workload.Object, "spec", "selector")
	if err != nil || !found || len(field) == 0 {
		return labels.Everything(), nil //nolint:nilerr // another kind of field of that name
	}
	_, hasLabels := field["matchLabels"]
	_, hasExpressions := field["matchExpressions"]
	if !hasLabels && !hasExpressions {
		// A ReplicationController has a plain map.
		plain, _, err := unstructured.NestedStringMap(workload.Object, "spec", "selector")
		if err != nil {
			return labels.Everything(), nil //nolint:nilerr // as above
		}
		return labels.SelectorFromSet(plain), nil
	}
	var selector metav1.LabelSelector
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(field, &selector); err != nil {
		return nil, fmt.Errorf("spec.selector of %s %s: %w", workload.GetKind(), workload.GetName(), err)
	}
	parsed, err := metav1.LabelSelectorAsSelector(&selector)
	if err != nil {
		return nil, fmt.Errorf("spec.selector of %s %s: %w", workload.GetKind(), workload.GetName(), err)
	}
	return parsed, nil
}

func (f *Finder) owned(ctx context.Context, pod *corev1.Pod, uid types.UID) (bool, error) {
	owner := metav1.GetControllerOfNoCopy(pod)
	for range maxOwners {
		if owner == nil {
			return false, nil
		}
		if owner.UID == uid {
			return true, nil
		}
		next, err := f.ownerOf(ctx, pod.Namespace, owner)
		if err != nil {
			return false, fmt.Errorf("the owner of pod %s: %w", pod.Name, err)
		}
		owner = next
	}
	return false, nil
}

// ownerOf returns the controller of an object that is itself an owner; nil when
// there is none.
func (f *Finder) ownerOf(ctx context.Context, namespace string, of *metav1.OwnerReference) (*metav1.OwnerReference, error) {
	if owner, known := f.owners[of.UID]; known {
		return owner, nil
	}
	gv, err := schema.ParseGroupVersion(of.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("owner reference to %s %s: apiVersion: %w", of.Kind, of.Name, err)
	}
	mapping, err := f.Mapper.RESTMapping(schema.GroupKind{Group: gv.Group, Kind: of.Kind}, gv.Version)
	if meta.IsNoMatchError(err) {
		// A kind that the cluster does not know owns nothing that it knows.
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("owner reference to %s %s: %w", of.Kind, of.Name, err)
	}
	resource := f.Metadata.Resource(mapping.Resource)
	var object *metav1.PartialObjectMetadata
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		object, err = resource.Namespace(namespace).Get(ctx, of.Name, metav1.GetOptions{})
	} else {
		object, err = resource.Get(ctx, of.Name, metav1.GetOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("get %s %s: %w", of.Kind, of.Name, err)
	}
	// An owner that is gone, or replaced by another of its name, ends the chain.
	var owner *metav1.OwnerReference
	if err == nil && object.UID == of.UID {
		owner = metav1.GetControllerOfNoCopy(object)
	}
	if f.owners == nil {
		f.owners = map[types.UID]*metav1.OwnerReference{}
	}
	f.owners[of.UID] = owner
	return owner, nil
}

// TemplateLabels returns the labels of the workload's pod template and the path
// to them, such as spec.template.metadata.labels. ok is false for a kind that has
// no pod template in a known place.
func TemplateLabels(workload *unstructured.Unstructured) (set map[string]string, path []string, ok bool) {
	for _, template := range [][]string{
		{"spec", "template"},
		{"spec", "jobTemplate", "spec", "template"},
	} {
		if _, found, err := unstructured.NestedMap(workload.Object, template...); err == nil && found {
			path = append(template, "metadata", "labels")
			set, _, err := unstructured.NestedStringMap(workload.Object, path...)
			return set, path, err == nil
		}
	}
	return nil, nil, false
}
