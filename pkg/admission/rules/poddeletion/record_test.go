package poddeletion

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	corefake "k8s.io/client-go/kubernetes/fake"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	testclock "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

func TestDeletesThatNeedARecord(t *testing.T) {
	const none = -1
	namespaces := authenticationv1.UserInfo{Username: namespaceController}
	noGrace := func(pod *corev1.Pod) { pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](0) }
	for name, test := range map[string]struct {
		pod   *corev1.Pod
		user  authenticationv1.UserInfo
		grace int64
		want  bool
	}{
		"graceful":                                 {newPod(), ordinary, none, false},
		"with another grace period":                {newPod(), ordinary, 5, false},
		"forced":                                   {newPod(), ordinary, 0, true},
		"the pod itself wants no grace period":     {newPod(noGrace), ordinary, none, true},
		"it wants none and is given some":          {newPod(noGrace), ordinary, 10, false},
		"terminating, forced":                      {newPod(deletedAt(noon)), ordinary, 0, true},
		"terminating, requested again":             {newPod(deletedAt(noon)), ordinary, none, false},
		"terminating, sooner":                      {newPod(deletedAt(noon)), ordinary, 5, false},
		"forced by its node":                       {newPod(deletedAt(noon)), ownNode, 0, false},
		"forced, scheduled and not started":        {newPod(inPhase(corev1.PodPending)), ordinary, 0, true},
		"forced, never scheduled":                  {newPod(func(pod *corev1.Pod) { pod.Spec.NodeName = "" }), ordinary, 0, false},
		"forced, mirror of a static pod":           {newPod(asMirror), ordinary, 0, false},
		"finished, all containers ended":           {newPod(inPhase(corev1.PodFailed), containersEnded), ordinary, 0, false},
		"said to have failed, a container runs":    {newPod(inPhase(corev1.PodFailed)), ordinary, none, true},
		"rejected by its node":                     {newPod(inPhase(corev1.PodFailed), withoutStatuses), ordinary, none, false},
		"said to have failed, nothing known of it": {newPod(inPhase(corev1.PodFailed), withoutStatuses, disrupted), ordinary, none, true},
		"the same, found terminating":              {newPod(inPhase(corev1.PodFailed), withoutStatuses, deletedAt(noon)), ordinary, 0, true},
		"rejected, in the second review":           {newPod(inPhase(corev1.PodFailed), withoutStatuses, deletedAt(noon), func(pod *corev1.Pod) { pod.DeletionGracePeriodSeconds = ptr.To[int64](0) }), ordinary, 0, false},
		"said to have succeeded, nothing known":    {newPod(inPhase(corev1.PodSucceeded), withoutStatuses), ordinary, none, true},
		"its init container runs":                  {newPod(inPhase(corev1.PodFailed), initContainerRuns), ordinary, none, true},
		"its namespace goes":                       {newPod(noGrace), namespaces, none, true},
	} {
		t.Run(name, func(t *testing.T) {
			options := metav1.DeleteOptions{}
			if test.grace != none {
				options.GracePeriodSeconds = &test.grace
			}
			require.Equal(t, test.want, needsRecord(test.pod, &options, deletion(t, test.pod, test.user, options)))
		})
	}
}

// podsAt returns the client of an API server with the pod, or without one.
func podsAt(pod *corev1.Pod) coreclient.PodsGetter {
	if pod == nil {
		return corefake.NewClientset().CoreV1()
	}
	return corefake.NewClientset(pod).CoreV1()
}

func eviction(t *testing.T, pod *corev1.Pod, options *metav1.DeleteOptions) *admission.Request {
	t.Helper()
	review := admissiontest.Review(t, admissionv1.Create, policyv1.SchemeGroupVersion.WithKind("Eviction"), "pods", nil,
		policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}, DeleteOptions: options})
	review.Resource.Group, review.SubResource, review.UserInfo = "", "eviction", ordinary
	return admission.NewRequest(review)
}

