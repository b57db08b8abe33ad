package controlplane

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"kubelet-guard.io/node-e2e/framework"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

var _ = Describe("the role kubelet-guard-protector", Label(labelPolicies), func() {
	protector := user{name: "protector", groups: []string{"kubelet-guard:protectors"}}

	// bind is the RoleBinding that manifests/rbac/protector.yaml shows.
	bind := func(ctx context.Context, namespace string) {
		GinkgoHelper()
		framework.Must(client.RbacV1().RoleBindings(namespace).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "kubelet-guard-protectors"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "kubelet-guard-protector"},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "kubelet-guard:protectors"}},
		}, metav1.CreateOptions{}))
	}
	patchAs := func(ctx context.Context, who user, namespace, kind, patch string) error {
		patchType := types.MergePatchType
		if kind == "json" {
			patchType = types.JSONPatchType
		}
		return framework.ErrorOf(who.client().CoreV1().Pods(namespace).Patch(ctx, "web", patchType, []byte(patch), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}))
	}

	It("changes the guard's label and annotations of pods, and nothing else", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		createPod(ctx, namespace, newPod("web", nil))
		Expect(patchAs(ctx, protector, namespace, "merge", `{}`)).To(MatchError(apierrors.IsForbidden, "is forbidden"), "the role is bound to nobody")
		bind(ctx, namespace)
		Eventually(ctx, func() error {
			return patchAs(ctx, protector, namespace, "merge", `{"metadata":{"labels":{"kubelet-guard.io/explicit-deletion":"required"}}}`)
		}).WithTimeout(policyWait).Should(Succeed(), "the label")
		Expect(patchAs(ctx, protector, namespace, "merge", `{"metadata":{"annotations":{"kubelet-guard.io/note":"x"}}}`)).To(Succeed(), "an annotation of the guard")

		for _, refused := range []struct{ what, kind, patch, words string }{
			{"image", "json", `[{"op":"replace","path":"/spec/containers/0/image","value":"evil"}]`, "changes the spec"},
			{"image and label", "merge", `{"metadata":{"labels":{"kubelet-guard.io/explicit-deletion":"required"}},"spec":{"activeDeadlineSeconds":5}}`, "changes the spec"},
			{"tolerations", "json", `[{"op":"add","path":"/spec/tolerations/-","value":{"key":"a","operator":"Exists","effect":"NoSchedule"}}]`, "changes the spec"},
			{"another label", "merge", `{"metadata":{"labels":{"team":"x"}}}`, "changes another"},
			{"another label away", "merge", `{"metadata":{"labels":{"app":null}}}`, "changes another"},
			{"another label over", "merge", `{"metadata":{"labels":{"app":"other"}}}`, "changes another"},
			{"another annotation", "merge", `{"metadata":{"annotations":{"x":"y"}}}`, "changes another"},
			{"an owner", "merge", `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ConfigMap","name":"x","uid":"u"}]}}`, "owners or finalizers"},
			{"a finalizer", "merge", `{"metadata":{"finalizers":["example.com/x"]}}`, "owners or finalizers"},
		} {
			Expect(patchAs(ctx, protector, namespace, refused.kind, refused.patch)).To(BeRefused(refused.words), refused.what)
		}
		err := protector.client().CoreV1().Pods(namespace).Delete(ctx, "web", metav1.DeleteOptions{})
		Expect(err).To(MatchError(apierrors.IsForbidden, "is forbidden"))

		elsewhere := newNamespace(ctx, nil)
		createPod(ctx, elsewhere, newPod("web", nil))
		Expect(patchAs(ctx, protector, elsewhere, "merge", `{}`)).To(MatchError(apierrors.IsForbidden, "is forbidden"), "in another namespace")
	}, SpecTimeout(specTimeout))

	It("does not limit who has full rights to pods", func(ctx SpecContext) {
		namespace := newNamespace(ctx, map[string]string{labelProtectPods: "allowed"})
		createPod(ctx, namespace, newPod("web", nil))
		bind(ctx, namespace)
		const image = `[{"op":"replace","path":"/spec/containers/0/image","value":"other"}]`
		both := user{name: "both", groups: []string{groupEditors, "kubelet-guard:protectors"}}
		for _, who := range []user{ordinary, both, {name: "admin", groups: []string{"system:masters"}}} {
			Expect(patchAs(ctx, who, namespace, "json", image)).To(Succeed(), who.name)
		}
	}, SpecTimeout(specTimeout))

	It("is not what a releaser has", func(ctx SpecContext) {
		releaser := user{name: "releaser", groups: []string{"kubelet-guard:releasers"}}
		namespace := newNamespace(ctx, nil)
		createPod(ctx, namespace, newPod("web", nil))
		Expect(patchAs(ctx, releaser, namespace, "merge", `{}`)).To(MatchError(apierrors.IsForbidden, "is forbidden"))
		const uid = "11111111-2222-3333-4444-555555555555"
		createRecord(ctx, releaser.dynamic(), metav1.ObjectMeta{Name: uid}, guardv1alpha1.PodDeletionSpec{Namespace: namespace, Name: "gone", NodeName: "node-a"})
		DeferCleanup(func(ctx context.Context) error {
			return records(releaser.dynamic()).Delete(ctx, uid, metav1.DeleteOptions{})
		})
		By("finding it by its node, as the node does")
		node := records(nodeUser("node-a").dynamic())
		for name, want := range map[string]int{"node-a": 1, "node-b": 0} {
			Expect(framework.Must(node.List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + name, ResourceVersion: ""})).Items).To(HaveLen(want), name)
		}
		By("not changing it")
		Expect(framework.ErrorOf(records(dynamicClient).Patch(ctx, uid, types.MergePatchType, []byte(`{"spec":{"nodeName":"node-b"}}`), metav1.PatchOptions{}))).To(MatchError(apierrors.IsInvalid, "is invalid"))
	}, SpecTimeout(specTimeout))
})
