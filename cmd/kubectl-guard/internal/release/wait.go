package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kubelet-guard.io/cmd/internal/printer"
	"kubelet-guard.io/cmd/kubectl-guard/internal/factory"
	"kubelet-guard.io/cmd/kubectl-guard/internal/nodes"
)

// watchedRelease is a release whose effect is awaited.
type watchedRelease struct {
	released
	start time.Time
	// last is what the kubelet reported last, for a wait that ends without success.
	last string
}

func (w *watchedRelease) key() string { return w.Namespace + "/" + w.Name }

// await queries the nodes concerned until all pods have ended, or the timeout.
func (o *options) await(ctx context.Context, c *factory.Clients, watches []*watchedRelease) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	ticker := time.NewTicker(o.Poll)
	defer ticker.Stop()
	for {
		open := map[string][]*watchedRelease{}
		for _, w := range watches {
			if w.Ended == nil && w.Node != "" {
				open[w.Node] = append(open[w.Node], w)
			}
		}
		if len(open) == 0 {
			return nil
		}
		var list []corev1.Node
		for name := range open {
			list = append(list, corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
		responses := c.Nodes.Each(ctx, list)
		// A query that the end of the wait cut off proves nothing about the node.
		if ctx.Err() == nil {
			for _, response := range responses {
				for _, w := range open[response.Node.Name] {
					o.observe(w, response)
				}
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return o.unfinished(ctx, watches)
		}
	}
}

// observe compares a release with the state that the kubelet reports now.
func (o *options) observe(w *watchedRelease, response nodes.Response) {
	if response.Pods == nil {
		w.last = fmt.Sprintf("node %s: %s: %s", w.Node, response.State, response.Detail)
		return
	}
	elapsed := o.Now().Sub(w.start)
	for _, pod := range response.Pods.Items {
		if pod.UID != w.UID {
			continue
		}
		w.last = fmt.Sprintf("node %s: %s", w.Node, pod.State)
		if pod.Evidence != nil && w.Taken == nil {
			took := elapsed.Seconds()
			w.Taken = &took
			o.print("pod/%s: kubelet of %s accepted it after %s (%s)", w.Name, w.Node, printer.Seconds(elapsed), pod.Evidence.Kind)
		}
		return
	}
	took := elapsed.Seconds()
	w.Ended = &took
	if w.Taken == nil {
		// It ended between two queries.
		w.Taken = &took
	}
	o.print("pod/%s: gone from %s after %s", w.Name, w.Node, printer.Seconds(elapsed))
}

// unfinished returns what had not happened when the wait ended.
func (o *options) unfinished(ctx context.Context, watches []*watchedRelease) error {
	var errs []error
	for _, w := range watches {
		switch {
		case w.Ended != nil || w.Node == "":
		case w.Taken != nil:
			errs = append(errs, fmt.Errorf("pod %s has not ended within %s; its kubelet has the evidence and is terminating it (last seen: %s)", w.key(), o.timeout, w.last))
		default:
			errs = append(errs, fmt.Errorf("pod %s: its kubelet has not taken the record within %s (last seen: %s); the record stays and will be found. If not, see that nodes may get poddeletions (kubectl apply -k manifests/) and that their guard is of a release that looks for records", w.key(), o.timeout, w.last))
		}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		errs = append(errs, errors.New("interrupted; records that were written stay"))
	}
	return errors.Join(errs...)
}
