package replicasprotection

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
)

// stored is the object at the API server, in YAML. An API server without one does not respond.
type stored string

func (s stored) reader(t *testing.T) client.Reader {
	t.Helper()
	builder := fake.NewClientBuilder()
	if s == "" {
		return builder.WithInterceptorFuncs(interceptor.Funcs{
			Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
				return errors.New("no answer")
			},
		}).Build()
	}
	raw, err := yaml.YAMLToJSON([]byte(s))
	require.NoError(t, err)
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(raw, nil, nil)
	require.NoError(t, err)
	return builder.WithRuntimeObjects(object).Build()
}

func TestReplicaSets(t *testing.T) {
	const (
		controller = "system:serviceaccount:kube-system:deployment-controller"
		owned      = "ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, controller: true}]"
		foreign    = "ownerReferences: [{apiVersion: rollouts.example.com/v1, kind: Rollout, name: web, controller: true}]"
		confirm    = "labels: {kubelet-guard.io/replicas-protection: confirm}"
	)
	object := func(metadata, spec string) string {
		return "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: shop, name: web-1, " + metadata + "}, spec: {" + spec + "}}"
	}
	ofDeployment := func(next string) admission.Decision {
		return admission.Refuse(admission.ReasonOwnedByDeployment,
			"replicasets.apps/web-1 in namespace shop was not changed: it belongs to Deployment web, and in this namespace only the deployment controller changes it", next)
	}
	unconfirmed := admission.Refuse(admission.ReasonReplicasNotConfirmed,
		"the replicas of replicasets.apps/web-1 in namespace shop were not changed from 3 to 0: it is labelled kubelet-guard.io/replicas-protection=confirm and nothing confirms the change",
		`Confirm the new number, or a range such as "2-10", and try again: kubectl annotate replicasets.apps/web-1 -n shop --overwrite kubelet-guard.io/confirm-replicas=0`)
	const scaleDeployment = "Scale the Deployment instead: kubectl scale deployments.apps web -n shop --replicas=0"
	three, zero := object("", "replicas: 3"), object("", "replicas: 0")
	for name, test := range map[string]struct {
		subresource, user string
		old, new          string
		live              stored
		want              admission.Decision
	}{
		"scale of a Deployment's":                 {"scale", "jane", three, zero, stored(object(owned, "")), ofDeployment(scaleDeployment)},
		"scale of a bare one":                     {"scale", "jane", three, zero, stored(object("", "")), admission.Allow()},
		"scale of a bare one that is labelled":    {"scale", "jane", three, zero, stored(object(confirm, "")), unconfirmed},
		"scale that is confirmed":                 {"scale", "jane", three, zero, stored(object(confirm+`, annotations: {kubelet-guard.io/confirm-replicas: "0-3"}`, "")), admission.Allow()},
		"scale of another controller's":           {"scale", "jane", three, zero, stored(object(foreign, "")), admission.Allow()},
		"scale to the same number":                {"scale", "jane", three, three, "", admission.Allow()},
		"scale without an answer":                 {"scale", "jane", three, zero, "", admission.Fail("get the ReplicaSet whose replicas change: %w", errors.New("no answer"))},
		"update of a Deployment's":                {"", "jane", object(owned, "replicas: 3"), object(owned, "replicas: 3, minReadySeconds: 1"), "", ofDeployment("Change the Deployment instead: kubectl edit deployments.apps web -n shop")},
		"update of a Deployment's replicas":       {"", "jane", object(owned, "replicas: 3"), object("", "replicas: 0"), "", ofDeployment(scaleDeployment)},
		"update by the deployment controller":     {"", controller, object(owned, "replicas: 3"), object(owned, "replicas: 0"), "", admission.Allow()},
		"update of labels":                        {"", "jane", object(owned, "replicas: 3"), object(confirm+", "+owned, "replicas: 3"), "", admission.Allow()},
		"update of a bare one, which Rule judges": {"", "jane", object(confirm, "replicas: 3"), object(confirm, "replicas: 0"), "", admission.Allow()},
		"status": {"status", "jane", object(owned, "replicas: 3"), object(owned, "replicas: 0"), "", admission.Allow()},
	} {
		t.Run(name, func(t *testing.T) {
			review := admissiontest.Review(t, admissionv1.Update, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), "replicasets", test.old, test.new)
			review.SubResource, review.UserInfo.Username = test.subresource, test.user
			got := ReplicaSets{Live: test.live.reader(t)}.Review(t.Context(), admission.NewRequest(review))
			if test.subresource == "" && test.want.Verdict == admission.Refused {
				test.want.Message = "replicaset" + test.want.Message[len("replicasets"):]
			}
			requireDecision(t, test.want, got)
		})
	}
}

// requireDecision compares the decisions, of failures the text of the error.
func requireDecision(t *testing.T, want, got admission.Decision) {
	t.Helper()
	if want.Err != nil {
		require.EqualError(t, got.Err, want.Err.Error())
		got.Err = want.Err
	}
	require.Equal(t, want, got)
}
