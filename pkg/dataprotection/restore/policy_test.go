package restore

import (
	"testing"

	"github.com/stretchr/testify/require"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

func TestPodsAndWhatOnlyTheyOwnAreLeftOut(t *testing.T) {
	t.Parallel()
	set := item("statefulsets/shop/db", "StatefulSet", "shop", "db")
	pod := item("pods/shop/db-0", "Pod", "shop", "db-0", set)
	claim := item("claims/scratch", "PersistentVolumeClaim", "shop", "scratch", pod)
	shared := item("configmaps/shop/shared", "ConfigMap", "shop", "shared", pod, set)
	leased := item("configmaps/shop/leased", "ConfigMap", "shop", "leased")
	leased.value.Lease = 7
	address := item("ipaddresses/10.96.0.1", "IPAddress", "", "10.96.0.1")
	address.object.Group = "networking.k8s.io"
	items := []*Item{claim, set, pod, shared, leased, address}
	actions := func(include ...string) (list []Action) {
		for _, i := range items {
			i.Action, i.Reason = Create, ""
		}
		(&Plan{Items: items}).leaveOut(include)
		for _, i := range items {
			list = append(list, i.Action)
		}
		return list
	}
	require.Equal(t, []Action{LeaveOut, Create, LeaveOut, Create, LeaveOut, LeaveOut}, actions())
	for _, include := range []string{"pods", "Pod", "po"} {
		require.Equal(t, []Action{Create, Create, Create, Create, LeaveOut, LeaveOut}, actions(include), include)
	}
}

func TestWhatActsIsRefusedUntilChosen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		object runtime.Object
		acts   bool
	}{
		{"an unfinished Job", &batchv1.Job{}, true},
		{"a finished Job", &batchv1.Job{Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}}}, false},
		{"a suspended Job", &batchv1.Job{Spec: batchv1.JobSpec{Suspend: ptr.To(true)}}, false},
		{"a CronJob", &batchv1.CronJob{}, true},
		{"a suspended CronJob", &batchv1.CronJob{Spec: batchv1.CronJobSpec{Suspend: ptr.To(true)}}, false},
		{"a webhook configuration", &admissionregistrationv1.ValidatingWebhookConfiguration{}, true},
		{"a policy binding", &admissionregistrationv1.ValidatingAdmissionPolicyBinding{}, true},
		{"a policy without binding", &admissionregistrationv1.ValidatingAdmissionPolicy{}, false},
		{"an aggregated API", &apiregistrationv1.APIService{Spec: apiregistrationv1.APIServiceSpec{Service: &apiregistrationv1.ServiceReference{}}}, true},
		{"the API server's own API", &apiregistrationv1.APIService{}, false},
		{"a token", &corev1.Secret{Type: corev1.SecretTypeServiceAccountToken}, true},
		{"a Secret", &corev1.Secret{}, false},
	} {
		i := item("key", "Kind", "", "name")
		i.object.Typed = test.object
		for choice, want := range map[Acting]Action{"": Refuse, ActingRestore: Create, ActingLeaveOut: LeaveOut} {
			i.Action, i.Reason = Create, ""
			(&Plan{Items: []*Item{i}}).markActing(choice)
			if !test.acts {
				want = Create
			}
			require.Equal(t, want, i.Action, "%s, --acting=%s", test.name, choice)
			require.Equal(t, test.acts, i.Acts != "", test.name)
		}
	}
}

func TestWhatOnlyALeftOutCronJobOwnsIsLeftOut(t *testing.T) {
	t.Parallel()
	cronJob := item("cronjobs/shop/nightly", "CronJob", "shop", "nightly")
	cronJob.object.Typed = &batchv1.CronJob{}
	run := item("runs/shop/nightly-1", "Run", "shop", "nightly-1", cronJob)
	// Before its owner in the list, which is sorted by key.
	result := item("configmaps/shop/nightly-1", "ConfigMap", "shop", "nightly-1", run)
	other := item("configmaps/shop/other", "ConfigMap", "shop", "other")
	(&Plan{Items: []*Item{result, other, cronJob, run}}).markActing(ActingLeaveOut)
	require.Equal(t, []Action{LeaveOut, Create, LeaveOut, LeaveOut}, []Action{result.Action, other.Action, cronJob.Action, run.Action})
}
