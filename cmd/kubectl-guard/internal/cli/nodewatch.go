package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"kubelet-guard.io/pkg/kubelet/guard"
	"kubelet-guard.io/pkg/rollout"
)

// nodesPage is how many nodes are read at a time: an API server answers with some 10 KB for
// each.
const nodesPage = 500

// eachNode reads the nodes that match a selector page by page, and returns the resource
// version of the list. Nodes are slim, and in no order.
func eachNode(ctx context.Context, kube kubernetes.Interface, selector string, use func(corev1.Node)) (string, error) {
	options := metav1.ListOptions{LabelSelector: selector, Limit: nodesPage}
	for {
		page, err := kube.CoreV1().Nodes().List(ctx, options)
		if err != nil {
			return "", fmt.Errorf("list the nodes: %w", err)
		}
		for i := range page.Items {
			use(slim(&page.Items[i]))
		}
		if page.Continue == "" {
			return page.ResourceVersion, nil
		}
		options.Continue = page.Continue
	}
}

// slim is a node with what roll-outs look at. Most of a Node is what it has of images and
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

// nodeWatch has the nodes that match a selector as the API server tells of them: a list once,
// then what changes. It is safe for concurrent use.
type nodeWatch struct {
	mu    sync.Mutex
	nodes map[string]corev1.Node
	// known: a list was read. err is why nothing is heard at the moment.
	known bool
	err   error
	// changed has a message when the nodes are others than before.
	changed chan struct{}
}

// watchNodes begins to watch, until the context ends. retry is the pause after an error.
func watchNodes(ctx context.Context, kube kubernetes.Interface, selector string, retry time.Duration) *nodeWatch {
	w := &nodeWatch{changed: make(chan struct{}, 1)}
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
func (w *nodeWatch) follow(ctx context.Context, kube kubernetes.Interface, selector string) error {
	list := map[string]corev1.Node{}
	version, err := eachNode(ctx, kube, selector, func(node corev1.Node) { list[node.Name] = node })
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.nodes, w.known, w.err = list, true, nil
	w.mu.Unlock()
	w.notify()
	for {
		// The API server ends a watch now and then; the next one begins where it ended.
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
			return nil // nothing was heard: begin with a list
		}
		version = next
	}
}

// take takes the events of a watch, and returns the version of the last one.
func (w *nodeWatch) take(events <-chan watch.Event, version string) (string, error) {
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

func (w *nodeWatch) notify() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// list returns the nodes in the order of their names. The error says why they are not
// known, or may be others by now.
func (w *nodeWatch) list() ([]corev1.Node, error) {
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

// first waits for the first list, or for why there is none.
func (w *nodeWatch) first(ctx context.Context) error {
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