func TestRecordRule(t *testing.T) {
	clock := testclock.NewFakePassiveClock(noon)
	forced := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}
	record := guardv1alpha1.PodDeletionSpec{
		Namespace: "shop", Name: "web-1", NodeName: "node-1", RequestedBy: "ordinary", Reason: "deleted with grace period 0",
		Expires: ptr.To(metav1.NewTime(noon.Add(guardv1alpha1.PodDeletionLifetime))),
	}
	evicted := *record.DeepCopy()
	evicted.Reason = "evicted with grace period 0"
	unlabelled := newPod(func(pod *corev1.Pod) { pod.Labels = map[string]string{"app": "web"} })
	allowed := admission.Allow().Annotate("record", podUID)
	for name, test := range map[string]struct {
		request *admission.Request
		budgets []*policyv1.PodDisruptionBudget
		pod     *corev1.Pod
		want    admission.Decision
		records []guardv1alpha1.PodDeletionSpec
	}{
		"a graceful delete needs none": {request: deletion(t, newPod(), ordinary, metav1.DeleteOptions{}), want: admission.Allow()},
		"a forced delete":              {request: deletion(t, newPod(), ordinary, forced), pod: newPod(), want: allowed, records: []guardv1alpha1.PodDeletionSpec{record}},
		"a forced delete of a pod that the API does not have": {request: deletion(t, newPod(), ordinary, forced),
			want: admission.Allow().Annotate("record", "none, the pod is gone")},
		"a forced delete of a pod that has a successor": {request: deletion(t, newPod(), ordinary, forced), pod: newPod(func(pod *corev1.Pod) { pod.UID = "another" }),
			want: admission.Allow().Annotate("record", "none, the pod is gone")},
		"a forced delete of a pod that only the review calls protected": {request: deletion(t, newPod(), ordinary, forced), pod: unlabelled,
			want: admission.Allow().Annotate("record", "none, the pod is not protected")},
		"a forced delete of an unprotected pod": {request: deletion(t, unlabelled, ordinary, forced), want: admission.Allow()},
		"a dry run of a forced delete": {
			request: deletion(t, newPod(), ordinary, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), DryRun: []string{metav1.DryRunAll}}),
			want:    admission.Allow().Annotate("record", "none, dry run")},
		"a dry run of a forced eviction, said in its body": {
			request: eviction(t, newPod(), &metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), DryRun: []string{metav1.DryRunAll}}), pod: newPod(),
			want: admission.Allow().Annotate("record", "none, dry run")},
		"a graceful eviction needs none": {request: eviction(t, newPod(), nil), pod: newPod(), want: admission.Allow()},
		"a forced eviction": {request: eviction(t, newPod(), &forced), pod: newPod(), budgets: []*policyv1.PodDisruptionBudget{allowing("web", 1)},
			want: allowed, records: []guardv1alpha1.PodDeletionSpec{evicted}},
		"a forced eviction that the budget will refuse": {request: eviction(t, newPod(), &forced), pod: newPod(), budgets: []*policyv1.PodDisruptionBudget{allowing("web", 0)},
			want: admission.Allow().Annotate("record", "none, the eviction will be refused")},
		"a forced eviction under two budgets": {request: eviction(t, newPod(), &forced), pod: newPod(), budgets: []*policyv1.PodDisruptionBudget{allowing("a", 1), allowing("b", 1)},
			want: admission.Allow().Annotate("record", "none, the eviction will be refused")},
		"a forced eviction of a terminating pod, which no budget refuses": {request: eviction(t, newPod(), &forced), pod: newPod(deletedAt(noon)), budgets: []*policyv1.PodDisruptionBudget{allowing("web", 0)},
			want: allowed, records: []guardv1alpha1.PodDeletionSpec{evicted}},
		"a forced eviction of an unprotected pod": {request: eviction(t, newPod(), &forced), pod: unlabelled, want: admission.Allow()},
		"a forced eviction of a pod that is gone": {request: eviction(t, newPod(), &forced), want: admission.Allow()},
		"a forced eviction that means a predecessor": {
			request: eviction(t, newPod(), &metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0), Preconditions: metav1.NewUIDPreconditions("other")}),
			pod:     newPod(), want: admission.Allow()},
	} {
		t.Run(name, func(t *testing.T) {
			s, api := newServer(test.budgets...), recordsAt(t).Build()
			rule, err := NewRecordRule(newReservations(s, clock), podsAt(test.pod), NewRecords(api, api, clock), guardv1alpha1.PodDeletionLifetime, clock)
			require.NoError(t, err)
			require.Equal(t, test.want, rule.Review(t.Context(), test.request))
			var list guardv1alpha1.PodDeletionList
			require.NoError(t, api.List(t.Context(), &list))
			var records []guardv1alpha1.PodDeletionSpec
			for _, written := range list.Items {
				require.Equal(t, podUID, written.Name)
				require.Equal(t, map[string]string{ManagedByLabel: ManagedBy}, written.Labels)
				written.Spec.Expires.Time = written.Spec.Expires.UTC()
				records = append(records, written.Spec)
			}
			require.Equal(t, test.records, records)
			require.Zero(t, s.writes, "the eviction subresource charges by itself")
		})
	}
	t.Run("without its record a forced delete does not pass", func(t *testing.T) {
		api := fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
			Create: func(context.Context, client.WithWatch, client.Object, ...client.CreateOption) error {
				return errors.New("no such kind")
			},
		}).Build()
		rule, err := NewRecordRule(newReservations(newServer(), clock), podsAt(newPod()), NewRecords(api, api, clock), guardv1alpha1.PodDeletionLifetime, clock)
		require.NoError(t, err)
		decision := rule.Review(t.Context(), deletion(t, newPod(), ordinary, forced))
		require.Equal(t, admission.Failed, decision.Verdict)
		require.EqualError(t, decision.Err, "write PodDeletion "+podUID+", without which the node of a pod that is deleted with grace period 0 may go on running it; without --grace-period=0 none is needed: no such kind")
	})
	t.Run("a lifetime that no outage fits in is an error", func(t *testing.T) {
		_, err := NewRecordRule(nil, nil, nil, time.Minute, clock)
		require.EqualError(t, err, "the lifetime of records is 1m0s; it must be at least an hour, and longer than a node can be cut off")
	})
}

