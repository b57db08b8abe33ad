package controlplane

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/framework"
)

// staticFolderOfExample is the folder that the example of the configuration names.
const staticFolderOfExample = "/etc/kubernetes/admission/validating"

func staticManifestsDir() string { return filepath.Join(artifactsDir(), "static") }

// admissionConfiguration writes the project's two examples of an admission configuration
// as one, with a folder of static manifests of the suite's own, emptied, and the
// certificates of the cluster, and returns its path.
func admissionConfiguration(pki string) (string, error) {
	if err := os.RemoveAll(staticManifestsDir()); err != nil {
		return "", err
	}
	if err := os.MkdirAll(staticManifestsDir(), 0o755); err != nil {
		return "", err
	}
	examples := filepath.Join(manifestsDir, "control-plane", "static")
	kubeconfig := filepath.Join(artifactsDir(), "webhooks.kubeconfig")
	own := strings.NewReplacer(
		staticFolderOfExample, staticManifestsDir(),
		"/etc/kubernetes/admission/webhooks.kubeconfig", kubeconfig,
		"/etc/kubernetes/pki", pki,
	)
	credentials, err := os.ReadFile(filepath.Join(examples, "callers", "webhooks.kubeconfig"))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(kubeconfig, []byte(own.Replace(string(credentials))), 0o600); err != nil {
		return "", err
	}
	var merged map[string]any
	folders := []string{".", "callers"}
	if kubernetes135() {
		folders = folders[1:]
	}
	for _, folder := range folders {
		example, err := os.ReadFile(filepath.Join(examples, folder, "admission-configuration.yaml"))
		if err != nil {
			return "", err
		}
		var configuration map[string]any
		if err := yaml.Unmarshal([]byte(own.Replace(string(example))), &configuration); err != nil {
			return "", err
		}
		if merged == nil {
			merged = configuration
			continue
		}
		merged["plugins"] = append(merged["plugins"].([]any), configuration["plugins"].([]any)...)
	}
	content, err := yaml.Marshal(merged)
	if err != nil {
		return "", err
	}
	path := filepath.Join(artifactsDir(), "admission-configuration.yaml")
	return path, os.WriteFile(path, content, 0o644)
}

// staticWait covers the time in which the API server sees a new file: it watches the
// folder, and looks every minute in case the watch misses something.
const staticWait = 90 * time.Second

// The parts of the installation that stand for their kinds.
var (
	ownPolicy  = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicies"}
	ownBinding = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"}
	ownWebhook = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
)

var _ = Describe("the guard's own parts", Label(labelInstall, labelPolicies), Ordered, func() {
	dryRun := metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}
	deleteDry := func(ctx SpecContext, gvr schema.GroupVersionResource, namespace, name string) error {
		return resourceIn(ordinary.dynamic(), gvr, namespace).Delete(ctx, name, dryRun)
	}

	DescribeTable("are not deleted by accident",
		func(ctx SpecContext, group, version, resource, namespace, name string) {
			gvr := schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
			Expect(deleteDry(ctx, gvr, namespace, name)).To(BeRefused(name + " was not deleted"))
		},
		Entry(nil, SpecTimeout(specTimeout), "", "v1", "namespaces", "", guardNamespace),
		Entry(nil, SpecTimeout(specTimeout), "apps", "v1", "deployments", guardNamespace, webhookName),
		Entry(nil, SpecTimeout(specTimeout), "", "v1", "services", guardNamespace, webhookName),
		Entry(nil, SpecTimeout(specTimeout), "rbac.authorization.k8s.io", "v1", "clusterroles", "", "kubelet-guard-webhook"),
		Entry(nil, SpecTimeout(specTimeout), "apiextensions.k8s.io", "v1", "customresourcedefinitions", "", "operationwindows.kubelet-guard.io"),
		Entry(nil, SpecTimeout(specTimeout), "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "", "kubelet-guard"),
	)

	It("are kept whatever override is on admission configuration, which no webhook sees", func(ctx SpecContext) {
		kept := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{
			GenerateName: "kept-", Labels: map[string]string{labelDeletionProtection: "always"},
			Annotations: map[string]string{annotationOverride: overrideFor(time.Hour, "not judged by anybody")},
		}}
		configurations := client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
		kept = framework.Must(configurations.Create(ctx, kept, metav1.CreateOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			kubectl(ctx, "label", "validatingwebhookconfiguration", kept.Name, labelDeletionProtection+"-").ExpectDone()
			Expect(configurations.Delete(ctx, kept.Name, metav1.DeleteOptions{})).To(Succeed())
		}, NodeTimeout(specTimeout))
		for _, u := range []user{ordinary, overrider} {
			Expect(resourceIn(u.dynamic(), ownWebhook, "").Delete(ctx, kept.Name, dryRun)).To(BeRefused(kept.Name+" was not deleted"), u.name)
		}
	}, SpecTimeout(specTimeout))

	It("leaves policies and bindings to a policy from a file of the API server", func(ctx SpecContext) {
		needs136("policies from files")
		const name = "always.deletion.kubelet-guard.io"
		Expect(deleteDry(ctx, ownPolicy, "", name)).To(Succeed(), "policies are exempt from policies of the API")
		Expect(deleteDry(ctx, ownBinding, "", name)).To(Succeed(), "bindings are exempt from policies of the API")

		By("installing the static manifest")
		content := framework.Must(os.ReadFile(filepath.Join(manifestsDir, "control-plane", "static", "validating", "self-protection.yaml")))
		file := filepath.Join(staticManifestsDir(), "self-protection.yaml")
		Expect(os.WriteFile(file, content, 0o644)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Expect(os.Remove(file)).To(Succeed())
			Eventually(ctx, func() error { return deleteDry(ctx, ownPolicy, "", name) }).WithTimeout(staticWait).Should(Succeed(), "the static policy to go")
		}, NodeTimeout(staticWait+podStart))
		Eventually(ctx, func() error { return deleteDry(ctx, ownPolicy, "", name) }).
			WithTimeout(staticWait).Should(BeRefused("validatingadmissionpolicies.admissionregistration.k8s.io " + name + " was not deleted"))
		refusal := deleteDry(ctx, ownBinding, "", name)
		Expect(refusal).To(BeRefused("validatingadmissionpolicybindings.admissionregistration.k8s.io " + name + " was not deleted"))
		Expect(deleteDry(ctx, ownWebhook, "", "kubelet-guard")).To(BeRefused())

		By("following its advice")
		ordinary.followAdvice(ctx, refusal)
		Expect(deleteDry(ctx, ownBinding, "", name)).To(Succeed())
		kubectl(ctx, "label", ownBinding.Resource, name, labelDeletionProtection+"=always").ExpectDone()
	}, SpecTimeout(staticWait+specTimeout))
})

