package controlplane

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
)

// overridePatch sets or, with "", removes the override annotation of an object.
func overridePatch(value string) []byte {
	if value == "" {
		return fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, annotationOverride)
	}
	return fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, annotationOverride, value)
}

var _ = Describe("the override", func() {
	// protectedMap creates a ConfigMap that policies keep.
	protectedMap := func(ctx context.Context, namespace string) {
		GinkgoHelper()
		framework.Must(client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			Name: "kept", Labels: map[string]string{labelDeletionProtection: "always"},
		}}, metav1.CreateOptions{}))
	}
	// How the policy and the webhook name it.
	const byPolicy, byWebhook = "configmaps kept", "configmap/kept"
	annotate := func(ctx context.Context, namespace, value string) {
		GinkgoHelper()
		framework.Must(client.CoreV1().ConfigMaps(namespace).Patch(ctx, "kept", types.MergePatchType, overridePatch(value), metav1.PatchOptions{}))
	}

	DescribeTable("does not count when it is not right, and says why",
		func(ctx SpecContext, value func() string, who *user, refused, why string) {
			namespace := newNamespace(ctx, nil)
			protectedMap(ctx, namespace)
			annotate(ctx, namespace, value())
			err := who.client().CoreV1().ConfigMaps(namespace).Delete(ctx, "kept", metav1.DeleteOptions{})
			Expect(err).To(BeRefused(refused, "was not deleted", "does not count", why))
		},
		Entry("expired", SpecTimeout(specTimeout), func() string { return overrideFor(-time.Minute, "late") }, &overrider, byWebhook, "it expired at"),
		Entry("too far ahead", SpecTimeout(specTimeout), func() string { return overrideFor(48*time.Hour, "for ever") }, &overrider, byWebhook, "more than 24h0m0s ahead"),
		Entry("without a reason", SpecTimeout(specTimeout), func() string { return time.Now().Add(time.Hour).UTC().Format(time.RFC3339) }, &overrider, byWebhook, "has no reason"),
		Entry("without a time", SpecTimeout(specTimeout), func() string { return "please" }, &overrider, byWebhook, "does not start with a time"),
		Entry("by someone without the permission", SpecTimeout(specTimeout), func() string { return overrideFor(time.Hour, "mine") }, &ordinary, byPolicy, `user "ordinary" may not use the verb override`),
	)

	It("follows the roles, in the policies too", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		protectedMap(ctx, namespace)
		annotate(ctx, namespace, overrideFor(time.Hour, "ticket 20"))
		for name, subject := range map[string]struct {
			resource, object string
			may              bool
		}{
			"of-another-kind": {"secrets", "", false}, "of-another-name": {"configmaps", "other", false}, "of-the-kind": {"configmaps", "", true}, "of-the-name": {"configmaps", "kept", true},
		} {
			role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{subject.resource}, Verbs: []string{"override"}}}}
			if subject.object != "" {
				role.Rules[0].ResourceNames = []string{subject.object}
			}
			framework.Must(client.RbacV1().Roles(namespace).Create(ctx, role, metav1.CreateOptions{}))
			framework.Must(client.RbacV1().RoleBindings(namespace).Create(ctx, &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
				Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}},
			}, metav1.CreateOptions{}))
			remove := func() error {
				return user{name: name, groups: []string{groupEditors}}.client().CoreV1().ConfigMaps(namespace).Delete(ctx, "kept", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
			}
			if subject.may {
				// The authorizer learns of the role in an instant.
				Eventually(ctx, remove).WithTimeout(policyWait).Should(Succeed(), name)
				continue
			}
			Expect(remove()).To(BeRefused("may not use the verb override"), name)
		}
	}, SpecTimeout(specTimeout))

	It("lets one object go, with a warning and an entry in the audit log", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		protectedMap(ctx, namespace)
		annotate(ctx, namespace, overrideFor(time.Hour, "ticket 17"))
		since := time.Now()
		as, seen := overrider.warned()
		Expect(as.CoreV1().ConfigMaps(namespace).Delete(ctx, "kept", metav1.DeleteOptions{})).To(Succeed())
		Expect(seen.all()).To(ContainElement(And(ContainSubstring("CascadingDeletion was overridden"), ContainSubstring("ticket 17"))))
		entry := auditEntry(ctx, since, "the override", func(event auditv1.Event) bool {
			return event.Verb == "delete" && event.ObjectRef != nil && event.ObjectRef.Namespace == namespace && event.ObjectRef.Name == "kept"
		})
		Expect(entry.Annotations).To(And(
			HaveKeyWithValue("deletion.override.kubelet-guard.io/override", ContainSubstring("ticket 17 by overrider")),
			HaveKeyWithValue("deletion.override.kubelet-guard.io/CascadingDeletion", HavePrefix("Enforce Overridden DeletionProtected")),
		))
	}, SpecTimeout(specTimeout))

	It("is not needed for what the rule allows anyway", func(ctx SpecContext) {
		namespace := newNamespace(ctx, cascading)
		annotated := framework.Must(client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, overridePatch("not a time"), metav1.PatchOptions{}))
		Expect(ordinary.client().CoreV1().Namespaces().Delete(ctx, annotated.Name, metav1.DeleteOptions{})).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("counts for a namespace with pods, whose controller then ends them", func(ctx SpecContext) {
		namespace := newNamespace(ctx, cascading)
		createPod(ctx, namespace, newPod("web", nil))
		object := framework.Must(client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, overridePatch(overrideFor(time.Hour, "retired")), metav1.PatchOptions{}))
		Expect(ordinary.client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).To(BeRefused("pods: 1 (web)", "may not use the verb override"))
		Expect(overrider.client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})).To(Succeed())
		awaitGone(ctx, object)
	}, SpecTimeout(specTimeout))

	It("counts for replicas when it comes in the same update", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		deployment := newDeployment("web", 1, map[string]string{labelReplicasProtection: "confirm"})
		createDeployment(ctx, namespace, deployment)
		patch := func(u user, value string) error {
			return framework.ErrorOf(u.client().AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType,
				fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}},"spec":{"replicas":2}}`, annotationOverride, value), metav1.PatchOptions{}))
		}
		Expect(patch(ordinary, overrideFor(time.Hour, "x"))).To(BeRefused("the replicas of deployments.apps web were not changed from 1 to 2", "does not count", "may not use the verb override"))
		Expect(patch(overrider, "x")).To(BeRefused("does not start with a time"))
		Expect(patch(overrider, overrideFor(time.Hour, "ticket 18"))).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("takes the label off a running pod, by kubectl guard unprotect", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		createPod(ctx, namespace, newPod("web", map[string]string{labelExplicitDeletion: "required"}))
		unprotect := func(u user, arguments ...string) (string, error) {
			arguments = append([]string{"--kubeconfig=" + u.kubeconfig(), "unprotect", "pod/web", "-n", namespace}, arguments...)
			output, err := exec.CommandContext(ctx, filepath.Join(outputDir, "bin", "kubectl-guard"), arguments...).CombinedOutput()
			return string(output), err
		}
		output, err := unprotect(overrider)
		Expect(err).To(HaveOccurred(), output)
		Expect(output).To(ContainSubstring("pod web keeps the label"))
		output, err = unprotect(ordinary, "--override=node pool is retired")
		Expect(err).To(HaveOccurred(), output)
		Expect(output).To(And(ContainSubstring("pod web keeps the label"), ContainSubstring("may not use the verb override")))
		output, err = unprotect(overrider, "--override=node pool is retired")
		Expect(err).NotTo(HaveOccurred(), output)
		Expect(output).To(ContainSubstring("pod/web no longer protected"))
		pod := framework.Must(client.CoreV1().Pods(namespace).Get(ctx, "web", metav1.GetOptions{}))
		Expect(pod.Labels).NotTo(HaveKey(labelExplicitDeletion))
		Expect(pod.Annotations).To(HaveKeyWithValue(annotationOverride, HaveSuffix("node pool is retired")))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("the override where no webhook is", Label(labelOutage), Serial, func() {
	It("counts for who may use the verb, and for nobody else", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		for _, name := range []string{"one", "other"} {
			framework.Must(client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
				Name: name, Labels: map[string]string{labelDeletionProtection: "always"}, Annotations: map[string]string{annotationOverride: "x"},
			}}, metav1.CreateOptions{}))
		}
		createDeployment(ctx, namespace, newDeployment("web", 1, map[string]string{labelReplicasProtection: "confirm", labelDeletionProtection: "cascading"}))
		createPod(ctx, namespace, newPod("running", map[string]string{labelExplicitDeletion: "required"}))

		By("taking the configuration of the webhook away")
		configurations := client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
		configuration := framework.Must(configurations.Get(ctx, webhookinstall.Configuration, metav1.GetOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			configuration.ResourceVersion, configuration.UID = "", ""
			framework.Must(configurations.Create(ctx, configuration, metav1.CreateOptions{}))
			awaitWebhook(ctx)
		}, NodeTimeout(clusterStart))
		kubectl(ctx, "label", "validatingwebhookconfiguration", webhookinstall.Configuration, labelDeletionProtection+"-").ExpectDone()
		Expect(configurations.Delete(ctx, webhookinstall.Configuration, metav1.DeleteOptions{})).To(Succeed())
		Eventually(ctx, func() error {
			return overrider.client().CoreV1().ConfigMaps(namespace).Delete(ctx, "one", metav1.DeleteOptions{})
		}).WithTimeout(policyWait).Should(Succeed(), "with the verb, and nobody to judge the expiry")

		By("without the verb")
		as := ordinary.client()
		Expect(as.CoreV1().ConfigMaps(namespace).Delete(ctx, "other", metav1.DeleteOptions{})).To(BeRefused("configmaps other was not deleted", "does not count", "may not use the verb override"))
		framework.Must(client.AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType, overridePatch("x"), metav1.PatchOptions{}))
		Expect(as.AppsV1().Deployments(namespace).Delete(ctx, "web", metav1.DeleteOptions{})).To(BeRefused("deployments.apps web was not deleted", "does not count"))
		Expect(framework.ErrorOf(as.AppsV1().Deployments(namespace).Patch(ctx, "web", types.MergePatchType,
			fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"x"}},"spec":{"replicas":0}}`, annotationOverride), metav1.PatchOptions{}))).To(BeRefused("were not changed from 1 to 0", "does not count"))
		for _, way := range [][]string{nil, {"status"}} {
			Expect(framework.ErrorOf(as.CoreV1().Pods(namespace).Patch(ctx, "running", types.StrategicMergePatchType,
				fmt.Appendf(nil, `{"metadata":{"labels":{%q:null},"annotations":{%q:"x"}}}`, labelExplicitDeletion, annotationOverride), metav1.PatchOptions{}, way...))).To(BeRefused("pod running keeps the label", "does not count"), "subresource %v", way)
		}
	}, SpecTimeout(specTimeout))
})

