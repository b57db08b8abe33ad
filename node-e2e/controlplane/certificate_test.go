package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"kubelet-guard.io/node-e2e/framework"
)

const (
	certificateSecret = "guard-webhook-tls"
	webhookPort       = "9443"
	// renewalWait covers two keys and certificates, made one after the other on a
	// loaded machine.
	renewalWait = time.Minute
	// renewalMargin is how long before its end a certificate is renewed.
	renewalMargin = 90 * 24 * time.Hour
	// notRecreated is several times what the webhook takes to create its Secret.
	notRecreated = 5 * time.Second
)

func readCertificate(text []byte) *x509.Certificate {
	GinkgoHelper()
	block, _ := pem.Decode(text)
	Expect(block).NotTo(BeNil(), "a PEM block in %q", text)
	return framework.Must(x509.ParseCertificate(block.Bytes))
}

// served returns the certificate that a replica of the webhook presents.
func served(ctx context.Context, pod *corev1.Pod) (*x509.Certificate, error) {
	// The certificate is what is checked, so it need not be trusted.
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, webhookPort))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	return connection.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// webhookRestarts counts how often containers of the webhook were started again: specs
// before this one may have killed some.
func webhookRestarts(ctx context.Context) map[string]int32 {
	GinkgoHelper()
	restarts := map[string]int32{}
	for _, pod := range webhookPods(ctx) {
		restarts[pod.Name] = pod.Status.ContainerStatuses[0].RestartCount
	}
	return restarts
}

// expectServed waits until both replicas present the certificate of the Secret, which
// is not the old one, and reports that none of them restarted since.
func expectServed(ctx context.Context, old []byte, restarts map[string]int32) {
	GinkgoHelper()
	Eventually(ctx, func(g Gomega) {
		secret := framework.Try(client.CoreV1().Secrets(guardNamespace).Get(ctx, certificateSecret, metav1.GetOptions{})).In(g)
		g.Expect(secret.Data).To(HaveKeyWithValue(corev1.TLSCertKey, Not(BeEmpty())))
		g.Expect(secret.Data[corev1.TLSCertKey]).NotTo(Equal(old), "the certificate in the Secret is the old one")
		want := readCertificate(secret.Data[corev1.TLSCertKey])
		g.Expect(time.Until(want.NotAfter)).To(BeNumerically(">", renewalMargin))
		pods := webhookPods(ctx)
		g.Expect(pods).To(HaveLen(webhookReplicas))
		for i := range pods {
			got := framework.Try(served(ctx, &pods[i])).In(g)
			g.Expect(got.Equal(want)).To(BeTrue(), "pod %s serves a certificate that ends at %s", pods[i].Name, got.NotAfter)
		}
		g.Expect(webhookRestarts(ctx)).To(Equal(restarts), "restarts")
	}).WithTimeout(renewalWait).Should(Succeed(), "a new certificate, served by both replicas")
}

