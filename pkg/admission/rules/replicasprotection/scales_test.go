package replicasprotection

import (
	"errors"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"

	"kubelet-guard.io/pkg/admission"
	"kubelet-guard.io/pkg/admission/admissiontest"
)

func TestScales(t *testing.T) {
	const label = "labels: {kubelet-guard.io/replicas-protection: confirm}"
	live := func(kind, metadata string) stored {
		return stored("{" + kind + ", metadata: {namespace: shop, name: web, " + metadata + "}}")
	}
	const (
		deployment  = "apiVersion: apps/v1, kind: Deployment"
		statefulSet = "apiVersion: apps/v1, kind: StatefulSet"
		replicaSet  = "apiVersion: apps/v1, kind: ReplicaSet"
		controller  = "apiVersion: v1, kind: ReplicationController"
		ofItself    = "ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, controller: true}]"
	)
	refused := func(resource, from, to, why string) admission.Decision {
		return admission.Refuse(admission.ReasonReplicasNotConfirmed,
			"the replicas of "+resource+"/web in namespace shop were not changed from "+from+" to "+to+": it is labelled kubelet-guard.io/replicas-protection=confirm and "+why,
			`Confirm the new number, or a range such as "2-10", and try again: kubectl annotate `+resource+`/web -n shop --overwrite kubelet-guard.io/confirm-replicas=`+to)
	}
	const unconfirmed = "nothing confirms the change"
	confirmed := func(value string) string {
		return label + `, annotations: {kubelet-guard.io/confirm-replicas: "` + value + `"}`
	}
	for name, test := range map[string]struct {
		resource, from, to string
		live               stored
		want               admission.Decision
	}{
		"a Deployment":                  {"deployments.apps/scale", "replicas: 3", "replicas: 1", live(deployment, label), refused("deployments.apps", "3", "1", unconfirmed)},
		"a StatefulSet":                 {"statefulsets.apps/scale", "replicas: 3", "replicas: 5", live(statefulSet, label), refused("statefulsets.apps", "3", "5", unconfirmed)},
		"a ReplicationController":       {"replicationcontrollers/scale", "replicas: 3", "replicas: 1", live(controller, label), refused("replicationcontrollers", "3", "1", unconfirmed)},
		"a ReplicaSet":                  {"replicasets.apps/scale", "replicas: 3", "replicas: 1", live(replicaSet, label), refused("replicasets.apps", "3", "1", unconfirmed)},
		"a ReplicaSet of a Deployment":  {"replicasets.apps/scale", "replicas: 3", "replicas: 1", live(replicaSet, label+", "+ofItself), refused("replicasets.apps", "3", "1", unconfirmed)},
		"one without the label":         {"deployments.apps/scale", "replicas: 3", "replicas: 0", live(deployment, ""), admission.Allow()},
		"one of a Deployment, likewise": {"replicasets.apps/scale", "replicas: 3", "replicas: 0", live(replicaSet, ofItself), admission.Allow()},
		"confirmed":                     {"deployments.apps/scale", "replicas: 3", "replicas: 1", live(deployment, confirmed("1")), admission.Allow()},
		"in the range":                  {"deployments.apps/scale", "replicas: 3", "replicas: 10", live(deployment, confirmed("2-10")), admission.Allow()},
		"out of the range":              {"deployments.apps/scale", "replicas: 3", "replicas: 1", live(deployment, confirmed("2-10")), refused("deployments.apps", "3", "1", "the annotation kubelet-guard.io/confirm-replicas confirms 2-10")},
		"to 0, which a Scale leaves out": {"deployments.apps/scale", "replicas: 3", "", live(deployment, label),
			refused("deployments.apps", "3", "0", unconfirmed)},
		"to the same number":        {"deployments.apps/scale", "replicas: 3", "replicas: 3", "", admission.Allow()},
		"without an answer":         {"deployments.apps/scale", "replicas: 3", "replicas: 1", "", admission.Fail("get the Deployment whose replicas change: %w", errors.New("no answer"))},
		"an update of the workload": {"deployments.apps", "replicas: 3", "replicas: 1", "", admission.Allow()},
		"its status":                {"deployments.apps/status", "replicas: 3", "replicas: 1", "", admission.Allow()},
		"of a custom kind":          {"fleets.example.com/scale", "replicas: 3", "replicas: 1", "", admission.Allow()},
	} {
		t.Run(name, func(t *testing.T) {
			scale := func(spec string) string { return "{metadata: {namespace: shop, name: web}, spec: {" + spec + "}}" }
			resource, subresource, _ := strings.Cut(test.resource, "/")
			resource, group, _ := strings.Cut(resource, ".")
			review := admissiontest.Review(t, admissionv1.Update, autoscalingv1.SchemeGroupVersion.WithKind("Scale"), resource, scale(test.from), scale(test.to))
			review.Resource.Group, review.SubResource = group, subresource
			got := Scales{Live: test.live.reader(t)}.Review(t.Context(), admission.NewRequest(review))
			requireDecision(t, test.want, got)
		})
	}
}
