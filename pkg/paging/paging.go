/*
Package paging reads lists page by page, also for caches.

A server that streams lists sends a cache one object after the other. Where it does not, a
reflector of client-go requests all objects in one response, which a server's own cache gives
without pages: of 5,000 nodes it is 50 MB, which the client holds as text and as objects at
the same time. Here the list is put together of pages, and of each object only what the cache
keeps stays in memory. The pages are those of a new list, so that it is at least as recent as
the version that the reflector wants.
*/
package paging

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/watchlist"
)

// Size is how many objects are read at a time: an API server sends some 10 KB for each node.
const Size = 500

// Each passes one page after the other to use, until it returns false, and returns the resource
// version of the list. Pages have options.Limit objects, Size by default.
func Each[L metav1.ListInterface](ctx context.Context, options metav1.ListOptions, list func(context.Context, metav1.ListOptions) (L, error), use func(L) bool) (string, error) {
	options.Limit = cmp.Or(options.Limit, Size)
	for {
		page, err := list(ctx, options)
		if err != nil {
			return "", err
		}
		if !use(page) || page.GetContinue() == "" {
			return page.GetResourceVersion(), nil
		}
		options.Continue = page.GetContinue()
	}
}

// List returns what is to be kept of all objects that the options select. Versions and limits
// in the options do not count.
func List(ctx context.Context, options metav1.ListOptions, page func(context.Context, metav1.ListOptions) (runtime.Object, error), keep func(runtime.Object) (runtime.Object, error)) (runtime.Object, error) {
	options = metav1.ListOptions{LabelSelector: options.LabelSelector, FieldSelector: options.FieldSelector, Limit: Size}
	all := &internalversion.List{}
	for {
		list, err := page(ctx, options)
		if err != nil {
			return nil, err
		}
		accessor, err := meta.ListAccessor(list)
		if err != nil {
			return nil, fmt.Errorf("unexpected %T in place of a list: %w", list, err)
		}
		// A copy of each: what is kept must not keep the page.
		err = meta.EachListItemWithAlloc(list, func(object runtime.Object) error {
			kept, err := keep(object)
			all.Items = append(all.Items, kept)
			return err
		})
		if err != nil {
			return nil, err
		}
		if options.Continue = accessor.GetContinue(); options.Continue == "" {
			all.ResourceVersion = accessor.GetResourceVersion()
			return all, nil
		}
	}
}

// NewInformer returns a constructor of informers that list in pages, for the options of a
// manager's cache. The transformation is that of the cache for objects like the example, and
// may be used more than once on an object.
func NewInformer(transform func(example runtime.Object) cache.TransformFunc) func(cache.ListerWatcher, runtime.Object, time.Duration, cache.Indexers) cache.SharedIndexInformer {
	return func(source cache.ListerWatcher, example runtime.Object, resync time.Duration, indexers cache.Indexers) cache.SharedIndexInformer {
		pages := listerWatcher{source: cache.ToListerWatcherWithContext(source), keep: transform(example), streams: !watchlist.DoesClientNotSupportWatchListSemantics(source)}
		return cache.NewSharedIndexInformer(pages, example, resync, indexers)
	}
}

// listerWatcher lists in pages what its source lists.
type listerWatcher struct {
	source  cache.ListerWatcherWithContext
	keep    cache.TransformFunc
	streams bool
}

var (
	_ cache.ListerWatcher            = listerWatcher{}
	_ cache.ListerWatcherWithContext = listerWatcher{}
)

// ListWithContext implements cache.ListerWithContext.
func (l listerWatcher) ListWithContext(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return List(ctx, options, l.source.ListWithContext, func(object runtime.Object) (runtime.Object, error) {
		kept, err := l.keep(object)
		if err != nil {
			return nil, err
		}
		result, ok := kept.(runtime.Object)
		if !ok {
			return nil, fmt.Errorf("unexpected %T after the transformation of a %T", kept, object)
		}
		return result, nil
	})
}

// WatchWithContext implements cache.WatcherWithContext.
func (l listerWatcher) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return l.source.WatchWithContext(ctx, options)
}

// List implements cache.Lister.
func (l listerWatcher) List(options metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(context.Background(), options)
}

// Watch implements cache.Watcher.
func (l listerWatcher) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(context.Background(), options)
}

// IsWatchListSemanticsUnSupported is how a reflector finds out whether the source streams lists.
func (l listerWatcher) IsWatchListSemanticsUnSupported() bool { return !l.streams }
