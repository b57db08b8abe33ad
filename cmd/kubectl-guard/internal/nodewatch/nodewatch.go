// Package nodewatch reads the nodes that roll-outs need: once by pages, or with a watch.
package nodewatch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/paging"
	"kubelet-guard.io/pkg/rollout"
)

// EachNode reads the nodes that match a selector page by page, and returns the resource
// version of the list. Nodes are slim, and in no order.
func EachNode(ctx context.Context, kube kubernetes.Interface, selector string, use func(corev1.Node)) (string, error) {
	version, err := paging.Each(ctx, metav1.ListOptions{LabelSelector: selector}, kube.CoreV1().Nodes().List, func(page *corev1.NodeList) bool {
		for i := range page.Items {
			use(slim(&page.Items[i]))
		}
		return true
	})
	if err != nil {
		return "", fmt.Errorf("list the nodes: %w", err)
	}
	return version, nil
}

// slim is a node with the fields that roll-outs need. Most of a Node is what it has of images and
// who has written which field.
func slim(node *corev1.Node) corev1.Node {
	s := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: strings.Clone(node.Name), UID: node.UID, ResourceVersion: node.ResourceVersion, Labels: node.Labels, CreationTimestamp: node.CreationTimestamp}}
	if report, ok := node.Annotations[rollout.ReportAnnotation]; ok {
		s.Annotations = map[string]string{rollout.ReportAnnotation: report}
	}
	info := node.Status.NodeInfo
	s.Status.NodeInfo = corev1.NodeSystemInfo{KubeletVersion: info.KubeletVersion, OperatingSystem: info.OperatingSystem, Architecture: info.Architecture}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady || condition.Type == guard.NodeHoldingPods {
			s.Status.Conditions = append(s.Status.Conditions, corev1.NodeCondition{Type: condition.Type, Status: condition.Status})
		}
	}
	return s
}

// Watch has the nodes that match a selector as the API server reports them. It is safe for
// concurrent use.
type Watch struct {
	informer cache.SharedIndexInformer
	mu       sync.Mutex
	// err is that of the last list or watch.
	err error
}

// byPages has an informer request a list, and not a stream that starts with all objects.
type byPages struct{}

// IsWatchListSemanticsUnSupported is how an informer finds that out.
func (byPages) IsWatchListSemanticsUnSupported() bool { return true }

// Start starts a watch, until the context ends. What fails is tried again.
func Start(ctx context.Context, kube kubernetes.Interface, selector string) *Watch {
	w := &Watch{}
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			list := &corev1.NodeList{}
			version, err := EachNode(ctx, kube, selector, func(node corev1.Node) { list.Items = append(list.Items, node) })
			list.ResourceVersion = version
			return list, w.note(err)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.LabelSelector = selector
			stream, err := kube.CoreV1().Nodes().Watch(ctx, options)
			if err != nil {
				err = fmt.Errorf("watch the nodes: %w", err)
			}
			return stream, w.note(err)
		},
	}
	w.informer = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(source, byPages{}), &corev1.Node{}, 0, nil)
	_ = w.informer.SetTransform(func(object any) (any, error) {
		if node, ok := object.(*corev1.Node); ok {
			return ptr.To(slim(node)), nil
		}
		return object, nil
	})
	// Without a log: the verbs print what List returns.
	go w.informer.RunWithContext(klog.NewContext(ctx, klog.Logger{}))
	return w
}

func (w *Watch) note(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	return err
}

// List returns the nodes in the order of their names. It waits for the first list. The error is
// why they are not known, or may be others by now.
func (w *Watch) List(ctx context.Context) ([]corev1.Node, error) {
	err := wait.PollUntilContextCancel(ctx, 10*time.Millisecond, true, func(context.Context) (bool, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.informer.HasSynced(), w.err
	})
	if err != nil {
		return nil, err
	}
	var list []corev1.Node
	for _, object := range w.informer.GetStore().List() {
		list = append(list, *object.(*corev1.Node))
	}
	slices.SortFunc(list, func(a, b corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}
