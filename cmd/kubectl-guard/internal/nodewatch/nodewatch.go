// Package nodewatch reads the nodes that roll-outs need: once by pages, or with a watch.
package nodewatch

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"kubelet-guard.io/cmd/kubectl-guard/internal/paging"
	"kubelet-guard.io/pkg/kubelet/guard"
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

// Watch has the nodes that match a selector as the API server reports them: a list once,
// then what changes. It is safe for concurrent use.
type Watch struct {
	mu    sync.Mutex
	nodes map[string]corev1.Node
	// known: a list was read. err is why the watch is broken at the moment.
	known bool
	err   error
	// changed has a message when the nodes are others than before.
	changed chan struct{}
}

// Start starts a watch, until the context ends. retry is the pause after an error.
func Start(ctx context.Context, kube kubernetes.Interface, selector string, retry time.Duration) *Watch {
	w := &Watch{changed: make(chan struct{}, 1)}
	go func() {
		for ctx.Err() == nil {
			err := w.follow(ctx, kube, selector)
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
			w.notify()
			select {
			case <-ctx.Done():
			case <-time.After(retry):
			}
		}
	}()
	return w
}

// follow reads the list and then the changes, until an error.
func (w *Watch) follow(ctx context.Context, kube kubernetes.Interface, selector string) error {
	list := map[string]corev1.Node{}
	version, err := EachNode(ctx, kube, selector, func(node corev1.Node) { list[node.Name] = node })
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.nodes, w.known, w.err = list, true, nil
	w.mu.Unlock()
	w.notify()
	for {
		// The API server ends a watch now and then; the next one starts where it ended.
		stream, err := kube.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{LabelSelector: selector, ResourceVersion: version, AllowWatchBookmarks: true})
		if err != nil {
			return fmt.Errorf("watch the nodes: %w", err)
		}
		next, err := w.take(stream.ResultChan(), version)
		stream.Stop()
		if err != nil {
			return err
		}
		if next == version {
			return nil // no event came: start with a list
		}
		version = next
	}
}

// take takes the events of a watch, and returns the version of the last one.
func (w *Watch) take(events <-chan watch.Event, version string) (string, error) {
	for event := range events {
		node, ok := event.Object.(*corev1.Node)
		if event.Type == watch.Error || !ok {
			return "", fmt.Errorf("watch the nodes: %w", apierrors.FromObject(event.Object))
		}
		version = node.ResourceVersion
		w.mu.Lock()
		switch event.Type {
		case watch.Added, watch.Modified:
			w.nodes[node.Name] = slim(node)
		case watch.Deleted:
			delete(w.nodes, node.Name)
		}
		w.mu.Unlock()
		if event.Type != watch.Bookmark {
			w.notify()
		}
	}
	return version, nil
}

func (w *Watch) notify() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// List returns the nodes in the order of their names. The error is why they are not
// known, or may be others by now.
func (w *Watch) List() ([]corev1.Node, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil || !w.known {
		return nil, w.err
	}
	list := make([]corev1.Node, 0, len(w.nodes))
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		list = append(list, w.nodes[name])
	}
	return list, nil
}

// WaitForList waits for the first list, or for why there is none.
func (w *Watch) WaitForList(ctx context.Context) error {
	for {
		w.mu.Lock()
		known, err := w.known, w.err
		w.mu.Unlock()
		if known || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.changed:
		}
	}
}
