package paging

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// source has so many nodes and does not stream lists.
type source struct {
	nodes, pages int
	requests     []metav1.ListOptions
	err          error
}

func (s *source) list(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
	s.requests = append(s.requests, options)
	if s.err != nil {
		return nil, s.err
	}
	from, _ := strconv.Atoi(options.Continue)
	list := &corev1.NodeList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
	for i := from; i < min(s.nodes, from+int(options.Limit)); i++ {
		list.Items = append(list.Items, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), Annotations: map[string]string{"a": "b"}}})
	}
	if next := from + len(list.Items); next < s.nodes {
		list.Continue = strconv.Itoa(next)
	}
	s.pages++
	return list, nil
}

func withoutAnnotations(object any) (any, error) {
	object.(*corev1.Node).Annotations = nil
	return object, nil
}

func TestInformerListsInPages(t *testing.T) {
	s := &source{nodes: 2*Size + 1}
	listWatch := &cache.ListWatch{ListWithContextFunc: s.list, WatchFuncWithContext: func(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
		if options.SendInitialEvents != nil {
			return nil, errors.New("lists are not streamed")
		}
		return watch.NewFake(), nil
	}}
	informer := NewInformer(func(runtime.Object) cache.TransformFunc { return withoutAnnotations })(listWatch, &corev1.Node{}, 0, cache.Indexers{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); informer.RunWithContext(ctx) }()
	defer func() { cancel(); <-done }()
	require.Eventually(t, informer.HasSynced, 10*time.Second, 10*time.Millisecond)
	require.Len(t, informer.GetStore().List(), s.nodes)
	for _, object := range informer.GetStore().List() {
		require.Empty(t, object.(*corev1.Node).Annotations)
	}
	require.Equal(t, 3, s.pages)
	for _, options := range s.requests {
		require.EqualValues(t, Size, options.Limit)
		require.Empty(t, options.ResourceVersion, "the answer to a version has no pages")
	}
	require.Equal(t, "7", informer.LastSyncResourceVersion())
}

func TestListFails(t *testing.T) {
	s := &source{nodes: 1, err: errors.New("no answer")}
	_, err := List(t.Context(), metav1.ListOptions{}, s.list, func(o runtime.Object) (runtime.Object, error) { return o, nil })
	require.ErrorIs(t, err, s.err)
	s.err = nil
	_, err = List(t.Context(), metav1.ListOptions{LabelSelector: "a=b"}, s.list, func(runtime.Object) (runtime.Object, error) { return nil, errors.New("cannot be kept") })
	require.ErrorContains(t, err, "cannot be kept")
	require.Equal(t, "a=b", s.requests[1].LabelSelector)
}