var _ = Describe("the installation", Label(labelInstall), Serial, func() {
	It("changes nothing when it is applied again", func(ctx SpecContext) {
		dir := overlayDir(overlayEnforce)
		generations := func() string {
			return kubectl(ctx, "get", "-k", dir, `-o=jsonpath={range .items[*]}{.kind} {.metadata.name} {.metadata.generation}{"\n"}{end}`).ExpectDone().Stdout
		}
		before := generations()
		kubectl(ctx, "apply", "-k", dir).ExpectDone()
		Expect(generations()).To(Equal(before))
		Expect(before).To(And(ContainSubstring("Deployment guard-webhook "), ContainSubstring("ValidatingWebhookConfiguration kubelet-guard")))
		awaitWebhook(ctx)
	}, SpecTimeout(specTimeout))

	// As the documentation says: the API server does not start its cache of
	// parameters again once no policy had a use for it.
	installAgain := func(ctx SpecContext) {
		GinkgoHelper()
		Expect(cluster.APIServer().Restart(ctx)).To(Succeed())
		install(ctx, overlayEnforce)
	}

	It("keeps what matters when all of it is deleted by accident, and is repaired by applying it again", func(ctx SpecContext) {
		dir := overlayDir(overlayEnforce)
		webhook := framework.Must(client.AppsV1().Deployments(guardNamespace).Get(ctx, webhookName, metav1.GetOptions{}))
		DeferCleanup(installAgain, NodeTimeout(clusterStart))
		accident := ordinary.kubectl(ctx, "delete", "-k", dir, "--wait=false")
		Expect(accident.Err).To(HaveOccurred())
		Expect(accident.Stderr).To(And(
			ContainSubstring("namespaces "+guardNamespace+" was not deleted"),
			ContainSubstring("customresourcedefinitions.apiextensions.k8s.io poddeletions.kubelet-guard.io was not deleted"),
			ContainSubstring("deployments.apps "+webhookName+" was not deleted"),
		))
		kept := framework.Must(client.AppsV1().Deployments(guardNamespace).Get(ctx, webhookName, metav1.GetOptions{}))
		Expect(kept.UID).To(Equal(webhook.UID))
		Expect(kept.DeletionTimestamp).To(BeNil())
	}, SpecTimeout(specTimeout))

	It("goes in two steps and leaves nothing", func(ctx SpecContext) {
		dir := overlayDir(overlayEnforce)
		DeferCleanup(installAgain, NodeTimeout(clusterStart))
		By("the two steps of the documentation")
		kubectl(ctx, "label", "-k", dir, labelDeletionProtection+"-").ExpectDone()
		kubectl(ctx, "delete", "-k", dir, "--timeout=90s").ExpectDone()

		left := kubectl(ctx, "get", "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,"+strings.Join(admissionResources(), ","),
			"-l", "app.kubernetes.io/part-of=kubelet-guard", "-o", "name").ExpectDone()
		Expect(left.Stdout).To(BeEmpty())
		Eventually(ctx, func() error {
			err := ordinary.client().CoreV1().ConfigMaps(metav1.NamespaceDefault).Delete(ctx, policyProbeName, metav1.DeleteOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}).WithTimeout(policyWait).Should(Succeed(), "a labelled object to be deletable without the guard")
	}, SpecTimeout(clusterStart))
})