func TestTextsOfARecordAreCutBetweenCharacters(t *testing.T) {
	require.Equal(t, "short", cut("short", 5))
	require.Equal(t, strings.Repeat("ü", 2), cut("üüü", 5))
	require.Equal(t, "abcde", cut("abcdef", 5))
}

// recordsAt builds the client of an API server with the objects.
func recordsAt(t *testing.T, objects ...client.Object) *fake.ClientBuilder {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, guardv1alpha1.AddToScheme(scheme))
	require.NoError(t, corev1.AddToScheme(scheme))
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...)
}

func recordOf(age time.Duration, changes ...func(*guardv1alpha1.PodDeletion)) *guardv1alpha1.PodDeletion {
	record := &guardv1alpha1.PodDeletion{
		ObjectMeta: metav1.ObjectMeta{Name: podUID, CreationTimestamp: metav1.NewTime(noon.Add(-age)), Labels: map[string]string{ManagedByLabel: ManagedBy}},
		Spec:       guardv1alpha1.PodDeletionSpec{Namespace: "shop", Name: "web-1"},
	}
	for _, change := range changes {
		change(record)
	}
	return record
}

func expiring(in time.Duration) func(*guardv1alpha1.PodDeletion) {
	return func(record *guardv1alpha1.PodDeletion) { record.Spec.Expires = ptr.To(metav1.NewTime(noon.Add(in))) }
}

func byHand(record *guardv1alpha1.PodDeletion) { record.Labels = nil }

func requested(ago time.Duration) func(*guardv1alpha1.PodDeletion) {
	return func(record *guardv1alpha1.PodDeletion) {
		record.Annotations = map[string]string{guardv1alpha1.RequestedAtAnnotation: noon.Add(-ago).Format(time.RFC3339)}
	}
}

