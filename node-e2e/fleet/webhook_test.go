package fleet

import (
	"context"
	"os"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"kubelet-guard.io/node-e2e/images"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// Names from the manifests of the companion control plane.
const (
	webhookNamespace = "kubelet-guard-system"
	webhookName      = "guard-webhook"
	webhookSelector  = "app.kubernetes.io/name=guard-webhook"
	webhookImage     = "localhost/guard/webhook:dev"
)

const (
	// webhookStart covers the load of the image and the roll-out of two replicas.
	webhookStart = 4 * time.Minute
	// webhookWait covers one part of it.
	webhookWait = 2 * time.Minute
)

// withWebhook are the labels of a namespace in which the companion control plane acts,
// and whose pods may be protected. Elsewhere it does nothing.
var withWebhook = map[string]string{
	"kubelet-guard.io/canary":      "true",
	guardv1alpha1.ProtectPodsLabel: guardv1alpha1.ProtectPodsAllowed,
}

// webhookInstalled: this run has installed the webhook.
var webhookInstalled bool

// installWebhook installs the companion control plane, once in a run, by the overlay
// canary: it acts in namespaces with the labels withWebhook and in no others, so that
// specs with and without it need no order. Its pods are away from the nodes that specs
// break.
func installWebhook(ctx context.Context) {
	GinkgoHelper()
	if webhookInstalled {
		return
	}
	oneAtATime(func() {
		archive := filepath.Join(artifactsDir(), "webhook.tar")
		Expect(writeImage(archive, images.Program(webhookImage, webhookProgram()))).To(Succeed(), "write the webhook's image")
		Expect(cluster.LoadImage(ctx, archive, elsewhere())).To(Succeed(), "load the webhook's image")
		kubectl(ctx, "apply", "-k", webhookOverlay())
		kubectl(ctx, "rollout", "status", "-n", webhookNamespace, "deployment/"+webhookName, "--timeout=2m")
		Eventually(ctx, func(g Gomega) {
			configuration, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "kubelet-guard", metav1.GetOptions{})
			g.Expect(err).NotTo(HaveOccurred())
			for _, webhook := range configuration.Webhooks {
				g.Expect(webhook.ClientConfig.CABundle).NotTo(BeEmpty(), webhook.Name)
			}
		}).WithTimeout(webhookWait).Should(Succeed(), "the webhook to write its certificate authority into the configuration")
	})
	awaitWebhook(ctx)
	webhookInstalled = true
}

func writeImage(file string, image images.Image) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := images.Write(f, image); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// webhookOverlay writes an overlay over the project's canary and returns its folder.
// It binds the webhook to the node that no spec damages.
func webhookOverlay() string {
	GinkgoHelper()
	dir := filepath.Join(artifactsDir(), "webhook")
	Expect(os.MkdirAll(dir, 0o755)).To(Succeed())
	base, err := filepath.Rel(dir, filepath.Join(manifestsDir, "control-plane", "overlays", "canary"))
	Expect(err).NotTo(HaveOccurred())
	patch := `apiVersion: apps/v1
kind: Deployment
metadata: {name: ` + webhookName + `, namespace: ` + webhookNamespace + `}
spec:
  template:
    spec:
      nodeSelector: {` + controlPlaneRole + `: ""}
      tolerations: [{key: ` + controlPlaneRole + `, operator: Exists}]
`
	content, err := yaml.Marshal(map[string]any{
		"apiVersion": "kustomize.config.k8s.io/v1beta1",
		"kind":       "Kustomization",
		"resources":  []string{base},
		"patches":    []map[string]string{{"patch": patch}},
	})
	Expect(err).NotTo(HaveOccurred())
	Expect(os.WriteFile(filepath.Join(dir, "kustomization.yaml"), content, 0o644)).To(Succeed())
	return dir
}

// awaitWebhook waits until the API server gets the webhook's answers: an object with
// an override annotation is the webhook's to decide, and this one it must refuse.
func awaitWebhook(ctx context.Context) {
	GinkgoHelper()
	const name = "kubelet-guard-e2e-probe"
	configMaps := client.CoreV1().ConfigMaps(newNamespace(ctx, withWebhook))
	Eventually(ctx, func(g Gomega) {
		_, err := configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{guardv1alpha1.DeletionProtectionLabel: "always"},
			Annotations: map[string]string{guardv1alpha1.OverrideAnnotation: "not a time"},
		}}, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			g.Expect(err).NotTo(HaveOccurred())
		}
		err = configMaps.Delete(ctx, name, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
		g.Expect(err).To(MatchError(ContainSubstring("kubelet-guard")), "the answer to a delete that must be refused")
	}).WithTimeout(webhookWait).Should(Succeed(), "the webhook's rules are in force")
}
