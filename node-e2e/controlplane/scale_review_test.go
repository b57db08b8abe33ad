package controlplane

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// reviewedByWebhook are the labels of a namespace in which the webhook judges /scale.
var reviewedByWebhook = map[string]string{guardv1alpha1.ScaleReviewLabel: guardv1alpha1.ScaleReviewWebhook}

var _ = Describe("scale-review: webhook", func() {
	protected := map[string]string{labelReplicasProtection: "confirm"}
	// fromWebhook is how the API server names the entry that refused.
	fromWebhook := func(entry string) string {
		return `admission webhook "` + entry + `.kubelet-guard.io" denied the request`
	}

	DescribeTable("holds kubectl scale of a labelled workload, down and up, until it is confirmed",
		func(ctx SpecContext, kind string) {
			namespace := newNamespace(ctx, reviewedByWebhook)
			gvr := workloadResource(kind)
			for name, labels := range map[string]map[string]string{"web": protected, "plain": nil} {
				framework.Must(resourceIn(dynamicClient, gvr, namespace).Create(ctx, toUnstructured(workloads()[kind](name, 1, labels)), metav1.CreateOptions{}))
			}
			scale := func(name string, replicas int) (string, error) {
				result := ordinary.kubectl(ctx, "scale", kind, name, "-n", namespace, fmt.Sprintf("--replicas=%d", replicas))
				return result.Stderr, result.Err
			}
			for replicas, entry := range map[int]string{0: "scale-down", 3: "scale-up"} {
				message, err := scale("web", replicas)
				Expect(err).To(HaveOccurred())
				Expect(message).To(And(ContainSubstring(fromWebhook(entry)), ContainSubstring("web in namespace %s were not changed from 1 to %d", namespace, replicas), ContainSubstring("nothing confirms the change")))
			}
			for _, replicas := range []int{0, 1} {
				_, err := scale("plain", replicas)
				Expect(err).NotTo(HaveOccurred(), "a workload without the label")
			}
			ordinary.kubectl(ctx, "annotate", kind, "web", "-n", namespace, annotationConfirm+"=0-1").ExpectDone()
			_, err := scale("web", 0)
			Expect(err).NotTo(HaveOccurred(), "at once: the webhook reads the workload itself")
			Expect(framework.ErrorOf(scale("web", 2))).To(HaveOccurred())
			framework.Must(scale("web", 1))
		},
		Entry(nil, SpecTimeout(specTimeout), "deployments.apps"), Entry(nil, SpecTimeout(specTimeout), "statefulsets.apps"), Entry(nil, SpecTimeout(specTimeout), "replicationcontrollers"),
	)

	It("lets an autoscaler move inside the range, and an override by who may use the verb pass", func(ctx SpecContext) {
		namespace := newNamespace(ctx, reviewedByWebhook)
		deployment := newDeployment("web", 1, protected)
		deployment.Annotations = map[string]string{annotationConfirm: "1-2"}
		framework.Must(client.AppsV1().Deployments(namespace).Create(ctx, deployment, metav1.CreateOptions{}))
		scale := func(u user, replicas int32) error {
			return framework.ErrorOf(u.client().AppsV1().Deployments(namespace).UpdateScale(ctx, "web", &autoscalingv1.Scale{
				ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: replicas},
			}, metav1.UpdateOptions{}))
		}
		Expect(scale(autoscaler, 2)).To(Succeed())
		Expect(scale(autoscaler, 3)).To(BeRefused("were not changed from 2 to 3", "confirms 1-2"))
		refusal := scale(ordinary, 0)
		Expect(refusal).To(BeRefused("were not changed from 2 to 0", "kubectl annotate deployments.apps/web -n "+namespace+" --overwrite "+annotationConfirm+"=0"))

		overrider.kubectl(ctx, "annotate", "deployment", "web", "-n", namespace, annotationOverride+"="+overrideFor(time.Hour, "ticket 21")).ExpectDone()
		Expect(scale(ordinary, 0)).To(BeRefused("were not changed from 2 to 0", "may not use the verb override"))
		Expect(scale(overrider, 0)).To(Succeed())

		By("the advice of a refusal")
		overrider.kubectl(ctx, "annotate", "deployment", "web", "-n", namespace, annotationOverride+"-").ExpectDone()
		refusal = scale(ordinary, 3)
		ordinary.followAdvice(ctx, refusal)
		Expect(scale(ordinary, 3)).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("goes on and comes off without a gap: the webhook or the policies decide", Label(labelPolicies), func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		framework.Must(client.AppsV1().Deployments(namespace).Create(ctx, newDeployment("web", 1, protected), metav1.CreateOptions{}))
		scale := func(ctx context.Context) error {
			return framework.ErrorOf(ordinary.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{}, "scale"))
		}
		byPolicy, byWebhook := BeRefused("ValidatingAdmissionPolicy 'deployments.scale.kubelet-guard.io'"), BeRefused(fromWebhook("scale-down"))
		Eventually(ctx, scale).WithTimeout(policyWait).Should(byPolicy)
		label := guardv1alpha1.ScaleReviewLabel
		for _, change := range []struct {
			argument string
			after    OmegaMatcher
		}{{label + "=" + guardv1alpha1.ScaleReviewWebhook, byWebhook}, {label + "-", byPolicy}} {
			ordinary.kubectl(ctx, "label", "namespace", namespace, change.argument).ExpectDone()
			Eventually(ctx, func(g Gomega, ctx context.Context) {
				err := scale(ctx)
				Expect(err).To(BeRefused("were not changed from 1 to 0"), "by one or the other")
				g.Expect(err).To(change.after)
			}).WithContext(ctx).WithTimeout(policyWait).Should(Succeed(), change.argument)
		}
	}, SpecTimeout(specTimeout))
})
