package controlplane

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
)

var _ = Describe("the budget of protected pods", func() {
	var namespace string
	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx, granted)
		createSilentPods(ctx, namespace, createSilentNode(ctx, nil), webPods(3)...)
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("web", "web", 2), 1)
	})
	change := func(ctx SpecContext, as user, patch string) error {
		return framework.ErrorOf(as.client().PolicyV1().PodDisruptionBudgets(namespace).Patch(ctx, "web", types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
	}
	relabel := func(ctx SpecContext, as user, patch string) error {
		return framework.ErrorOf(as.client().CoreV1().Pods(namespace).Patch(ctx, "web-0", types.MergePatchType, []byte(patch), metav1.PatchOptions{}))
	}

	It("is neither deleted nor loosened, but by override", func(ctx SpecContext) {
		held := "3 protected pods (such as web-0)"
		for _, as := range []user{ordinary, controller("generic-garbage-collector")} {
			Expect(as.client().PolicyV1().PodDisruptionBudgets(namespace).Delete(ctx, "web", metav1.DeleteOptions{})).
				To(BeRefused("poddisruptionbudget.policy/web in namespace "+namespace+" was not deleted", held), as.name)
		}
		Expect(ordinary.client().PolicyV1().PodDisruptionBudgets(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})).To(BeRefused(held))
		Expect(change(ctx, ordinary, `{"spec":{"minAvailable":1}}`)).To(BeRefused("it would want 1 healthy pods of 3 and wants 2 now"))
		Expect(change(ctx, ordinary, `{"spec":{"minAvailable":null,"maxUnavailable":"100%"}}`)).To(BeRefused("it would want 0 healthy pods of 3"))
		Expect(change(ctx, ordinary, `{"spec":{"selector":{"matchLabels":{"app":"other"}}}}`)).To(BeRefused("no budget would select " + held))

		By("letting it be tightened, and the policy for unready pods be changed")
		Expect(change(ctx, ordinary, `{"spec":{"minAvailable":3,"unhealthyPodEvictionPolicy":"AlwaysAllow"}}`)).To(Succeed())

		By("letting it go by override")
		Expect(change(ctx, overrider, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}},"spec":{"minAvailable":1}}`, annotationOverride, overrideFor(time.Hour, "moved")))).To(Succeed())
		Expect(ordinary.client().PolicyV1().PodDisruptionBudgets(namespace).Delete(ctx, "web", metav1.DeleteOptions{})).To(BeRefused("may not use the verb override"))
		Expect(overrider.client().PolicyV1().PodDisruptionBudgets(namespace).Delete(ctx, "web", metav1.DeleteOptions{})).To(Succeed())
	})

	It("keeps its pods when a person changes their labels", func(ctx SpecContext) {
		framework.CreateBudget(ctx, client, namespace, framework.NewBudget("other", "other", 1), 0)
		Expect(relabel(ctx, ordinary, `{"metadata":{"labels":{"app":null}}}`)).To(BeRefused("the labels of pod/web-0 in namespace "+namespace+" were not changed", "poddisruptionbudget web would not select it any more"))
		Expect(relabel(ctx, ordinary, `{"metadata":{"labels":{"tier":"front"}}}`)).To(Succeed())
		By("letting it move from one budget to another, and operators do what they do")
		Expect(relabel(ctx, ordinary, `{"metadata":{"labels":{"app":"other"}}}`)).To(Succeed())
		operator := user{name: "system:serviceaccount:" + namespace + ":operator", groups: []string{"system:serviceaccounts", groupEditors}}
		Expect(relabel(ctx, operator, `{"metadata":{"labels":{"app":null,"role":"primary"}}}`)).To(Succeed())
	})

	It("may be deleted by anybody once it selects no protected pod", func(ctx SpecContext) {
		budgets := ordinary.client().PolicyV1().PodDisruptionBudgets(namespace)
		framework.Must(budgets.Create(ctx, framework.NewBudget("unused", "unused", 1), metav1.CreateOptions{}))
		Expect(budgets.Delete(ctx, "unused", metav1.DeleteOptions{})).To(Succeed())
	})
})
