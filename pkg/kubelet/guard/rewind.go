package guard

import (
	"context"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// A storage that went back.
//
// A watch names the newest resource version that the kubelet has seen. When etcd
// was restored from a backup or replaced by an empty one, the server has not come
// that far, and the watch is silent until it has: for hours perhaps, new pods of
// the node are not started and deletions are not seen. A relist would end that,
// but it would kill every pod that the storage has lost, and the stock kubelet
// does not relist here.
//
// So before a watch the server is asked how far it is. When it is behind, what it
// has is shown to the kubelet as modified, and the watch goes on from there.
// Protected pods that it does not have are shown as deleted, so that they are
// held and seen to be held. Unprotected ones are not mentioned: they stay, as with
// the stock kubelet, until it lists anew.

// EventStorageWentBack is a Warning on the node.
const EventStorageWentBack = "StorageWentBack"

const (
	// versionTimeout bounds the question how far the server is.
	versionTimeout = 10 * time.Second
	// versionRetry is how long after an unanswered question it is repeated.
	versionRetry = 5 * time.Second
)

// behind reports whether the server has not come to the resource version. The
// question is a list of at most one pod of this node.
func (o *observedListerWatcher) behind(ctx context.Context, version string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	list, err := o.lw.ListWithContext(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return false, err
	}
	pods, ok := list.(*v1.PodList)
	if !ok {
		return false, fmt.Errorf("the list of pods is a %T", list)
	}
	order, err := resourceversion.CompareResourceVersion(pods.ResourceVersion, version)
	return err == nil && order < 0, err
}

// watchFrom opens a watch of the reflector, which is past its initial list.
func (o *observedListerWatcher) watchFrom(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	behind, err := o.behind(ctx, options.ResourceVersion)
	if behind {
		events, version, err := o.resync(ctx)
		if err == nil {
			o.reportRewind(options.ResourceVersion, version)
			options.ResourceVersion = version
			return o.follow(ctx, options, events)
		}
		klog.ErrorS(err, "The storage of the API server went back, but its pods cannot be listed; the watch goes on in silence")
	}
	if o.rewound() {
		return o.follow(ctx, options, nil)
	}
	w, watchErr := o.lw.WatchWithContext(ctx, options)
	if watchErr != nil {
		return w, watchErr
	}
	w = watch.Filter(w, func(event watch.Event) (watch.Event, bool) { o.observe(event); return event, true })
	if err != nil || behind {
		go o.askAgain(ctx, w, options.ResourceVersion)
	}
	return w, nil
}

// askAgain repeats a question that was not answered before the watch was opened,
// and ends the watch when the answer is that it would be silent. The reflector
// then opens another.
func (o *observedListerWatcher) askAgain(ctx context.Context, w watch.Interface, version string) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.guard.clock.After(versionRetry):
		}
		behind, err := o.behind(ctx, version)
		if err != nil {
			continue
		}
		if behind {
			w.Stop()
		}
		return
	}
}

// resync lists what the server has and returns it as events, and the resource
// version from which to watch on.
func (o *observedListerWatcher) resync(ctx context.Context) ([]watch.Event, string, error) {
	list, err := o.lw.ListWithContext(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, "", err
	}
	pods, ok := list.(*v1.PodList)
	if !ok {
		return nil, "", fmt.Errorf("the list of pods is a %T", list)
	}
	var events []watch.Event
	seen := make(map[cache.ObjectName]*v1.Pod, len(pods.Items))
	for i := range pods.Items {
		pod := &pods.Items[i]
		seen[cache.MetaObjectToName(pod)] = pod
		events = append(events, watch.Event{Type: watch.Modified, Object: pod})
	}
	o.mu.Lock()
	before := o.seen
	o.seen = seen
	o.mu.Unlock()
	for name, pod := range before {
		if seen[name] == nil {
			events = append(events, watch.Event{Type: watch.Deleted, Object: pod})
		}
	}
	for _, pod := range o.guard.missingFrom(seen) {
		if before[cache.MetaObjectToName(pod)] == nil {
			events = append(events, watch.Event{Type: watch.Deleted, Object: pod})
		}
	}
	for _, event := range events {
		if event.Type == watch.Modified {
			o.observe(event)
		}
	}
	// The versions of single pods come in any order; this one counts.
	bookmark := &v1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: pods.ResourceVersion}}
	return append(events, watch.Event{Type: watch.Bookmark, Object: bookmark}), pods.ResourceVersion, nil
}

