package poddeletion

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

const (
	// unusedAfter is how long after the last request a pod that still lives shows that
	// its delete did not happen. It is longer than the API server works on a request
	// (60 s by default), with room for clocks that differ.
	unusedAfter = 90 * time.Second
	// recheckPeriod bounds how long a record is not checked again: a pod may come back with the
	// restored data of the API server, and must not find itself disarmed.
	recheckPeriod = time.Hour
)

// removal is why a record is removed. The zero value means that it stays.
type removal string

const (
	removeExpired removal = "Expired"
	removeUnused  removal = "Unused"
)

// judgeRecord returns whether and why the record may go, and if it stays, when to judge
// again. The pod is the object of the record's namespace and name, nil when there is
// none.
func judgeRecord(record *guardv1alpha1.PodDeletion, pod *metav1.PartialObjectMetadata, now time.Time) (removal, time.Duration) {
	again := recheckPeriod
	if expires := record.Spec.Expires; expires != nil {
		left := expires.Sub(now)
		if left <= 0 {
			return removeExpired, 0
		}
		again = min(again, left)
	}
	// A record that was written by hand for a living pod is meant to stay.
	if record.Labels[ManagedByLabel] != ManagedBy {
		return "", again
	}
	if wait := lastRequested(record).Add(unusedAfter).Sub(now); wait > 0 {
		return "", min(again, wait)
	}
	if pod != nil && pod.UID == types.UID(record.Name) && pod.DeletionTimestamp == nil {
		return removeUnused, 0
	}
	return "", again
}

// Collector removes records that have expired, and those of the webhook whose pod was
// not deleted after all: something else refused the delete, or the API server ended
// in between. It must run once in a cluster.
type Collector struct {
	client client.Client
	reader client.Reader
	clock  clock.PassiveClock
}

// NewCollector returns a collector that reads pods with a reader that does not cache.
func NewCollector(client client.Client, reader client.Reader, clock clock.PassiveClock) *Collector {
	return &Collector{client: client, reader: reader, clock: clock}
}

// SetupWithManager makes the manager run the collector while it leads.
func (c *Collector) SetupWithManager(manager ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(manager).
		Named("poddeletion-collector").
		For(&guardv1alpha1.PodDeletion{}).
		Complete(c)
}

// Reconcile implements reconcile.Reconciler.
func (c *Collector) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	record := &guardv1alpha1.PodDeletion{}
	if err := c.client.Get(ctx, request.NamespacedName, record); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	why, again := judgeRecord(record, nil, c.clock.Now())
	if why == "" && record.Labels[ManagedByLabel] == ManagedBy {
		pod, err := c.pod(ctx, record)
		if err != nil {
			return ctrl.Result{}, err
		}
		why, again = judgeRecord(record, pod, c.clock.Now())
	}
	if why == "" {
		return ctrl.Result{RequeueAfter: again}, nil
	}
	// The resource version: a delete that is requested right now marks the record.
	err := c.client.Delete(ctx, record, client.Preconditions{UID: &record.UID, ResourceVersion: ptr.To(record.ResourceVersion)})
	switch {
	case apierrors.IsNotFound(err):
		return ctrl.Result{}, nil
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: unusedAfter}, nil
	case err != nil:
		return ctrl.Result{}, fmt.Errorf("remove PodDeletion %s: %w", record.Name, err)
	}
	klog.FromContext(ctx).Info("Removed a record", "podDeletion", record.Name, "reason", why,
		"pod", klog.KRef(record.Spec.Namespace, record.Spec.Name))
	return ctrl.Result{}, nil
}

// pod returns the metadata of the record's pod, nil when it is gone.
func (c *Collector) pod(ctx context.Context, record *guardv1alpha1.PodDeletion) (*metav1.PartialObjectMetadata, error) {
	key := types.NamespacedName{Namespace: record.Spec.Namespace, Name: record.Spec.Name}
	pod, err := admission.Metadata(ctx, c.reader, corev1.SchemeGroupVersion.WithKind("Pod"), key)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pod %s of PodDeletion %s: %w", key, record.Name, err)
	}
	return pod, nil
}
