/*
Package certificates gives the webhook server a certificate that renews itself.

The library cert-controller makes a certificate authority and a serving certificate,
keeps both in a Secret, renews them before they expire and writes the authority into
the webhook configuration. This package adds what a start on an empty cluster and two
replicas need: it creates the Secret, and it serves what is in the Secret at once,
from memory. A mounted Secret would reach a replica up to two minutes after the API
server has learned the authority that signed it.
*/
package certificates

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/open-policy-agent/cert-controller/pkg/rotator"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// Config is where the certificate is kept, and what it is for.
type Config struct {
	// Secret that holds the authority and the certificate.
	Secret types.NamespacedName
	// Service in the namespace of the secret, by whose name the API server calls.
	Service string
	// Webhooks are the names of the ValidatingWebhookConfigurations that get the
	// authority.
	Webhooks []string
}

// Serving holds the certificate that is served now. It is safe for concurrent use.
type Serving struct {
	config  Config
	secrets corev1client.SecretInterface
	// seen is a folder with the serving certificate in it and nothing else; the
	// library waits for the file, because it takes the Secret to be mounted.
	seen    string
	current atomic.Pointer[tls.Certificate]
}

// certFile is the name of the certificate, in the Secret and in the folder.
const certFile = corev1.TLSCertKey

// New creates the Secret if it is absent, and returns a Serving without a
// certificate yet.
func New(ctx context.Context, config Config, secrets corev1client.SecretsGetter) (*Serving, error) {
	seen, err := os.MkdirTemp("", "guard-webhook-")
	if err != nil {
		return nil, fmt.Errorf("make the folder of the certificate: %w", err)
	}
	s := &Serving{config: config, secrets: secrets.Secrets(config.Secret.Namespace), seen: seen}
	return s, s.ensureSecret(ctx)
}

// CacheOptions keeps the cache of Secrets to the one.
func (s *Serving) CacheOptions() cache.ByObject {
	return cache.ByObject{
		Namespaces: map[string]cache.Config{s.config.Secret.Namespace: {}},
		Field:      fields.OneTermEqualSelector("metadata.name", s.config.Secret.Name),
	}
}

// SetupWithManager adds the rotation, in every replica: a replica must be able to
// serve without a leader.
func (s *Serving) SetupWithManager(ctx context.Context, mgr manager.Manager) error {
	informer, err := mgr.GetCache().GetInformer(ctx, &corev1.Secret{})
	if err != nil {
		return fmt.Errorf("watch Secret %s: %w", s.config.Secret, err)
	}
	if _, err := informer.AddEventHandler(s.handler(ctx)); err != nil {
		return fmt.Errorf("watch Secret %s: %w", s.config.Secret, err)
	}
	webhooks := make([]rotator.WebhookInfo, len(s.config.Webhooks))
	for i, name := range s.config.Webhooks {
		webhooks[i] = rotator.WebhookInfo{Name: name, Type: rotator.Validating}
	}
	return rotator.AddRotator(mgr, &rotator.CertRotator{
		SecretKey:      s.config.Secret,
		CertDir:        s.seen,
		CAName:         "kubelet-guard-webhook-ca",
		CAOrganization: "kubelet-guard",
		DNSName:        fmt.Sprintf("%s.%s.svc", s.config.Service, s.config.Secret.Namespace),
		IsReady:        make(chan struct{}),
		Webhooks:       webhooks,
		FieldOwner:     "guard-webhook",
	})
}

// TLS makes the server serve the current certificate.
func (s *Serving) TLS(config *tls.Config) {
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if certificate := s.current.Load(); certificate != nil {
			return certificate, nil
		}
		return nil, s.missing()
	}
}

// Ready is a health check: it fails until there is a certificate to serve.
func (s *Serving) Ready(*http.Request) error {
	if s.current.Load() == nil {
		return s.missing()
	}
	return nil
}

func (s *Serving) missing() error {
	return fmt.Errorf("no certificate yet: Secret %s has no valid %s and %s", s.config.Secret, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
}

func (s *Serving) handler(ctx context.Context) toolscache.ResourceEventHandler {
	use := func(object any) {
		secret, ok := object.(*corev1.Secret)
		if !ok || secret.Name != s.config.Secret.Name {
			return
		}
		if err := s.use(secret); err != nil {
			klog.FromContext(ctx).Error(err, "Certificate not used", "secret", klog.KObj(secret))
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    use,
		UpdateFunc: func(_, object any) { use(object) },
		// The library fills a Secret and does not create one.
		DeleteFunc: func(any) {
			if err := s.ensureSecret(ctx); err != nil {
				klog.FromContext(ctx).Error(err, "Secret not created again")
			}
		},
	}
}

// use serves the certificate of the secret from now on. A Secret that nothing has
// been written to yet is no error.
func (s *Serving) use(secret *corev1.Secret) error {
	if len(secret.Data) == 0 {
		return nil
	}
	certificate, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return fmt.Errorf("read the certificate in Secret %s: %w", s.config.Secret, err)
	}
	s.current.Store(&certificate)
	return os.WriteFile(filepath.Join(s.seen, certFile), secret.Data[corev1.TLSCertKey], 0o600)
}

func (s *Serving) ensureSecret(ctx context.Context) error {
	_, err := s.secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
		Name:   s.config.Secret.Name,
		Labels: map[string]string{"app.kubernetes.io/part-of": "kubelet-guard"},
	}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create Secret %s: %w", s.config.Secret, err)
	}
	return nil
}

// ErrNoFiles is part of the error of CheckFiles.
var ErrNoFiles = errors.New("needs a file " + corev1.TLSCertKey + " and a file " + corev1.TLSPrivateKeyKey)

// CheckFiles reports what is wrong with a folder of given certificate files.
func CheckFiles(folder string) error {
	for _, name := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			return fmt.Errorf("%w: %w", ErrNoFiles, err)
		}
	}
	return nil
}
