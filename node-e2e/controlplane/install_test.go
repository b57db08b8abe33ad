package controlplane

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
)

// Names from the manifests.
const (
	guardNamespace     = webhookinstall.Namespace
	webhookName        = webhookinstall.Deployment
	webhookSelector    = webhookinstall.Selector
	webhookReplicas    = 2
	webhookHealthPort  = "8081"
	webhookMetricsPort = "8080"

	overlayAudit   = "audit"
	overlayEnforce = "enforce"
	overlayCanary  = "canary"
)

const (
	// rolloutWait covers two pods that start one after the other, each with its
	// caches, on a loaded machine.
	rolloutWait = 2 * time.Minute
	// policyWait covers the time until the API server has compiled new policies; it
	// looks for changes every second.
	policyWait = 20 * time.Second
)

// overlayDir writes an overlay over one of the project's for this cluster and
// returns its folder. It adds the one thing that a cluster without a service proxy
// needs: pods must know where the API server is.
func overlayDir(overlay string) string {
	GinkgoHelper()
	host, port, err := net.SplitHostPort(framework.Must(url.Parse(adminConfig.Host)).Host)
	Expect(err).NotTo(HaveOccurred())
	dir := filepath.Join(artifactsDir(), "overlays", overlay)
	components := []string{"callers"}
	if kubernetes135() {
		components = append(components, "kubernetes-1.35")
	}
	Expect(webhookinstall.Overlay{Manifests: manifestsDir, Base: overlay, Components: components, PodSpec: map[string]any{
		"containers": []any{map[string]any{"name": webhookinstall.Container, "env": []corev1.EnvVar{
			{Name: "KUBERNETES_SERVICE_HOST", Value: host},
			{Name: "KUBERNETES_SERVICE_PORT", Value: port},
		}}},
	}}.Write(dir)).To(Succeed())
	return dir
}

// admissionResources are the kinds of admission configuration that the manifests have.
func admissionResources() []string {
	kinds := []string{"validatingadmissionpolicies", "validatingadmissionpolicybindings", "validatingwebhookconfigurations"}
	if kubernetes135() {
		return kinds
	}
	return append(kinds, "mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
}

// install applies an overlay, on a new cluster or over another overlay, and returns
// when its rules are effective.
func install(ctx context.Context, overlay string) {
	GinkgoHelper()
	kubectl(ctx, "apply", "-k", overlayDir(overlay)).ExpectDone()
	if *webhookFlag {
		awaitWebhook(ctx)
	}
	awaitPolicies(ctx, overlay)
}

// awaitWebhook waits until the roll-out is complete and the API server can reach
// both replicas.
func awaitWebhook(ctx context.Context) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		deployment := framework.Try(client.AppsV1().Deployments(guardNamespace).Get(ctx, webhookName, metav1.GetOptions{})).In(g)
		status := deployment.Status
		g.Expect(status.ObservedGeneration).To(Equal(deployment.Generation), "the roll-out is not seen yet")
		g.Expect([]int32{status.Replicas, status.UpdatedReplicas, status.AvailableReplicas}).
			To(HaveEach(*deployment.Spec.Replicas), "replicas, updated, available")
		g.Expect(*deployment.Spec.Replicas).To(BeEquivalentTo(webhookReplicas))
	}).WithTimeout(rolloutWait).Should(Succeed(), "roll-out of the webhook")
	// A replica that is stopping still responds, as it was started.
	Eventually(ctx, func(g Gomega) {
		pods := framework.Try(client.CoreV1().Pods(guardNamespace).List(ctx, metav1.ListOptions{LabelSelector: webhookSelector})).In(g)
		g.Expect(pods.Items).To(HaveLen(webhookReplicas), "pods of the webhook, terminating ones included")
	}).WithTimeout(rolloutWait).Should(Succeed(), "the end of the webhook's earlier pods")
	webhookinstall.AwaitCertificate(ctx, client, rolloutWait)
	Eventually(ctx, func(g Gomega) {
		g.Expect(probeWebhook(ctx)).To(Succeed())
	}).WithTimeout(rolloutWait).Should(Succeed(), "a response of the webhook to the API server")
}

// probeWebhook makes the API server call the webhook, without changing anything.
func probeWebhook(ctx context.Context) error {
	answer, err := webhookinstall.Probe(ctx, client.CoreV1().ConfigMaps(metav1.NamespaceDefault))
	if err != nil {
		return err
	}
	if apierrors.IsForbidden(answer) {
		return nil // it is in Enforce; in Audit the response is nil
	}
	return answer
}

// policyProbeName is the object of dry runs that show whether policies are effective.
const policyProbeName = webhookinstall.ProbeName + "-policy"

// awaitPolicies waits until the API server has taken up the policies of an overlay
// and its binding's actions.
func awaitPolicies(ctx context.Context, overlay string) {
	GinkgoHelper()
	const name = policyProbeName
	_, err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{labelDeletionProtection: "always"},
	}}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		Expect(err).NotTo(HaveOccurred())
	}
	Eventually(ctx, func(g Gomega) {
		guarded, seen := ordinary.warned()
		err := guarded.CoreV1().ConfigMaps(metav1.NamespaceDefault).Delete(ctx, name, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		if overlay == overlayAudit {
			g.Expect(err).NotTo(HaveOccurred())
			g.Expect(seen.all()).NotTo(BeEmpty(), "warnings")
			return
		}
		g.Expect(err).To(BeRefused())
	}).WithTimeout(policyWait).Should(Succeed(), "the policies of overlay %s to be effective", overlay)

	// These have parameters, of which the API server keeps a cache.
	deployments := client.AppsV1().Deployments(metav1.NamespaceDefault)
	_, err = deployments.Create(ctx, newDeployment(name, 0, map[string]string{labelReplicasProtection: "confirm"}), metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		Expect(err).NotTo(HaveOccurred())
	}
	Eventually(ctx, func() string {
		scaled := ordinary.kubectl(ctx, "scale", "deployment", name, "-n", metav1.NamespaceDefault, "--replicas=1", "--dry-run=server")
		return scaled.Stderr
	}).WithTimeout(policyWait).Should(ContainSubstring("were not changed from 0 to 1"), "the policies of /scale to be effective")
}

// webhookPods lists the pods of the webhook.
func webhookPods(ctx context.Context) []corev1.Pod {
	GinkgoHelper()
	return framework.Must(client.CoreV1().Pods(guardNamespace).List(ctx, metav1.ListOptions{LabelSelector: webhookSelector})).Items
}

// stopWebhook stops all replicas of the webhook for the rest of the spec.
func stopWebhook(ctx context.Context) {
	GinkgoHelper()
	DeferCleanup(scaleWebhook, webhookReplicas, NodeTimeout(clusterStart))
	scaleWebhook(ctx, 0)
}

// scaleWebhook sets the number of replicas and returns when it is reached; with 0,
// when no pod is left.
func scaleWebhook(ctx context.Context, replicas int) {
	GinkgoHelper()
	kubectl(ctx, "scale", "-n", guardNamespace, "deployment/"+webhookName, fmt.Sprintf("--replicas=%d", replicas)).ExpectDone()
	if replicas > 0 {
		awaitWebhook(ctx)
		return
	}
	Eventually(ctx, func(g Gomega) {
		pods := framework.Try(client.CoreV1().Pods(guardNamespace).List(ctx, metav1.ListOptions{LabelSelector: webhookSelector})).In(g)
		g.Expect(pods.Items).To(BeEmpty(), "pods of the webhook")
	}).WithTimeout(rolloutWait).Should(Succeed(), "end of the webhook's pods")
}

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
