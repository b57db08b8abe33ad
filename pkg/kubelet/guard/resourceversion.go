package guard

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// Storage rollback: the API server's resource version moved backwards.
//
// A watch names the newest resource version that the kubelet has seen. When etcd was
// restored from a backup or replaced by an empty one, the server has not reached that
// version, and the watch is silent until it has: perhaps for hours, new pods of the node
// are not started and deletions are not seen. A relist would end that, but it would kill
// every pod that the storage has lost, and the stock kubelet does not relist here.
//
// So before a watch the guard compares the server's version. When the server is behind,
// the protected pods that it has are passed to the kubelet as modified, and the watch
// continues from there. Protected pods that it does not have are passed as deleted, so
// that they are held and seen to be held. A restored object that is older than its pod's
// label or newest image is not a declaration, see older.go.
//
// The kubelet receives the same events about unprotected pods as the stock kubelet: none,
// until the server has reached the version that the kubelet had seen.

// EventStorageRolledBack is a Warning on the node.
const EventStorageRolledBack = "StorageRolledBack"

const (
	// versionPatience is how long a watch waits for the server's version, versionTimeout
	// how long a retry next to an open watch does.
	versionPatience = 2 * time.Second
	versionTimeout  = 10 * time.Second
	// versionRetry is how long after a failed comparison it is retried, and how long
	// after a list that led nowhere another is made. It doubles up to maxVersionRetry.
	versionRetry    = 5 * time.Second
	maxVersionRetry = time.Minute
	// rollbackReportInterval is the least time between two events on the node.
	rollbackReportInterval = 10 * time.Minute
)

// behind reports whether the server has not reached the resource version. It lists at
// most one pod of this node. A server with consistent reads from its cache serves that
// from there (ConsistentListFromCache, 1.34 and later), others from etcd.
func (o *observedListerWatcher) behind(ctx context.Context, version string, timeout time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
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
	behind, err := o.behind(ctx, options.ResourceVersion, versionPatience)
	if behind {
		events, version, listErr := o.resync(ctx, true)
		if listErr == nil {
			o.reportRollback(options.ResourceVersion, version)
			o.raiseFloor(options.ResourceVersion)
			options.ResourceVersion = version
			return o.follow(ctx, options, events, false)
		}
		err = listErr
		klog.ErrorS(err, "The storage of the API server was rolled back, but its pods cannot be listed yet")
	}
	if err != nil || o.rolledBack() {
		return o.follow(ctx, options, nil, err != nil)
	}
	w, err := o.lw.WatchWithContext(ctx, options)
	if err != nil {
		return w, err
	}
	return watch.Filter(w, func(event watch.Event) (watch.Event, bool) { o.observe(event); return event, true }), nil
}

// retryBehind retries the comparison that failed before a watch was opened, and closes
// silent when the server turns out to be behind, so that the watch will be silent. It
// ends with the context.
func (o *observedListerWatcher) retryBehind(ctx context.Context, version string, silent chan<- struct{}) {
	for after := versionRetry; ; after = min(2*after, maxVersionRetry) {
		select {
		case <-ctx.Done():
			return
		case <-o.guard.clock.After(jitter(after)):
		}
		switch behind, err := o.behind(ctx, version, versionTimeout); {
		case behind:
			close(silent)
			return
		case err == nil, apierrors.IsForbidden(err), errors.As(err, &resourceversion.InvalidResourceVersion{}):
			return
		}
	}
}

// jitter keeps the kubelets of a cluster from retrying all at once.
func jitter(d time.Duration) time.Duration { return wait.Jitter(d, 1) }

// resync lists what the server has and returns it as events, and the resource version to
// continue the watch from. rolledBack: the server is behind what the kubelet has seen, so
// that the absence of a pod means nothing. Otherwise it has compacted its history, and
// what it has shown and no longer has is deleted.
func (o *observedListerWatcher) resync(ctx context.Context, rolledBack bool) ([]watch.Event, string, error) {
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
		if !o.guard.concerns(&pods.Items[i]) {
			continue
		}
		pod := pods.Items[i].DeepCopy()
		o.guard.observe(pod)
		seen[cache.MetaObjectToName(pod)] = pod
		events = append(events, watch.Event{Type: watch.Modified, Object: pod})
	}
	o.mu.Lock()
	before := o.seen
	o.seen = seen
	o.mu.Unlock()
	if rolledBack {
		before = nil
	}
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
	// The versions of single pods are not sorted; this one counts.
	bookmark := &v1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: pods.ResourceVersion}}
	return append(events, watch.Event{Type: watch.Bookmark, Object: bookmark}), pods.ResourceVersion, nil
}