// missingFrom returns the protected pods that are to be held when the API has
// only the given ones. A pod of the same name takes the place of another, so that
// one needs no event of its own.
func (g *Guard) missingFrom(listed map[cache.ObjectName]*v1.Pod) []*v1.Pod {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.exempt[PodVanished] {
		return nil
	}
	var missing []*v1.Pod
	for _, r := range g.records {
		if r.present && r.pod != nil && r.evidence == nil && r.permit == "" && listed[cache.ObjectName{Namespace: r.namespace, Name: r.name}] == nil {
			missing = append(missing, r.pod)
		}
	}
	return missing
}

// rewound reports whether the storage went back since the reflector's last list.
func (o *observedListerWatcher) rewound() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen != nil
}

// relisted: the reflector replaces all that it has by a list.
func (o *observedListerWatcher) relisted() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = nil
}

// follow watches on a storage that went back. first are the events to begin
// with. A server that has forgotten the resource version would make the reflector
// list, and the pods that the storage has lost would be killed after all; the
// list is made here instead. When that fails the reflector is told.
func (o *observedListerWatcher) follow(ctx context.Context, options metav1.ListOptions, first []watch.Event) (watch.Interface, error) {
	inner, err := o.lw.WatchWithContext(ctx, options)
	if isExpired(err) {
		first, options.ResourceVersion, err = o.resync(ctx)
		if err == nil {
			inner, err = o.lw.WatchWithContext(ctx, options)
		}
	}
	if err != nil {
		return nil, err
	}
	out := make(chan watch.Event)
	proxy := watch.NewProxyWatcher(out)
	send := func(events ...watch.Event) bool {
		for _, event := range events {
			select {
			case out <- event:
			case <-proxy.StopChan():
				return false
			}
		}
		return true
	}
	go func() {
		defer close(out)
		defer func() { inner.Stop() }()
		if !send(first...) {
			return
		}
		for {
			select {
			case <-proxy.StopChan():
				return
			case event, ok := <-inner.ResultChan():
				if !ok {
					return
				}
				if event.Type == watch.Error && isExpired(apierrors.FromObject(event.Object)) {
					if events, version, err := o.resync(ctx); err == nil {
						options.ResourceVersion = version
						if next, err := o.lw.WatchWithContext(ctx, options); err == nil {
							inner.Stop()
							inner = next
							if !send(events...) {
								return
							}
							continue
						}
					}
				}
				o.observe(event)
				if !send(event) {
					return
				}
			}
		}
	}()
	return proxy, nil
}

func isExpired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// observe takes note of one event of a watch.
func (o *observedListerWatcher) observe(event watch.Event) {
	pod, ok := event.Object.(*v1.Pod)
	if !ok || event.Type == watch.Bookmark {
		return
	}
	o.guard.observe(pod)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.seen == nil:
	case event.Type == watch.Deleted:
		delete(o.seen, cache.MetaObjectToName(pod))
	default:
		o.seen[cache.MetaObjectToName(pod)] = pod
	}
}

// reportRewind tells people. It happens once per restored storage.
func (o *observedListerWatcher) reportRewind(from, to string) {
	klog.InfoS("The resource versions of the API server went back: its storage was restored or replaced. The kubelet follows it again; protected pods that it has lost are held", "from", from, "to", to)
	if recorder := o.guard.recorder; recorder != nil {
		recorder.Event(o.guard.nodeReference(), v1.EventTypeWarning, EventStorageWentBack,
			fmt.Sprintf("The resource versions of the API server went back from %s to %s: its storage was restored or replaced. Protected pods that it has lost are held.", from, to))
	}
}
