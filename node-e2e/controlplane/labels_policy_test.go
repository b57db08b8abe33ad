package controlplane

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

var _ = Describe("a label with a value that protects nothing", Label(labelPolicies), func() {
	dryRun := []string{metav1.DryRunAll}

	DescribeTable("is refused when it is set, and the message has the values",
		func(ctx SpecContext, label, value, want string) {
			name := newNamespace(ctx, nil)
			for _, way := range [][]string{nil, {"status"}} {
				Expect(framework.ErrorOf(client.CoreV1().Namespaces().Patch(ctx, name, types.MergePatchType,
					fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, label, value), metav1.PatchOptions{DryRun: dryRun}, way...))).To(BeRefused(fmt.Sprintf("metadata.labels[%s] is %q", label, value), want), "%v", way)
			}
			Expect(framework.ErrorOf(client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
				GenerateName: "labels-", Labels: map[string]string{label: value},
			}}, metav1.CreateOptions{DryRun: dryRun}))).To(BeRefused(want))
		},
		Entry(nil, SpecTimeout(specTimeout), labelDeletionProtection, "Always", `Set it to "always" or "cascading"`),
		Entry(nil, SpecTimeout(specTimeout), labelReplicasProtection, "true", `Set it to "confirm"`),
		Entry(nil, SpecTimeout(specTimeout), labelProtectPods, "yes", `Set it to "allowed" or "default"`),
		Entry(nil, SpecTimeout(specTimeout), guardv1alpha1.OperationWindowsLabel, "on", `Set it to "enforced"`),
		Entry(nil, SpecTimeout(specTimeout), guardv1alpha1.ScaleReviewLabel, "policies", `Set it to "webhook"`),
	)

	It("is refused on a workload, and its true values are not", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		deployments := ordinary.client().AppsV1().Deployments(namespace)
		Expect(framework.ErrorOf(deployments.Create(ctx, newDeployment("web", 0, map[string]string{labelDeletionProtection: "ALWAYS"}), metav1.CreateOptions{DryRun: dryRun}))).To(BeRefused(`deployments web was not accepted`))
		for _, value := range []string{"always", "cascading"} {
			_, err := deployments.Create(ctx, newDeployment("web", 0, map[string]string{labelDeletionProtection: value}), metav1.CreateOptions{DryRun: dryRun})
			Expect(err).NotTo(HaveOccurred(), value)
		}
	}, SpecTimeout(specTimeout))

	It("is refused by way of a status", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		framework.Must(client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone},
		}, metav1.CreateOptions{}))
		for label, value := range map[string]string{labelDeletionProtection: "Always", labelReplicasProtection: "yes"} {
			Expect(framework.ErrorOf(ordinary.client().CoreV1().Services(namespace).Patch(ctx, "web", types.MergePatchType,
				fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`, label, value), metav1.PatchOptions{DryRun: dryRun}, "status"))).To(BeRefused("services web was not accepted", value))
		}
		_, err := ordinary.client().CoreV1().Services(namespace).Patch(ctx, "web", types.MergePatchType,
			fmt.Appendf(nil, `{"metadata":{"labels":{%q:"always"}}}`, labelDeletionProtection), metav1.PatchOptions{DryRun: dryRun}, "status")
		Expect(err).NotTo(HaveOccurred(), "a value that means something")
	}, SpecTimeout(specTimeout))

	It("is refused on a pod that could be evicted all the same, and the advice is followed", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		pods := ordinary.client().CoreV1().Pods(namespace)
		create := func() error {
			return framework.ErrorOf(pods.Create(ctx, newPod("web", map[string]string{labelDeletionProtection: "always"}), metav1.CreateOptions{DryRun: dryRun}))
		}
		refusal := create()
		Expect(refusal).To(BeRefused("pod web was not accepted", "does not keep it from being evicted", labelExplicitDeletion+"=required"))
		ordinary.followAdvice(ctx, refusal)
		Eventually(ctx, create).WithTimeout(policyWait).Should(Succeed())
	}, SpecTimeout(specTimeout))

	It("is refused on a kind without replicas, with what to use instead", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		as := ordinary.client()
		meta := metav1.ObjectMeta{Name: "agent", Labels: map[string]string{labelReplicasProtection: "confirm"}}
		template := podTemplate(framework.AppLabels("agent"))
		agent := framework.NewDaemonSet("agent", template)
		agent.Labels = meta.Labels
		Expect(framework.ErrorOf(as.AppsV1().DaemonSets(namespace).Create(ctx, agent, metav1.CreateOptions{DryRun: dryRun}))).To(BeRefused("daemonsets agent was not accepted", "the kind has no replicas", "deletion-protection=cascading", "OperationWindow"))
		template.Spec.RestartPolicy = corev1.RestartPolicyNever
		job := batchv1.JobSpec{Template: template}
		Expect(framework.ErrorOf(as.BatchV1().Jobs(namespace).Create(ctx, &batchv1.Job{ObjectMeta: meta, Spec: job}, metav1.CreateOptions{DryRun: dryRun}))).To(BeRefused("jobs agent was not accepted", "deletion-protection=cascading"))
		Expect(framework.ErrorOf(as.BatchV1().CronJobs(namespace).Create(ctx, &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{
			Schedule: "0 0 1 1 *", JobTemplate: batchv1.JobTemplateSpec{Spec: job},
		}}, metav1.CreateOptions{DryRun: dryRun}))).To(BeRefused("cronjobs agent was not accepted"))
		meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "batch/v1", Kind: "CronJob", Name: "x", UID: "00000000-0000-4000-8000-000000000000", Controller: new(true)}}
		_, err := as.BatchV1().Jobs(namespace).Create(ctx, &batchv1.Job{ObjectMeta: meta, Spec: job}, metav1.CreateOptions{DryRun: dryRun})
		Expect(err).NotTo(HaveOccurred(), "a Job of a CronJob, with the labels of its template")
	}, SpecTimeout(specTimeout))
})
