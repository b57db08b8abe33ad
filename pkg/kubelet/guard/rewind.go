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

// A storage that went back.
//
// A watch names the newest resource version that the kubelet has seen. When etcd
// was restored from a backup or replaced by an empty one, the server has not come
// that far, and the watch is silent until it has: for hours perhaps, new pods of
// the node are not started and deletions are not seen. A relist would end that,
// but it would kill every pod that the storage has lost, and the stock kubelet
// does not relist here.
//
// So before a watch the server is asked how far it is. When it is behind, the protected
// pods that it has are shown to the kubelet as modified, and the watch goes on from
// there. Protected pods that it does not have are shown as deleted, so that they are
// held and seen to be held. A restored object that is older than its pod's label or
// newest image is not a declaration, see older.go.
//
// About unprotected pods the kubelet hears what the stock kubelet would hear: nothing,
// until the server has come to the version that the kubelet had seen.

// EventStorageWentBack is a Warning on the node.
const EventStorageWentBack = "StorageWentBack"

const (
	// versionPatience is how long a watch waits for the answer how far the server is,
	// versionTimeout how long a question that is repeated behind an open watch does.
	versionPatience = 2 * time.Second
	versionTimeout  = 10 * time.Second
	// versionRetry is how long after an unanswered question it is repeated, and how
	// long after a list that led nowhere another is made. It doubles up to
	// maxVersionRetry.
	versionRetry    = 5 * time.Second
	maxVersionRetry = time.Minute
	// rewindReports is the least time between two events on the node.
	rewindReports = 10 * time.Minute
)

// behind reports whether the server has not come to the resource version. The
// question is a list of at most one pod of this node. A server with consistent reads
// from its cache answers it from there (ConsistentListFromCache, 1.34 and later),
// others from etcd.
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
			o.reportRewind(options.ResourceVersion, version)
			o.raiseFloor(options.ResourceVersion)
			options.ResourceVersion = version
			return o.follow(ctx, options, events, false)
		}
		err = listErr
		klog.ErrorS(err, "The storage of the API server went back, but its pods cannot be listed yet")
	}
	if err != nil || o.rewound() {
		return o.follow(ctx, options, nil, err != nil)
	}
	w, err := o.lw.WatchWithContext(ctx, options)
	if err != nil {
		return w, err
	}
	return watch.Filter(w, func(event watch.Event) (watch.Event, bool) { o.observe(event); return event, true }), nil
}

// askAgain repeats the question that was not answered before a watch was opened, and
// closes silent when the answer is that the watch will be. It ends with the context.
func (o *observedListerWatcher) askAgain(ctx context.Context, version string, silent chan<- struct{}) {
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

// jitter keeps the kubelets of a cluster from asking all at once.
func jitter(d time.Duration) time.Duration { return wait.Jitter(d, 1) }

// resync lists what the server has and returns it as events, and the resource
// version from which to watch on. wentBack: the server is behind what the kubelet
// has seen, so that nothing can be said about a pod that it does not have. Otherwise
// it has forgotten what happened since, and what it has shown and has no more is
// deleted.
func (o *observedListerWatcher) resync(ctx context.Context, wentBack bool) ([]watch.Event, string, error) {
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
	if wentBack {
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
	// The versions of single pods come in any order; this one counts.
	bookmark := &v1.Pod{ObjectMeta: metav1.ObjectMeta{ResourceVersion: pods.ResourceVersion}}
	return append(events, watch.Event{Type: watch.Bookmark, Object: bookmark}), pods.ResourceVersion, nil
}

// concerns reports whether a pod is the guard's business: it is labelled, or it was.
func (g *Guard) concerns(pod *v1.Pod) bool {
	if g.protectsObject(pod) {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.records[pod.UID]
	return known
}

// unheard reports whether the stock kubelet would not hear of an event after the
// storage went back: its watch waits until the server has come to the version that it
// has seen.
func (o *observedListerWatcher) unheard(event watch.Event) bool {
	pod, ok := event.Object.(*v1.Pod)
	if !ok || event.Type == watch.Bookmark || o.guard.concerns(pod) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen != nil && o.floor != "" && !isOlder(o.floor, pod.ResourceVersion)
}

// missingFrom returns the protected pods that are gone when the API has only the
// given ones. A pod of the same name takes the place of another, so that one needs no
// event of its own.
func (g *Guard) missingFrom(listed map[cache.ObjectName]*v1.Pod) []*v1.Pod {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.exempt[PodVanished] {
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

// rewound reports whether the storage went back since the reflector's last list.
func (o *observedListerWatcher) rewound() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen != nil
}

// raiseFloor takes note of the version that the kubelet had seen when the storage
// went back.
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

// follow watches while it is not known whether the storage went back (unanswered),
// and after it did. first are the events to begin with. A server that has forgotten
// the resource version would make the reflector list, and the pods that the storage
// has lost would be killed after all; the list is made here instead. When that fails
// the reflector is told.
func (o *observedListerWatcher) follow(ctx context.Context, options metav1.ListOptions, first []watch.Event, unanswered bool) (watch.Interface, error) {
	inner, err := o.lw.WatchWithContext(ctx, options)
	if isExpired(err) && o.rewound() {
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
		if unanswered {
			go o.askAgain(ctx, options.ResourceVersion, silent)
		}
		o.forward(ctx, options, inner, proxy.StopChan(), silent, out, first)
	}()
	return proxy, nil
}

// forward hands events on until one of the two ends, or the watch turns out to be
// silent. It stops the inner watch.
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
	// fruitless counts lists after which the server knew nothing again.
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
			} else if isExpired(apierrors.FromObject(event.Object)) && o.rewound() {
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
			if o.unheard(event) {
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

// observe takes note of one event of a watch.
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

// reportRewind tells people.
func (o *observedListerWatcher) reportRewind(from, to string) {
	klog.InfoS("The resource versions of the API server went back: its storage was restored or replaced. The kubelet follows it again; protected pods that it has lost are held", "from", from, "to", to)
	now := o.guard.clock.Now()
	o.mu.Lock()
	again := !o.reported.IsZero() && now.Sub(o.reported) < rewindReports
	if !again {
		o.reported = now
	}
	o.mu.Unlock()
	if !again {
		o.guard.writeSoon(o.guard.nodeReference(), nil, v1.EventTypeWarning, EventStorageWentBack,
			fmt.Sprintf("The resource versions of the API server went back from %s to %s: its storage was restored or replaced. Protected pods that it has lost are held.", from, to))
	}
}