var _ = Describe("the grant of a namespace", func() {
	regrant := func(ctx context.Context, u user, namespace, value string, subresources ...string) error {
		return framework.ErrorOf(u.client().CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType,
			fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, labelProtectPods, value), metav1.PatchOptions{}, subresources...))
	}

	It("stays while protected pods run, and goes with the last of them", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		pod := createPod(ctx, namespace, newPod("web", map[string]string{labelExplicitDeletion: "required"}))
		Expect(regrant(ctx, ordinary, namespace, "null")).To(BeRefused("namespace/"+namespace+" keeps the grant", "Protected pods: 1 (web)"))
		Expect(regrant(ctx, ordinary, namespace, "null", "status")).To(BeRefused("keeps the grant"), "by way of the status")
		finalized := framework.Must(client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{}))
		delete(finalized.Labels, labelProtectPods)
		Expect(framework.ErrorOf(client.CoreV1().Namespaces().Finalize(ctx, finalized, metav1.UpdateOptions{}))).To(BeRefused("keeps the grant"), "by way of the finalizers")
		Expect(regrant(ctx, ordinary, namespace, `"default"`)).To(Succeed(), "another kind of grant")

		Expect(client.CoreV1().Pods(namespace).Delete(ctx, "web", metav1.DeleteOptions{})).To(Succeed())
		awaitGone(ctx, pod)
		Expect(regrant(ctx, ordinary, namespace, "null")).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("stays while a protected pod waits for a node", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		pending := newPod("pending", map[string]string{labelExplicitDeletion: "required"})
		pending.Spec.NodeSelector = map[string]string{"no": "node"}
		framework.Must(client.CoreV1().Pods(namespace).Create(ctx, pending, metav1.CreateOptions{}))
		Expect(regrant(ctx, ordinary, namespace, "null")).To(BeRefused("Protected pods: 1 (pending)"))
	}, SpecTimeout(specTimeout))

	It("goes with an override while they run", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		createPod(ctx, namespace, newPod("web", map[string]string{labelExplicitDeletion: "required"}))
		framework.Must(client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, overridePatch(overrideFor(time.Hour, "moved")), metav1.PatchOptions{}))
		Expect(regrant(ctx, ordinary, namespace, "null")).To(BeRefused("may not use the verb override"))
		Expect(regrant(ctx, overrider, namespace, "null")).To(Succeed())
	}, SpecTimeout(specTimeout))
})
