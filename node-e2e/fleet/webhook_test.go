package fleet

import (
	"context"
	"path/filepath"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"kubelet-guard.io/node-e2e/framework"
	"kubelet-guard.io/node-e2e/framework/webhookinstall"
	"kubelet-guard.io/node-e2e/images"
	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
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
		Expect(images.WriteFile(archive, images.Program(webhookinstall.Image, webhookProgram()))).To(Succeed(), "write the webhook's image")
		Expect(cluster.LoadImage(ctx, archive, elsewhere())).To(Succeed(), "load the webhook's image")
		kubectl(ctx, "apply", "-k", webhookOverlay())
		kubectl(ctx, "rollout", "status", "-n", webhookinstall.Namespace, "deployment/"+webhookinstall.Deployment, "--timeout=2m")
		webhookinstall.AwaitCertificate(ctx, client, webhookWait)
	})
	awaitWebhook(ctx)
	webhookInstalled = true
}

// webhookOverlay writes an overlay over the project's canary and returns its folder.
// It binds the webhook to the node that no spec damages.
func webhookOverlay() string {
	GinkgoHelper()
	dir := filepath.Join(artifactsDir(), "webhook")
	Expect(webhookinstall.Overlay{Manifests: manifestsDir, Base: "canary", PodSpec: map[string]any{
		"nodeSelector": map[string]string{controlPlaneRole: ""},
		"tolerations":  []corev1.Toleration{{Key: controlPlaneRole, Operator: corev1.TolerationOpExists}},
	}}.Write(dir)).To(Succeed())
	return dir
}

// awaitWebhook waits until the API server gets the webhook's responses: one that it must
// refuse.
func awaitWebhook(ctx context.Context) {
	GinkgoHelper()
	configMaps := client.CoreV1().ConfigMaps(newNamespace(ctx, withWebhook))
	Eventually(ctx, func(g Gomega) {
		answer := framework.Try(webhookinstall.Probe(ctx, configMaps)).In(g)
		// An API server that does not reach the webhook responds with another code.
		g.Expect(apierrors.IsForbidden(answer)).To(BeTrue(), "the answer to a delete that must be refused: %v", answer)
	}).WithTimeout(webhookWait).Should(Succeed(), "the webhook's rules are effective")
}
