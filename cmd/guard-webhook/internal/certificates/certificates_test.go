package certificates

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"github.com/open-policy-agent/cert-controller/pkg/rotator"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

func newServing(t *testing.T, client *fake.Clientset) *Serving {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	s, err := New(t.Context(), Config{Secret: types.NamespacedName{Namespace: "guards", Name: "tls"}, Service: "guard-webhook"}, client.CoreV1())
	require.NoError(t, err)
	return s
}

// certificate returns a pair as the library makes it.
func certificate(t *testing.T) map[string][]byte {
	t.Helper()
	maker := &rotator.CertRotator{CAName: "ca", DNSName: "guard-webhook.guards.svc", ExtKeyUsages: &[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	now := time.Now()
	ca, err := maker.CreateCACert(now, now.Add(time.Hour))
	require.NoError(t, err)
	crt, key, err := maker.CreateCertPEM(ca, now, now.Add(time.Hour))
	require.NoError(t, err)
	return map[string][]byte{"tls.crt": crt, "tls.key": key}
}

func TestNewCreatesTheSecret(t *testing.T) {
	client := fake.NewClientset()
	newServing(t, client)
	_, err := client.CoreV1().Secrets("guards").Get(t.Context(), "tls", metav1.GetOptions{})
	require.NoError(t, err)
}

func TestNewKeepsASecretThatIsThere(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "guards", Name: "tls"}, Data: map[string][]byte{"ca.crt": []byte("x")}}
	client := fake.NewClientset(secret)
	newServing(t, client)
	got, err := client.CoreV1().Secrets("guards").Get(t.Context(), "tls", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, secret.Data, got.Data)
}

func TestServesTheCertificateOfTheSecret(t *testing.T) {
	s := newServing(t, fake.NewClientset())
	handler := s.handler(t.Context())
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "guards", Name: "tls"}}
	var config tls.Config
	s.TLS(&config)

	handler.OnAdd(secret, true)
	require.EqualError(t, s.Ready(nil), "no certificate yet: Secret guards/tls has no valid tls.crt and tls.key")
	_, err := config.GetCertificate(nil)
	require.EqualError(t, err, "no certificate yet: Secret guards/tls has no valid tls.crt and tls.key")

	first := secret.DeepCopy()
	first.Data = certificate(t)
	handler.OnUpdate(secret, first)
	require.NoError(t, s.Ready(nil))
	one, err := config.GetCertificate(nil)
	require.NoError(t, err)

	second := secret.DeepCopy()
	second.Data = certificate(t)
	handler.OnUpdate(first, second)
	two, err := config.GetCertificate(nil)
	require.NoError(t, err)
	require.NotEqual(t, one.Certificate, two.Certificate)

	// What cannot be read does not replace what can.
	handler.OnUpdate(second, &corev1.Secret{ObjectMeta: secret.ObjectMeta, Data: map[string][]byte{"tls.crt": []byte("x")}})
	got, err := config.GetCertificate(nil)
	require.NoError(t, err)
	require.Equal(t, two, got)
}

func TestCreatesADeletedSecretAgain(t *testing.T) {
	client := fake.NewClientset()
	s := newServing(t, client)
	require.NoError(t, client.CoreV1().Secrets("guards").Delete(t.Context(), "tls", metav1.DeleteOptions{}))
	s.handler(t.Context()).OnDelete(&corev1.Secret{})
	_, err := client.CoreV1().Secrets("guards").Get(t.Context(), "tls", metav1.GetOptions{})
	require.NoError(t, err)
}
