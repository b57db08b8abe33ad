package poddeletion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"kubelet-guard.io/pkg/admission"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// ManagedBy is the value of the label app.kubernetes.io/managed-by on records that
// the webhook has written.
const (
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "guard-webhook"
)

// recordTextLimit is that of the fields of a record, in bytes.
const recordTextLimit = 1024

// sameRequest is how old a record can be at most to be that of another review of the
// same delete. It is far below unusedAfter, so that the collector leaves the record
// alone until this delete is over.
const sameRequest = 10 * time.Second

// RecordRule writes the record of a delete that the pod's node may never see: one
// with grace period 0 removes the object at once, and a node that is cut off or whose
// kubelet does not run finds it gone later, which is no evidence of a deletion.
//
// It comes after Rule in its entry, so that it sees what really passes, also by
// override and in audit mode. It is the only rule for the eviction subresource, which
// deletes the pod without another review and spends the budget itself.
type RecordRule struct {
	reservations *Reservations
	pods         coreclient.PodsGetter
	records      *Records
	lifetime     time.Duration
	clock        clock.PassiveClock
}

// NewRecordRule returns the rule PodDeletionRecord. Pods are read whole, in the encoding of the
// typed client.
func NewRecordRule(reservations *Reservations, pods coreclient.PodsGetter, records *Records, lifetime time.Duration, clock clock.PassiveClock) (*RecordRule, error) {
	if lifetime < time.Hour {
		return nil, fmt.Errorf("the lifetime of records is %s; it must be at least an hour, and longer than a node can be cut off", lifetime)
	}
	return &RecordRule{reservations: reservations, pods: pods, records: records, lifetime: lifetime, clock: clock}, nil
}

// Review judges the request.
func (r *RecordRule) Review(ctx context.Context, request *admission.Request) admission.Decision {
	pod, options, err := r.deletion(ctx, request)
	if err != nil {
		return admission.Fail("%w", err)
	}
	if pod == nil || !needsRecord(pod, options, request) {
		return admission.Allow()
	}
	// kubectl drain --dry-run=server has it in the body of the eviction only.
	if request.IsDryRun() || len(options.DryRun) > 0 {
		return admission.Allow().Annotate("record", "none, dry run")
	}
	if request.SubResource == "eviction" {
		// An eviction that its budget will refuse deletes nothing, and is tried again and
		// again by a drain: the pod must not have a record all that time.
		outcome, err := r.reservations.Evictable(ctx, pod)
		switch {
		case err != nil:
			return admission.Fail("%w", err)
		case passes(pod, request) == "" && outcome.refuses():
			return admission.Allow().Annotate("record", "none, the eviction will be refused")
		}
	}
	if request.Operation == admissionv1.Delete {
		// The pod of a review may be old, or made up by a client that is not the
		// API server: a record is evidence, and ends a pod whose object is gone.
		live, err := r.pod(ctx, request)
		switch {
		case apierrors.IsNotFound(err), err == nil && live.UID != pod.UID:
			return admission.Allow().Annotate("record", "none, the pod is gone")
		case err != nil:
			return admission.Fail("read pod %s, whose forced delete needs a record: %w", request.Key(), err)
		case !admission.IsProtected(live):
			return admission.Allow().Annotate("record", "none, the pod is not protected")
		}
		pod = live
	}
	record := newRecord(pod, request, r.clock.Now().Add(r.lifetime))
	if err := r.records.Write(ctx, record); err != nil {
		return admission.Fail("write PodDeletion %s, without which the node of a pod that is deleted with grace period 0 may go on running it; without --grace-period=0 none is needed: %w", record.Name, err)
	}
	return admission.Allow().Annotate("record", record.Name)
}

// pod reads the pod of the request from the API server.
func (r *RecordRule) pod(ctx context.Context, request *admission.Request) (*corev1.Pod, error) {
	key := request.Key()
	return r.pods.Pods(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
}

// deletion returns the pod and how it is to be deleted. The pod is nil when the
// request is about none that is protected.
func (r *RecordRule) deletion(ctx context.Context, request *admission.Request) (*corev1.Pod, *metav1.DeleteOptions, error) {
	pod, options := &corev1.Pod{}, &metav1.DeleteOptions{}
	if request.Operation == admissionv1.Delete {
		if err := request.DecodeOldObject(pod); err != nil {
			return nil, nil, err
		}
		if len(request.Options.Raw) > 0 {
			if err := request.DecodeOptions(options); err != nil {
				return nil, nil, err
			}
		}
	} else {
		eviction := &policyv1.Eviction{}
		if err := request.DecodeObject(eviction); err != nil {
			return nil, nil, err
		}
		if eviction.DeleteOptions != nil {
			options = eviction.DeleteOptions
		}
		var err error
		if pod, err = r.pod(ctx, request); apierrors.IsNotFound(err) {
			return nil, nil, nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("read pod %s: %w", request.Key(), err)
		}
		if uid := ptr.Deref(options.Preconditions, metav1.Preconditions{}).UID; uid != nil && *uid != pod.UID {
			return nil, nil, nil // it will be refused: another pod is meant
		}
	}
	if !admission.IsProtected(pod) {
		return nil, nil, nil
	}
	return pod, options, nil
}

// needsRecord reports whether the object of the pod disappears at once, while its
// node may still have to stop something.
func needsRecord(pod *corev1.Pod, options *metav1.DeleteOptions, request *admission.Request) bool {
	switch {
	case pod.Spec.NodeName == "", admission.IsMirror(pod):
		return false
	case request.IsNode(pod.Spec.NodeName) && pod.DeletionTimestamp != nil:
		// Its last delete: it has stopped everything.
		return false
	case isRejected(pod):
		return false
	case admission.IsFinished(pod):
		// The phase alone may come from elsewhere: the pod garbage collector writes
		// Failed for a node that is lost. A finished pod is deleted at once.
		return !allTerminated(pod)
	case options.GracePeriodSeconds != nil:
		return *options.GracePeriodSeconds == 0
	case pod.DeletionTimestamp != nil:
		return ptr.Deref(pod.DeletionGracePeriodSeconds, 0) == 0
	}
	return ptr.Deref(pod.Spec.TerminationGracePeriodSeconds, 0) == 0
}

// isRejected reports whether the pod's node has never started it. Where the pod garbage
// collector wrote Failed it has left a condition, or found the pod terminating with a
// grace period. The delete of a rejected pod is reviewed a second time when it has none.
func isRejected(pod *corev1.Pod) bool {
	if pod.Status.Phase != corev1.PodFailed || ptr.Deref(pod.DeletionGracePeriodSeconds, 0) > 0 ||
		len(pod.Status.InitContainerStatuses)+len(pod.Status.ContainerStatuses) > 0 {
		return false
	}
	return !slices.ContainsFunc(pod.Status.Conditions, func(condition corev1.PodCondition) bool {
		return condition.Type == corev1.DisruptionTarget
	})
}

// allTerminated reports whether the node has reported the end of every container.
func allTerminated(pod *corev1.Pod) bool {
	if len(pod.Status.ContainerStatuses) < len(pod.Spec.Containers) {
		return false
	}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, status := range statuses {
			if status.State.Running != nil || (status.State.Terminated == nil && status.ContainerID != "") {
				return false
			}
		}
	}
	return true
}