func TestRecordsAreWritten(t *testing.T) {
	clock := testclock.NewFakePassiveClock(noon)
	write := func(t *testing.T, api client.Client) *guardv1alpha1.PodDeletion {
		t.Helper()
		require.NoError(t, NewRecords(api, api, clock).Write(t.Context(), recordOf(0)))
		got := &guardv1alpha1.PodDeletion{}
		require.NoError(t, api.Get(t.Context(), client.ObjectKey{Name: podUID}, got))
		return got
	}
	t.Run("once", func(t *testing.T) {
		got := write(t, recordsAt(t).Build())
		require.Equal(t, recordOf(0).Spec, got.Spec)
	})
	t.Run("the record of another review of the delete is not changed", func(t *testing.T) {
		got := write(t, recordsAt(t, recordOf(5*time.Second)).Build())
		require.Empty(t, got.Annotations)
	})
	t.Run("an older one is marked, so that the collector does not take it for unused", func(t *testing.T) {
		got := write(t, recordsAt(t, recordOf(time.Hour)).Build())
		require.Equal(t, noon, lastRequested(got).UTC())
	})
	lifetime := expiring(guardv1alpha1.PodDeletionLifetime)
	for name, test := range map[string]struct {
		present *guardv1alpha1.PodDeletion
		replace bool
	}{
		"one that has expired is replaced":                    {recordOf(5*time.Second, expiring(-time.Second)), true},
		"one that expires soon is replaced":                   {recordOf(time.Hour, expiring(time.Hour)), true},
		"one that people wrote and that expires soon as well": {recordOf(time.Hour, expiring(time.Hour), byHand), true},
		"one that lasts is kept":                              {recordOf(time.Hour, expiring(guardv1alpha1.PodDeletionLifetime-time.Hour)), false},
		"one that does not expire is kept":                    {recordOf(time.Hour, byHand), false},
	} {
		t.Run(name, func(t *testing.T) {
			test.present.UID = "present"
			given := client.DeleteOptions{}
			api := recordsAt(t, test.present).
				WithInterceptorFuncs(interceptor.Funcs{Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
					given.ApplyOptions(options)
					return c.Delete(ctx, object, options...)
				}}).Build()
			require.NoError(t, NewRecords(api, api, clock).Write(t.Context(), recordOf(0, lifetime)))
			got := &guardv1alpha1.PodDeletion{}
			require.NoError(t, api.Get(t.Context(), client.ObjectKey{Name: podUID}, got))
			if !test.replace {
				require.True(t, test.present.Spec.Expires.Equal(got.Spec.Expires))
				require.Nil(t, given.Preconditions)
				return
			}
			require.Equal(t, noon.Add(guardv1alpha1.PodDeletionLifetime), got.Spec.Expires.UTC())
			require.Equal(t, test.present.UID, *given.Preconditions.UID)
			require.NotEmpty(t, *given.Preconditions.ResourceVersion)
		})
	}
	t.Run("one that expires and is changed by another is read again", func(t *testing.T) {
		attempts := 0
		api := recordsAt(t, recordOf(time.Hour, expiring(0))).
			WithInterceptorFuncs(interceptor.Funcs{Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
				if attempts++; attempts == 1 {
					return apierrors.NewConflict(schema.GroupResource{}, object.GetName(), errors.New("changed"))
				}
				return c.Delete(ctx, object, options...)
			}}).Build()
		require.NoError(t, NewRecords(api, api, clock).Write(t.Context(), recordOf(0, lifetime)))
		require.Equal(t, 2, attempts)
	})
	t.Run("one that is removed under the writer's eyes is written again", func(t *testing.T) {
		api := recordsAt(t, recordOf(time.Hour)).
			WithInterceptorFuncs(interceptor.Funcs{Patch: func(ctx context.Context, c client.WithWatch, object client.Object, _ client.Patch, _ ...client.PatchOption) error {
				require.NoError(t, c.Delete(ctx, object))
				return apierrors.NewNotFound(schema.GroupResource{}, object.GetName())
			}}).Build()
		require.Empty(t, write(t, api).Annotations)
	})
}