var _ = Describe("the certificate of the webhook", Serial, func() {
	secrets := func() *corev1.Secret {
		GinkgoHelper()
		return framework.Must(client.CoreV1().Secrets(guardNamespace).Get(context.Background(), certificateSecret, metav1.GetOptions{}))
	}

	It("is renewed before it ends, while the webhook goes on answering", func(ctx SpecContext) {
		secret, restarts := secrets(), webhookRestarts(ctx)
		ca := readCertificate(secret.Data["ca.crt"])
		pair := framework.Must(tls.X509KeyPair(secret.Data["ca.crt"], secret.Data["ca.key"]))
		current := readCertificate(secret.Data[corev1.TLSCertKey])

		By("putting one into the Secret that ends in an hour")
		ending := *current
		ending.SerialNumber = big.NewInt(2)
		ending.NotAfter = time.Now().Add(time.Hour)
		signed := framework.Must(x509.CreateCertificate(rand.Reader, &ending, ca, current.PublicKey, pair.PrivateKey))
		secret.Data[corev1.TLSCertKey] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})
		framework.Must(client.CoreV1().Secrets(guardNamespace).Update(ctx, secret, metav1.UpdateOptions{}))

		answering := make(chan error, 1)
		watch, stop := context.WithCancel(ctx)
		go func() {
			defer GinkgoRecover()
			for watch.Err() == nil {
				if err := probeWebhook(watch); err != nil && watch.Err() == nil {
					answering <- fmt.Errorf("during the renewal: %w", err)
					return
				}
			}
			answering <- nil
		}()
		expectServed(ctx, secret.Data[corev1.TLSCertKey], restarts)
		stop()
		Expect(<-answering).To(Succeed())
		Expect(secrets().Data["ca.crt"]).To(Equal(secret.Data["ca.crt"]), "the authority")
	}, SpecTimeout(specTimeout))

	It("is issued again when the Secret is deleted", func(ctx SpecContext) {
		old, restarts := secrets(), webhookRestarts(ctx)
		Expect(client.CoreV1().Secrets(guardNamespace).Delete(ctx, certificateSecret, metav1.DeleteOptions{})).To(Succeed())
		expectServed(ctx, old.Data[corev1.TLSCertKey], restarts)
		authority := secrets().Data["ca.crt"]
		Expect(authority).NotTo(Equal(old.Data["ca.crt"]))
		Eventually(ctx, func(g Gomega) {
			configuration := framework.Try(client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "kubelet-guard", metav1.GetOptions{})).In(g)
			for _, webhook := range configuration.Webhooks {
				g.Expect(webhook.ClientConfig.CABundle).To(Equal(authority), webhook.Name)
			}
			g.Expect(probeWebhook(ctx)).To(Succeed())
		}).WithTimeout(renewalWait).Should(Succeed(), "the new authority in the webhook configuration, and a response")
	}, SpecTimeout(specTimeout))

	It("is taken from files that someone else renews, with --cert-dir", func(ctx SpecContext) {
		deployments := client.AppsV1().Deployments(guardNamespace)
		original := framework.Must(deployments.Get(ctx, webhookName, metav1.GetOptions{})).Spec.Template.Spec.DeepCopy()
		set := func(ctx context.Context, spec *corev1.PodSpec) {
			GinkgoHelper()
			Expect(retry.RetryOnConflict(retry.DefaultRetry, func() error {
				latest, err := deployments.Get(ctx, webhookName, metav1.GetOptions{})
				if err != nil {
					return err
				}
				latest.Spec.Template.Spec = *spec
				return framework.ErrorOf(deployments.Update(ctx, latest, metav1.UpdateOptions{}))
			})).To(Succeed())
			awaitWebhook(ctx)
		}

		By("copying the certificate into a Secret of another owner")
		own := secrets()
		framework.Must(client.CoreV1().Secrets(guardNamespace).Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "given-tls"}, Type: corev1.SecretTypeTLS,
			Data: map[string][]byte{corev1.TLSCertKey: own.Data[corev1.TLSCertKey], corev1.TLSPrivateKeyKey: own.Data[corev1.TLSPrivateKeyKey]},
		}, metav1.CreateOptions{}))
		DeferCleanup(func(ctx SpecContext) {
			set(ctx, original)
			Expect(client.CoreV1().Secrets(guardNamespace).Delete(ctx, "given-tls", metav1.DeleteOptions{})).To(Succeed())
		}, NodeTimeout(rolloutWait))
		spec := original.DeepCopy()
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "given", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "given-tls"}}})
		container := &spec.Containers[0]
		container.Args = append(container.Args, "--cert-dir=/tls")
		container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "given", MountPath: "/tls", ReadOnly: true})
		set(ctx, spec)
		Expect(probeWebhook(ctx)).To(Succeed())

		By("deleting the Secret that the webhook no longer looks after")
		Expect(client.CoreV1().Secrets(guardNamespace).Delete(ctx, certificateSecret, metav1.DeleteOptions{})).To(Succeed())
		Consistently(ctx, func(g Gomega) {
			g.Expect(framework.ErrorOf(client.CoreV1().Secrets(guardNamespace).Get(ctx, certificateSecret, metav1.GetOptions{}))).To(Satisfy(apierrors.IsNotFound))
			g.Expect(probeWebhook(ctx)).To(Succeed())
		}).WithTimeout(notRecreated).Should(Succeed(), "no new Secret, and responses")
	}, SpecTimeout(2*rolloutWait))
})
