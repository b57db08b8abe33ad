package guard

import (
	"context"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// PodDeletion records: cluster-scoped, named by the UID of the pod whose deletion
// they prove. manifests/crds has their definition.
const (
	deletionsPath = "/apis/kubelet-guard.io/v1alpha1/poddeletions"

	// lookupInterval is how often the record of a held pod is looked for, and
	// maxLookupInterval how far errors stretch it.
	lookupInterval    = 10 * time.Second
	maxLookupInterval = 30 * time.Second
	lookupTimeout     = 5 * time.Second
)

// Deletions tells whether a PodDeletion record exists.
type Deletions interface {
	// Recorded reports whether the deletion of the pod is recorded.
	Recorded(ctx context.Context, uid types.UID) (bool, error)
}

// NewDeletions returns Deletions that asks the API server with the client's
// credentials. They need the verb get on poddeletions, and nothing else.
func NewDeletions(client rest.Interface) Deletions { return deletionClient{client} }

var forbiddenOnce sync.Once

type deletionClient struct{ client rest.Interface }

func (d deletionClient) Recorded(ctx context.Context, uid types.UID) (bool, error) {
	err := d.client.Get().AbsPath(deletionsPath, string(uid)).Do(ctx).Error()
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsNotFound(err):
		return false, nil
	case apierrors.IsForbidden(err):
		// A cluster without the definition and its role, most likely.
		forbiddenOnce.Do(func() {
			klog.InfoS("This node may not read PodDeletion records: held pods can be released on the node only. Apply the project's manifests to change that", "err", err)
		})
		return false, nil
	}
	return false, err
}

// lookUpDeletions asks for the records of held pods whose object is gone. The
// deletion of a pod that has its object shows in the object. It returns the pods
// that have evidence now.
func (g *Guard) lookUpDeletions(ctx context.Context) []types.UID {
	if g.deletions == nil {
		return nil
	}
	now := g.clock.Now()
	var due []*podRecord
	g.mu.Lock()
	for _, r := range g.records {
		if len(r.holds) > 0 && !r.present && r.evidence == nil && !now.Before(r.nextLookup) {
			due = append(due, r)
		}
	}
	g.mu.Unlock()
	var released []types.UID
	for _, r := range due {
		ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
		recorded, err := g.deletions.Recorded(ctx, r.uid)
		cancel()
		wait := lookupInterval
		if err != nil {
			wait = min(max(2*r.lookupWait, lookupInterval), maxLookupInterval)
			g.metrics.errors.WithLabelValues(opDeletion).Inc()
			klog.V(2).InfoS("Cannot look up whether the deletion of a held pod is recorded", "pod", klog.KRef(r.namespace, r.name), "podUID", r.uid, "err", err)
		}
		g.mu.Lock()
		r.lookupWait, r.nextLookup = wait, g.clock.Now().Add(wait)
		g.mu.Unlock()
		if recorded && g.release(r.uid, PodDeletionRecord) {
			released = append(released, r.uid)
		}
		if ctx.Err() != nil && err != nil {
			// The API server does not answer; the others would time out, too.
			break
		}
	}
	return released
}

// Vanished reports whether the pod is held because its object is gone. What the
// kubelet has to read from the API for such a pod it cannot read.
func (g *Guard) Vanished(uid types.UID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.records[uid]
	return r != nil && r.evidence == nil && r.holds[PodVanished] != nil
}

// mountPatience is how long a sync of a vanished pod waits for its volumes.
const mountPatience = 3 * time.Second

// MountContext returns the context for waiting for the volumes of a pod: of a
// vanished one, some can never be made, and the sync has to go on.
func (g *Guard) MountContext(ctx context.Context, uid types.UID) (context.Context, context.CancelFunc) {
	if !g.Vanished(uid) {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, mountPatience, fmt.Errorf("the object of pod %s is gone from the API", uid))
}