func TestRecordsThatMayGo(t *testing.T) {
	living := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{UID: podUID}}
	ending := living.DeepCopy()
	ending.DeletionTimestamp = ptr.To(metav1.NewTime(noon))
	successor := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{UID: "another"}}
	for name, test := range map[string]struct {
		record *guardv1alpha1.PodDeletion
		pod    *metav1.PartialObjectMetadata
		want   removal
		again  time.Duration
	}{
		"expired":                            {recordOf(time.Hour, expiring(0)), nil, removeExpired, 0},
		"expired, by hand":                   {recordOf(time.Hour, expiring(-time.Minute), byHand), living, removeExpired, 0},
		"not expired, pod gone":              {recordOf(time.Hour, expiring(10*time.Hour)), nil, "", recheckPeriod},
		"expires soon, pod gone":             {recordOf(time.Hour, expiring(time.Minute)), nil, "", time.Minute},
		"never expires, by hand":             {recordOf(time.Hour, byHand), living, "", recheckPeriod},
		"the delete is under way":            {recordOf(time.Second), living, "", unusedAfter - time.Second},
		"the delete did not happen":          {recordOf(unusedAfter), living, removeUnused, 0},
		"it is requested again":              {recordOf(time.Hour, requested(time.Second)), living, "", unusedAfter - time.Second},
		"it was requested again in vain":     {recordOf(time.Hour, requested(unusedAfter)), living, removeUnused, 0},
		"terminating":                        {recordOf(time.Hour), ending, "", recheckPeriod},
		"gone, with a successor of the name": {recordOf(time.Hour), successor, "", recheckPeriod},
		"a mark that is no time is overlooked": {recordOf(unusedAfter, func(r *guardv1alpha1.PodDeletion) {
			r.Annotations = map[string]string{guardv1alpha1.RequestedAtAnnotation: "soon"}
		}), living, removeUnused, 0},
	} {
		t.Run(name, func(t *testing.T) {
			why, again := judgeRecord(test.record, test.pod, noon)
			require.Equal(t, test.want, why)
			require.Equal(t, test.again, again)
		})
	}
}

func TestCollector(t *testing.T) {
	clock := testclock.NewFakePassiveClock(noon)
	request := ctrl.Request{NamespacedName: types.NamespacedName{Name: podUID}}
	collect := func(t *testing.T, api client.Client) (ctrl.Result, bool) {
		t.Helper()
		result, err := NewCollector(api, api, clock).Reconcile(t.Context(), request)
		require.NoError(t, err)
		err = api.Get(t.Context(), request.NamespacedName, &guardv1alpha1.PodDeletion{})
		require.NoError(t, client.IgnoreNotFound(err))
		return result, err == nil
	}
	t.Run("removes a record whose pod was not deleted", func(t *testing.T) {
		_, left := collect(t, recordsAt(t, recordOf(time.Hour), newPod()).Build())
		require.False(t, left)
	})
	t.Run("keeps one whose pod is gone", func(t *testing.T) {
		result, left := collect(t, recordsAt(t, recordOf(time.Hour)).Build())
		require.True(t, left)
		require.Equal(t, recheckPeriod, result.RequeueAfter)
	})
	t.Run("removes an expired one", func(t *testing.T) {
		_, left := collect(t, recordsAt(t, recordOf(time.Hour, expiring(-time.Second))).Build())
		require.False(t, left)
	})
	t.Run("leaves one that is requested just then", func(t *testing.T) {
		api := recordsAt(t, recordOf(time.Hour), newPod()).WithInterceptorFuncs(interceptor.Funcs{
			Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
				require.NoError(t, NewRecords(c, c, clock).Write(ctx, recordOf(0)))
				given := (&client.DeleteOptions{}).ApplyOptions(options)
				current := &guardv1alpha1.PodDeletion{}
				require.NoError(t, c.Get(ctx, client.ObjectKeyFromObject(object), current))
				require.NotEqual(t, current.ResourceVersion, *given.Preconditions.ResourceVersion)
				return apierrors.NewConflict(schema.GroupResource{}, object.GetName(), errors.New("changed"))
			}}).Build()
		result, left := collect(t, api)
		require.True(t, left)
		require.Equal(t, unusedAfter, result.RequeueAfter)
	})
	t.Run("does nothing for one that is gone", func(t *testing.T) {
		_, left := collect(t, recordsAt(t).Build())
		require.False(t, left)
	})
}
