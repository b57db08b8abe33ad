package controlplane

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

var _ = Describe("the ReplicaSets of a Deployment", func() {
	dryRun := metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}
	replicaSetOf := func(ctx context.Context, namespace string) *appsv1.ReplicaSet {
		GinkgoHelper()
		sets := framework.Must(client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{}))
		Expect(sets.Items).To(HaveLen(1))
		return &sets.Items[0]
	}
	patch := func(ctx context.Context, u user, namespace, name, body string, options metav1.PatchOptions, subresources ...string) error {
		return framework.ErrorOf(u.client().AppsV1().ReplicaSets(namespace).Patch(ctx, name, types.MergePatchType, []byte(body), options, subresources...))
	}

	It("change only with it where pods are protected", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "default"})
		createDeployment(ctx, namespace, newDeployment("web", 2, map[string]string{labelReplicasProtection: "confirm"}))
		set := replicaSetOf(ctx, namespace)

		ordinary.kubectl(ctx, "scale", "rs", set.Name, "-n", namespace, "--replicas=0").ExpectRefused("it belongs to Deployment web", "kubectl scale deployments.apps web -n "+namespace+" --replicas=0")
		Expect(framework.ErrorOf(autoscaler.client().AppsV1().ReplicaSets(namespace).UpdateScale(ctx, set.Name,
			&autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: set.Name, Namespace: namespace}}, metav1.UpdateOptions{}))).To(BeRefused("it belongs to Deployment web"), "an autoscaler of the ReplicaSet")
		Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"replicas":0}}`, dryRun)).To(
			BeRefused("replicasets.apps "+set.Name+" was not changed", "it belongs to Deployment web", "kubectl scale deployments.apps web -n "+namespace+" --replicas=0"))
		Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"minReadySeconds":1}}`, dryRun)).To(BeRefused("kubectl edit deployments.apps web -n " + namespace))
		Expect(patch(ctx, ordinary, namespace, set.Name, `{"metadata":{"labels":{"note":"x"}}}`, dryRun)).To(Succeed(), "a label")

		By("with an override")
		override := func(u user, value string) error {
			return patch(ctx, u, namespace, set.Name, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}},"spec":{"minReadySeconds":1}}`, annotationOverride, value), dryRun)
		}
		Expect(override(ordinary, overrideFor(time.Hour, "x"))).To(BeRefused("may not use the verb override"))
		Expect(override(overrider, "x")).To(BeRefused("replicaset.apps/"+set.Name, "does not start with a time"))
		Expect(override(overrider, overrideFor(time.Hour, "ticket 21"))).To(Succeed())

		By("scaling the Deployment, as an autoscaler does, and rolling it out")
		ordinary.kubectl(ctx, "annotate", "deployment", "web", "-n", namespace, annotationConfirm+"=1-3").ExpectDone()
		Eventually(ctx, func() error {
			return framework.ErrorOf(autoscaler.client().AppsV1().Deployments(namespace).UpdateScale(ctx, "web",
				&autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: 1}}, metav1.UpdateOptions{}))
		}).WithTimeout(policyWait).Should(Succeed())
		Eventually(ctx, func() int32 { return *replicaSetOf(ctx, namespace).Spec.Replicas }).WithTimeout(podStart).Should(BeEquivalentTo(1), "the ReplicaSet to follow")
		ordinary.kubectl(ctx, "rollout", "restart", "deployment/web", "-n", namespace).ExpectDone()
		ordinary.kubectl(ctx, "rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s").ExpectDone()
	}, SpecTimeout(specTimeout))

	It("change only with it where there are windows", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{guardv1alpha1.OperationWindowsLabel: guardv1alpha1.OperationWindowsEnforced})
		createDeployment(ctx, namespace, newDeployment("web", 0, nil))
		var set *appsv1.ReplicaSet
		Eventually(ctx, func(g Gomega) {
			sets := framework.Try(client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})).In(g)
			g.Expect(sets.Items).To(HaveLen(1))
			set = &sets.Items[0]
		}).WithTimeout(controllerWait).Should(Succeed())
		for _, way := range [][]string{nil, {"scale"}} {
			Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"replicas":1}}`, dryRun, way...)).To(BeRefused("it belongs to Deployment web"), "%v", way)
		}
	}, SpecTimeout(specTimeout))

	It("are left alone elsewhere, but for one that is labelled itself", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		createDeployment(ctx, namespace, newDeployment("web", 1, nil))
		set := replicaSetOf(ctx, namespace)
		for _, way := range [][]string{nil, {"scale"}} {
			Expect(patch(ctx, ordinary, namespace, set.Name, `{"spec":{"replicas":0}}`, dryRun, way...)).To(Succeed(), "%v", way)
		}
		bare := workloads()["replicasets.apps"]("bare", 0, map[string]string{labelReplicasProtection: "confirm"}).(*appsv1.ReplicaSet)
		framework.Must(client.AppsV1().ReplicaSets(namespace).Create(ctx, bare, metav1.CreateOptions{}))
		scale := func() framework.Answer {
			return ordinary.kubectl(ctx, "scale", "rs", "bare", "-n", namespace, "--replicas=1")
		}
		Expect(scale().Stderr).To(ContainSubstring("replicasets.apps/bare in namespace " + namespace + " were not changed from 0 to 1"))
		ordinary.kubectl(ctx, "annotate", "rs", "bare", "-n", namespace, annotationConfirm+"=1").ExpectDone()
		Expect(scale().Err).NotTo(HaveOccurred())
	}, SpecTimeout(specTimeout))
})
