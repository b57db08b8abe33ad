package trial

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// life of the certificate: longer than any trial.
const life = 24 * time.Hour

// certificates are files: of an authority whose key is not kept, and of the one certificate that
// it signs.
type certificates struct {
	ca, cert, key string
}

// writeCertificates makes a certificate for both servers and their clients: etcd's authentication,
// which a snapshot has with it, knows its user root, and the API server its group.
func writeCertificates(dir string) (certificates, error) {
	f := certificates{ca: filepath.Join(dir, "ca.crt"), cert: filepath.Join(dir, "trial.crt"), key: filepath.Join(dir, "trial.key")}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	ca, err := cert.NewSelfSignedCACert(cert.Config{CommonName: "guard-etcd"}, caKey)
	if err != nil {
		return f, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return f, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return f, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "root", Organization: []string{"system:masters"}},
		NotBefore: ca.NotBefore, NotAfter: time.Now().Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, ca, key.Public(), caKey)
	if err != nil {
		return f, err
	}
	encodedKey, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return f, err
	}
	encode := func(der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: der})
	}
	return f, errors.Join(os.WriteFile(f.ca, encode(ca.Raw), 0o600), os.WriteFile(f.cert, encode(der), 0o600), os.WriteFile(f.key, encodedKey, 0o600))
}
