package webhookinstall

import (
	"context"
	"time"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	guardv1alpha1 "kubelet-guard.io/pkg/apis/guard/v1alpha1"
)

// AwaitCertificate waits until the webhook has written its certificate authority into
// its configuration. Until then no call reaches it.
func AwaitCertificate(ctx context.Context, client kubernetes.Interface, within time.Duration) {
	ginkgo.GinkgoHelper()
	gomega.Eventually(ctx, func(g gomega.Gomega) {
		configuration, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, Configuration, metav1.GetOptions{})
		g.Expect(err).NotTo(gomega.HaveOccurred())
		for _, webhook := range configuration.Webhooks {
			g.Expect(webhook.ClientConfig.CABundle).NotTo(gomega.BeEmpty(), webhook.Name)
		}
	}).WithTimeout(within).Should(gomega.Succeed(), "the webhook to write its certificate authority into the configuration")
}

// ProbeName is the name of the object of Probe.
const ProbeName = "kubelet-guard-e2e-probe"

// Probe has the API server call the webhook for a delete that changes nothing: that
// of an object with an override annotation, which is the webhook's to decide, and which
// it refuses where it enforces. It returns the response, nil where the delete may pass;
// err is why there was none. The object stays.
func Probe(ctx context.Context, configMaps corev1client.ConfigMapInterface) (answer, err error) {
	_, err = configMaps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name:        ProbeName,
		Labels:      map[string]string{guardv1alpha1.DeletionProtectionLabel: "always"},
		Annotations: map[string]string{guardv1alpha1.OverrideAnnotation: "not a time"},
	}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, err
	}
	return configMaps.Delete(ctx, ProbeName, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}), nil
}
