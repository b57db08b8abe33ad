package controlplane

import (
	"context"
	"encoding/json"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
)

// noOverride is an override annotation that never counts. With it an object is judged
// by the webhook when the overrider makes the request, and without it by the policies.
const noOverride = "not a time"

// judgedBy is who makes the request, so that an object with this override annotation is judged by one of
// both mechanisms.
func judgedBy(override any) user {
	if override == noOverride {
		return overrider
	}
	return ordinary
}

// verdicts are those of both mechanisms on one request.
type verdicts struct{ Policy, Webhook string }

// verdict is Allowed, Refused or the error of a request that nobody judged.
func verdict(err error) string {
	refused, matchErr := BeRefused().Match(err)
	switch {
	case matchErr != nil:
		return matchErr.Error()
	case err == nil:
		return "Allowed"
	case refused:
		return "Refused"
	}
	return err.Error()
}

// both is the same verdict by both mechanisms.
func both(verdict string) verdicts { return verdicts{verdict, verdict} }

// Policies and webhook implement the same rules, in CEL and in Go. Here the same
// requests are put to both, through the API server, as dry runs.
var _ = Describe("policies and webhook", func() {
	dryRun := []string{metav1.DryRunAll}

	It("judge the deletion of workloads alike", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		for kind, build := range workloads() {
			gvr := workloadResource(kind)
			judge := func(name string, replicas int, protection string) verdicts {
				GinkgoHelper()
				var got verdicts
				for _, annotation := range []string{"", noOverride} {
					resource := judgedBy(annotation).dynamic().Resource(gvr).Namespace(namespace)
					objectName := name + "-policy"
					if annotation != "" {
						objectName = name + "-webhook"
					}
					object := toUnstructured(build(objectName, replicas, map[string]string{labelDeletionProtection: protection}))
					if annotation != "" {
						object.SetAnnotations(map[string]string{annotationOverride: annotation})
					}
					created := framework.Must(dynamicClient.Resource(gvr).Namespace(namespace).Create(ctx, object, metav1.CreateOptions{}))
					awaitObserved(ctx, gvr, namespace, created.GetName(), int64(replicas))
					outcome := verdict(resource.Delete(ctx, objectName, metav1.DeleteOptions{DryRun: dryRun}))
					if annotation == "" {
						got.Policy = outcome
					} else {
						got.Webhook = outcome
					}
				}
				return got
			}
			Expect(judge("always", 0, "always")).To(Equal(both("Refused")), "%s, always", kind)
			Expect(judge("running", 1, "cascading")).To(Equal(both("Refused")), "%s with a replica", kind)
			Expect(judge("empty", 0, "cascading")).To(Equal(both("Allowed")), "%s without replicas", kind)
		}
	}, SpecTimeout(2*specTimeout))

	It("judge changes of replicas alike", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		// The garbage collector leaves an object alone whose owner it may not look up.
		owner := metav1.OwnerReference{APIVersion: "unknown.example.com/v1", Kind: "Owner", Name: "x", UID: "00000000-0000-4000-8000-000000000000", Controller: new(true)}
		for _, deployment := range []*appsv1.Deployment{
			newDeployment("plain", 0, nil),
			newDeployment("labelled", 0, map[string]string{labelReplicasProtection: "confirm"}),
			newDeployment("owned", 0, map[string]string{labelReplicasProtection: "confirm"}),
		} {
			if deployment.Name == "owned" {
				deployment.OwnerReferences = []metav1.OwnerReference{owner}
			}
			framework.Must(client.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}))
		}
		type change struct {
			name, on     string
			replicas     int
			confirmation any
			unlabel      bool
			want         string
			own          bool
		}
		for _, c := range []change{
			{"nothing confirms it", "labelled", 5, nil, false, "Refused", false},
			{"an exact number", "labelled", 5, "5", false, "Allowed", false},
			{"another number", "labelled", 5, "4", false, "Refused", false},
			{"a range", "labelled", 5, "2-10", false, "Allowed", false},
			{"the ends of a range", "labelled", 2, "2-10", false, "Allowed", false},
			{"outside of a range", "labelled", 11, "2-10", false, "Refused", false},
			{"an empty range", "labelled", 5, "10-2", false, "Refused", false},
			{"a leading zero", "labelled", 7, "007", false, "Allowed", false},
			{"a blank", "labelled", 5, " 5", false, "Refused", false},
			{"no number", "labelled", 5, "five", false, "Refused", false},
			{"an empty annotation", "labelled", 5, "", false, "Refused", false},
			{"a minus", "labelled", 5, "-5", false, "Refused", false},
			{"half a range", "labelled", 5, "5-", false, "Refused", false},
			{"ten digits", "labelled", 5, "0000000005", false, "Refused", false},
			{"without the label", "plain", 5, nil, false, "Allowed", false},
			{"taking the label off with it", "labelled", 5, nil, true, "Refused", false},
			{"no change", "labelled", 0, nil, false, "Allowed", false},
			{"what has a controller", "owned", 5, nil, false, "Refused", false},
			{"what has a controller, confirmed", "owned", 5, "5", false, "Allowed", false},
			{"a controller that comes with it", "labelled", 5, nil, false, "Refused", true},
		} {
			patch := func(override any) string {
				GinkgoHelper()
				metadata := map[string]any{"annotations": map[string]any{annotationConfirm: c.confirmation, annotationOverride: override}}
				if c.unlabel {
					metadata["labels"] = map[string]any{labelReplicasProtection: nil}
				}
				if c.own {
					metadata["ownerReferences"] = []metav1.OwnerReference{owner}
				}
				body := framework.Must(json.Marshal(map[string]any{"metadata": metadata, "spec": map[string]any{"replicas": c.replicas}}))
				_, err := judgedBy(override).client().AppsV1().Deployments(namespace).Patch(ctx, c.on, types.MergePatchType, body, metav1.PatchOptions{DryRun: dryRun})
				return verdict(err)
			}
			Expect(verdicts{patch(nil), patch(noOverride)}).To(Equal(both(c.want)), c.name)
		}
	}, SpecTimeout(specTimeout))

	It("judge the label of pods alike", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		required := map[string]string{labelExplicitDeletion: "required"}
		createPod(ctx, namespace, newPod("running", required))
		pending := newPod("pending", required)
		pending.Spec.NodeSelector = map[string]string{"no": "node"}
		framework.Must(client.CoreV1().Pods(namespace).Create(ctx, pending, metav1.CreateOptions{}))
		for _, c := range []struct {
			on    string
			label any
			want  string
		}{
			{"running", nil, "Refused"},
			{"running", "required", "Allowed"},
			{"pending", nil, "Allowed"},
		} {
			patch := func(override any) string {
				GinkgoHelper()
				body := framework.Must(json.Marshal(map[string]any{"metadata": map[string]any{
					"labels":      map[string]any{labelExplicitDeletion: c.label, "other": "x"},
					"annotations": map[string]any{annotationOverride: override},
				}}))
				_, err := judgedBy(override).client().CoreV1().Pods(namespace).Patch(ctx, c.on, types.MergePatchType, body, metav1.PatchOptions{DryRun: dryRun})
				return verdict(err)
			}
			Expect(verdicts{patch(nil), patch(noOverride)}).To(Equal(both(c.want)), "label %v on the %s pod", c.label, c.on)
		}
	}, SpecTimeout(specTimeout))
})

// awaitObserved waits until the status of a workload is as new as its spec and has so
// many replicas.
func awaitObserved(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, replicas int64) {
	GinkgoHelper()
	type status struct {
		Metadata struct{ Generation int64 }
		Status   struct{ ObservedGeneration, Replicas int64 }
	}
	Eventually(ctx, func(g Gomega) {
		text := framework.Try(framework.Try(dynamicClient.Resource(gvr).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})).In(g).MarshalJSON()).In(g)
		var seen status
		g.Expect(json.Unmarshal(text, &seen)).To(Succeed())
		g.Expect(seen.Status.ObservedGeneration).To(BeNumerically(">=", seen.Metadata.Generation))
		g.Expect(seen.Status.Replicas).To(Equal(replicas))
	}).WithTimeout(podStart).Should(Succeed(), "the status of %s %s", gvr.Resource, name)
}
