package controlplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"kubelet-guard.io/node-e2e/framework"
)

// annotationOfPolicies is the API server's own, for a refusal whose action is Audit.
const annotationOfPolicies = "validation.policy.admission.k8s.io/validation_failure"

var _ = Describe("the overlay audit", Label(labelInstall), Serial, Ordered, func() {
	BeforeAll(func(ctx SpecContext) {
		DeferCleanup(func(ctx SpecContext) { install(ctx, overlayEnforce) }, NodeTimeout(clusterStart))
		install(ctx, overlayAudit)
	}, NodeTimeout(clusterStart))

	It("warns and lets pass what a policy would refuse, and leaves a trace in the audit log", func(ctx SpecContext) {
		namespace := newNamespace(ctx, nil)
		framework.Must(client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "labelled", Labels: map[string]string{labelDeletionProtection: "always"}},
		}, metav1.CreateOptions{}))
		since := time.Now()
		as, warnings := ordinary.warned()
		Expect(as.CoreV1().ConfigMaps(namespace).Delete(ctx, "labelled", metav1.DeleteOptions{})).To(Succeed())
		Expect(warnings.all()).To(ContainElement(ContainSubstring("configmaps labelled was not deleted")))
		entry := auditEntry(ctx, since, "the deletion of the ConfigMap", func(e auditv1.Event) bool {
			return e.Verb == "delete" && e.ObjectRef.Namespace == namespace && e.ObjectRef.Name == "labelled"
		})
		Expect(entry.Annotations).To(HaveKeyWithValue(annotationOfPolicies, ContainSubstring("configmaps labelled was not deleted")))
		Expect(entry.ImpersonatedUser.Username).To(Equal(ordinary.name))
	}, SpecTimeout(specTimeout))

	It("warns and lets pass what the webhook would refuse, and leaves a trace in the audit log", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		createPod(ctx, namespace, newPod("web", map[string]string{labelExplicitDeletion: "required"}))
		since := time.Now()
		as, warnings := ordinary.warned()
		framework.Must(as.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:null}}}`, labelProtectPods), metav1.PatchOptions{}))
		Expect(warnings.all()).To(ContainElement(ContainSubstring("audit mode")))
		entry := auditEntry(ctx, since, "the update of the namespace", func(e auditv1.Event) bool {
			return e.Verb == "patch" && e.ObjectRef.Resource == "namespaces" && e.ObjectRef.Name == namespace && e.ImpersonatedUser != nil && e.ImpersonatedUser.Username == ordinary.name
		})
		Expect(slices.Collect(maps.Keys(entry.Annotations))).To(ContainElement(HavePrefix("protection.kubelet-guard.io/")), "%v", entry.Annotations)
		Expect(strings.Join(slices.Collect(maps.Values(entry.Annotations)), "\n")).To(ContainSubstring("Audit"))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("the overlay canary", Label(labelInstall), Serial, func() {
	It("refuses in labelled namespaces only", func(ctx SpecContext) {
		const label = "kubelet-guard.io/canary"
		DeferCleanup(func(ctx SpecContext) {
			install(ctx, overlayEnforce)
			kubectl(ctx, "label", "namespace", metav1.NamespaceDefault, label+"-").ExpectDone()
		}, NodeTimeout(clusterStart))
		// The probes of the installation are there.
		kubectl(ctx, "label", "namespace", metav1.NamespaceDefault, label+"=true").ExpectDone()
		install(ctx, overlayCanary)

		canary := newNamespace(ctx, map[string]string{label: "true", labelProtectPods: "allowed"})
		other := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		for _, namespace := range []string{canary, other} {
			framework.Must(client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: "labelled", Labels: map[string]string{labelDeletionProtection: "always"}},
			}, metav1.CreateOptions{}))
			createPod(ctx, namespace, newPod("web", map[string]string{labelExplicitDeletion: "required"}))
		}
		as := ordinary.client()
		takeGrant := func(namespace string) error {
			return framework.ErrorOf(as.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"labels":{%q:null}}}`, labelProtectPods), metav1.PatchOptions{}))
		}
		Eventually(ctx, func() error {
			return as.CoreV1().ConfigMaps(other).Delete(ctx, "labelled", metav1.DeleteOptions{})
		}).WithTimeout(policyWait).Should(Succeed(), "a policy, elsewhere")
		Expect(as.CoreV1().ConfigMaps(canary).Delete(ctx, "labelled", metav1.DeleteOptions{})).To(BeRefused(), "a policy, in the canary")
		Expect(takeGrant(other)).To(Succeed(), "the webhook, elsewhere")
		Expect(takeGrant(canary)).To(BeRefused(), "the webhook, in the canary")
	}, SpecTimeout(clusterStart))
})
