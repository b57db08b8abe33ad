package replicasprotection

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
)

func TestParseConfirmation(t *testing.T) {
	for value, want := range map[string]Confirmation{
		"0": {0, 0}, "3": {3, 3}, "2-10": {2, 10}, "5-5": {5, 5}, "007": {7, 7},
	} {
		got, err := ParseConfirmation(value)
		require.NoError(t, err, value)
		require.Equal(t, want, got, value)
	}
	for value, want := range map[string]string{
		"":           `"" is neither a number such as 3 nor a range such as 2-10`,
		"three":      `"three" is neither a number such as 3 nor a range such as 2-10`,
		"-1":         `"-1" is neither a number such as 3 nor a range such as 2-10`,
		"2-":         `"2-" is neither a number such as 3 nor a range such as 2-10`,
		"2..4":       `"2..4" is neither a number such as 3 nor a range such as 2-10`,
		" 3":         `" 3" is neither a number such as 3 nor a range such as 2-10`,
		"1234567890": `"1234567890" is neither a number such as 3 nor a range such as 2-10`,
		"10-2":       `"10-2" is an empty range: 10 is more than 2`,
	} {
		_, err := ParseConfirmation(value)
		require.EqualError(t, err, want, value)
	}
}

func TestReview(t *testing.T) {
	const label = "labels: {kubelet-guard.io/replicas-protection: confirm}"
	object := func(metadata, spec string) string {
		return "{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: shop, name: web, " + metadata + "}, spec: {" + spec + "}}"
	}
	refused := func(reason admission.Reason, from, to, why string) admission.Decision {
		return admission.Refuse(reason,
			"the replicas of deployment.apps/web in namespace shop were not changed from "+from+" to "+to+": it is labelled kubelet-guard.io/replicas-protection=confirm and "+why,
			`Confirm the new number, or a range such as "2-10", and try again: kubectl annotate deployment.apps/web -n shop --overwrite kubelet-guard.io/confirm-replicas=`+to)
	}
	confirm := func(value string) string {
		return label + `, annotations: {kubelet-guard.io/confirm-replicas: "` + value + `"}`
	}

	const owner = `, ownerReferences: [{controller: true, kind: Deployment, name: web, uid: u, apiVersion: apps/v1}]`
	tests := []struct {
		name     string
		resource string
		old, new string
		want     admission.Decision
	}{
		{"a workload without the label", "deployments", object("", "replicas: 3"), object("", "replicas: 5"), admission.Allow()},
		{"a change of something else", "deployments", object(label, "replicas: 3"), object(label, "replicas: 3, paused: true"), admission.Allow()},
		{"a change that nothing confirms", "deployments", object(label, "replicas: 3"), object(label, "replicas: 5"), refused(admission.ReasonReplicasNotConfirmed, "3", "5", "nothing confirms the change")},
		{"an exact confirmation in the same request", "deployments", object(label, "replicas: 3"), object(confirm("5"), "replicas: 5"), admission.Allow()},
		{"a range that holds the number", "deployments", object(confirm("2-10"), "replicas: 3"), object(confirm("2-10"), "replicas: 10"), admission.Allow()},
		{"a range that does not", "deployments", object(confirm("2-10"), "replicas: 3"), object(confirm("2-10"), "replicas: 11"), refused(admission.ReasonReplicasNotConfirmed, "3", "11", "the annotation kubelet-guard.io/confirm-replicas confirms 2-10")},
		{"a malformed annotation", "deployments", object(label, "replicas: 3"), object(confirm("2 to 10"), "replicas: 5"), refused(admission.ReasonMalformed, "3", "5", `the annotation kubelet-guard.io/confirm-replicas cannot be read: "2 to 10" is neither a number such as 3 nor a range such as 2-10`)},
		{"an empty annotation", "deployments", object(label, "replicas: 3"), object(confirm(""), "replicas: 5"), refused(admission.ReasonMalformed, "3", "5", `the annotation kubelet-guard.io/confirm-replicas cannot be read: "" is neither a number such as 3 nor a range such as 2-10`)},
		{"taking the label off in the same request", "deployments", object(label, "replicas: 3"), object("", "replicas: 0"), refused(admission.ReasonReplicasNotConfirmed, "3", "0", "nothing confirms the change")},
		{"a field that is not there counts as one", "deployments", object(label, ""), object(label, "replicas: 2"), refused(admission.ReasonReplicasNotConfirmed, "1", "2", "nothing confirms the change")},
		{"what an owner reference says does not matter", "deployments", object(label+owner, "replicas: 3"), object(label+owner, "replicas: 5"), refused(admission.ReasonReplicasNotConfirmed, "3", "5", "nothing confirms the change")},
		{"a ReplicaSet of a Deployment, by someone", "replicasets", object(label+owner, "replicas: 3"), object(label+owner, "replicas: 5"), refused(admission.ReasonReplicasNotConfirmed, "3", "5", "nothing confirms the change")},
		{"an owner that comes in the same request", "deployments", object(label, "replicas: 3"), object(label+owner, "replicas: 5"), refused(admission.ReasonReplicasNotConfirmed, "3", "5", "nothing confirms the change")},
		{"a kind without replicas", "configmaps", object(label, "replicas: 3"), object(label, "replicas: 5"), admission.Allow()},
		{"a custom kind, where its definition says", "shops", object(label, "tills: 3"), object(label, "tills: 5"), refused(admission.ReasonReplicasNotConfirmed, "3", "5", "nothing confirms the change")},
	}
	rule := Rule{lookup(version("v1", ".spec.tills", ".status.tills"))}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			kind := appsv1.SchemeGroupVersion.WithKind("Deployment")
			if test.resource == "shops" {
				kind.Group = "example.com"
				test.want.Message = strings.ReplaceAll(test.want.Message, "apps", "example.com")
				test.want.NextStep = strings.ReplaceAll(test.want.NextStep, "apps", "example.com")
			}
			request := admission.NewRequest(admissiontest.Review(t, admissionv1.Update, kind, test.resource, test.old, test.new))
			require.Equal(t, test.want, rule.Review(t.Context(), request))
		})
	}
}

func TestReplicaSetsFollowTheirDeployment(t *testing.T) {
	const object = `{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"name":"web-1","labels":{"kubelet-guard.io/replicas-protection":"confirm"},"ownerReferences":[{"apiVersion":"apps/v1","kind":"Deployment","name":"web","controller":true}]},"spec":{"replicas":%d}}`
	rule := Rule{}
	for username, want := range map[string]admission.Verdict{
		"system:serviceaccount:kube-system:deployment-controller": admission.Allowed,
		"jane": admission.Refused,
	} {
		review := admissiontest.Review(t, admissionv1.Update, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), "replicasets", fmt.Sprintf(object, 3), fmt.Sprintf(object, 5))
		review.UserInfo.Username = username
		got := rule.Review(t.Context(), admission.NewRequest(review))
		require.Equal(t, want, got.Verdict, username)
	}
}