func newRecord(pod *corev1.Pod, request *admission.Request, expires time.Time) *guardv1alpha1.PodDeletion {
	how := "deleted"
	if request.SubResource == "eviction" {
		how = "evicted"
	}
	return &guardv1alpha1.PodDeletion{
		ObjectMeta: metav1.ObjectMeta{
			Name:   string(pod.UID),
			Labels: map[string]string{ManagedByLabel: ManagedBy},
		},
		Spec: guardv1alpha1.PodDeletionSpec{
			Namespace:   pod.Namespace,
			Name:        pod.Name,
			NodeName:    pod.Spec.NodeName,
			Reason:      how + " with grace period 0",
			RequestedBy: cut(request.UserInfo.Username, recordTextLimit),
			Expires:     ptr.To(metav1.NewTime(expires)),
		},
	}
}

// cut returns at most the first bytes of the text, as whole characters.
func cut(text string, limit int) string {
	return strings.ToValidUTF8(text[:min(len(text), limit)], "")
}

// lastRequested is when the deletion of the record was last requested.
func lastRequested(record *guardv1alpha1.PodDeletion) time.Time {
	last := record.CreationTimestamp.Time
	if at, err := time.Parse(time.RFC3339, record.Annotations[guardv1alpha1.RequestedAtAnnotation]); err == nil && at.After(last) {
		last = at
	}
	return last
}

// Records are the records at the API server. It is safe for concurrent use.
type Records struct {
	client client.Client
	reader client.Reader
	clock  clock.PassiveClock
}

// NewRecords returns records that are written with the client and read with a reader
// that does not cache.
func NewRecords(client client.Client, reader client.Reader, clock clock.PassiveClock) *Records {
	return &Records{client: client, reader: reader, clock: clock}
}

// writeAttempts bounds how often a record may come and go under a writer's eyes.
const writeAttempts = 3

// Write returns when a record of this name exists that the collector will not take for unused before
// the delete is over, and that lasts at least half as long as the given one.
func (r *Records) Write(ctx context.Context, record *guardv1alpha1.PodDeletion) error {
	for range writeAttempts {
		err := r.client.Create(ctx, record.DeepCopy())
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		// Another review of this delete wrote it, or one before that did not happen; then
		// the collector may be about to remove it.
		present := &guardv1alpha1.PodDeletion{}
		if err := r.reader.Get(ctx, client.ObjectKeyFromObject(record), present); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return err
		}
		if lapses(present, record, r.clock.Now()) {
			// The spec of a record cannot be changed.
			err := r.client.Delete(ctx, present, client.Preconditions{UID: &present.UID, ResourceVersion: &present.ResourceVersion})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				return fmt.Errorf("replace the one that expires at %s: %w", present.Spec.Expires.UTC().Format(time.RFC3339), err)
			}
			continue
		}
		if age := r.clock.Since(lastRequested(present)); age >= 0 && age < sameRequest {
			return nil
		}
		touched := present.DeepCopy()
		metav1.SetMetaDataAnnotation(&touched.ObjectMeta, guardv1alpha1.RequestedAtAnnotation, r.clock.Now().UTC().Format(time.RFC3339))
		if err := r.client.Patch(ctx, touched, client.MergeFrom(present)); !apierrors.IsNotFound(err) {
			return err
		}
	}
	return errors.New("it was changed or removed by others each time; try again")
}

// lapses reports whether the record that is present has expired, or has less than half
// of the time left that the wanted one has.
func lapses(present, wanted *guardv1alpha1.PodDeletion, now time.Time) bool {
	if present.Spec.Expires == nil {
		return false
	}
	left := present.Spec.Expires.Sub(now)
	return left <= 0 || (wanted.Spec.Expires != nil && left < wanted.Spec.Expires.Sub(now)/2)
}