// concerns reports whether a pod is, or was, protected.
func (g *Guard) concerns(pod *v1.Pod) bool {
	if g.protectsObject(pod) {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.records[pod.UID]
	return known
}

// hiddenByStock reports whether the stock kubelet would not receive an event after a
// storage rollback: its watch waits until the server has reached the version that it has
// seen.
func (o *observedListerWatcher) hiddenByStock(event watch.Event) bool {
	pod, ok := event.Object.(*v1.Pod)
	if !ok || event.Type == watch.Bookmark || o.guard.concerns(pod) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen != nil && o.floor != "" && !isOlder(o.floor, pod.ResourceVersion)
}

// missingFrom returns the protected pods that are gone when the API has only the given
// ones. A pod of the same name replaces another, which needs no event of its own.
func (g *Guard) missingFrom(listed map[cache.ObjectName]*v1.Pod) []*v1.Pod {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.allowedCauses[PodVanished] {
		return nil
	}
	var missing []*v1.Pod
	for _, r := range g.records {
		if r.present && r.pod != nil && listed[cache.ObjectName{Namespace: r.namespace, Name: r.name}] == nil {
			missing = append(missing, r.pod)
		}
	}
	return missing
}

// rolledBack reports whether the storage was rolled back since the reflector's last list.
func (o *observedListerWatcher) rolledBack() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen != nil
}

// raiseFloor records the version that the kubelet had seen before the storage rollback.
func (o *observedListerWatcher) raiseFloor(version string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.floor == "" || isOlder(o.floor, version) {
		o.floor = version
	}
}

// relisted: the reflector replaces all that it has by a list.
func (o *observedListerWatcher) relisted() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen, o.floor = nil, ""
}

// follow watches after a storage rollback, and while it is unknown whether there was one
// (unknown). first are the events to start with. A server that has compacted the
// resource version would make the reflector list, and the pods that the storage has lost
// would be killed after all; the list is made here instead. When that fails the
// reflector gets the error.
func (o *observedListerWatcher) follow(ctx context.Context, options metav1.ListOptions, first []watch.Event, unknown bool) (watch.Interface, error) {
	inner, err := o.lw.WatchWithContext(ctx, options)
	if isExpired(err) && o.rolledBack() {
		var more []watch.Event
		more, options.ResourceVersion, err = o.resync(ctx, false)
		first = append(first, more...)
		if err == nil {
			inner, err = o.lw.WatchWithContext(ctx, options)
		}
	}
	if err != nil {
		return nil, err
	}
	out := make(chan watch.Event)
	proxy := watch.NewProxyWatcher(out)
	go func() {
		defer close(out)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		silent := make(chan struct{})
		if unknown {
			go o.retryBehind(ctx, options.ResourceVersion, silent)
		}
		o.forward(ctx, options, inner, proxy.StopChan(), silent, out, first)
	}()
	return proxy, nil
}

// forward passes events on until one of the two watches ends, or the inner one turns out
// to be silent. It stops the inner watch.
func (o *observedListerWatcher) forward(ctx context.Context, options metav1.ListOptions, inner watch.Interface, stop, silent <-chan struct{}, out chan<- watch.Event, first []watch.Event) {
	defer func() { inner.Stop() }()
	send := func(events ...watch.Event) bool {
		for _, event := range events {
			select {
			case out <- event:
			case <-stop:
				return false
			}
		}
		return true
	}
	if !send(first...) {
		return
	}
	// fruitless counts lists after which the server had compacted its history again.
	for fruitless := 0; ; {
		select {
		case <-stop:
			return
		case <-silent:
			return
		case event, ok := <-inner.ResultChan():
			if !ok {
				return
			}
			if event.Type != watch.Error {
				fruitless = 0
			} else if isExpired(apierrors.FromObject(event.Object)) && o.rolledBack() {
				if fruitless > 0 {
					select {
					case <-o.guard.clock.After(jitter(min(versionRetry<<min(fruitless-1, 4), maxVersionRetry))):
					case <-stop:
						return
					}
				}
				fruitless++
				if events, version, err := o.resync(ctx, false); err == nil {
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
			if o.hiddenByStock(event) {
				continue
			}
			if !send(event) {
				return
			}
		}
	}
}

func isExpired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// observe records one event of a watch.
func (o *observedListerWatcher) observe(event watch.Event) {
	pod, ok := event.Object.(*v1.Pod)
	if !ok || event.Type == watch.Bookmark {
		return
	}
	o.guard.observe(pod)
	concerns := o.guard.concerns(pod)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.seen == nil, !concerns:
	case event.Type == watch.Deleted:
		delete(o.seen, cache.MetaObjectToName(pod))
	default:
		o.seen[cache.MetaObjectToName(pod)] = pod
	}
}

// reportRollback logs a storage rollback, and reports it by an event on the node.
func (o *observedListerWatcher) reportRollback(from, to string) {
	klog.InfoS("The resource version of the API server moved backwards: its storage was restored or replaced. The kubelet follows it again; protected pods that it has lost are held", "from", from, "to", to)
	now := o.guard.clock.Now()
	o.mu.Lock()
	again := !o.reported.IsZero() && now.Sub(o.reported) < rollbackReportInterval
	if !again {
		o.reported = now
	}
	o.mu.Unlock()
	if !again {
		o.guard.writeSoon(o.guard.nodeReference(), nil, v1.EventTypeWarning, EventStorageRolledBack,
			fmt.Sprintf("The resource version of the API server moved backwards from %s to %s: its storage was restored or replaced. Protected pods that it has lost are held.", from, to))
	}
}
