// Package pki makes certificate authorities and what they sign, for clusters and servers of
// tests.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// life is that of all certificates but the authorities': longer than any test run and short
// enough to be harmless.
const life = 7 * 24 * time.Hour

// Dir is a folder with certificates and keys, in files as kubeadm names them: NAME.crt and
// NAME.key.
type Dir string

// Cert is the file of a certificate.
func (d Dir) Cert(name string) string { return filepath.Join(string(d), name+".crt") }

// Key is the file of a private key.
func (d Dir) Key(name string) string { return filepath.Join(string(d), name+".key") }

// Request is a certificate that an authority signs.
type Request struct {
	Name           string // of the files
	CommonName     string
	Organizations  []string
	Server, Client bool
	Hosts          []string
	Addresses      []net.IP
}

// Authority signs certificates. Its key stays in its folder, so that it can sign more later.
type Authority struct {
	dir         Dir
	certificate *x509.Certificate
	key         crypto.Signer
}

// NewAuthority makes a certificate authority.
func (d Dir) NewAuthority(name string) (*Authority, error) {
	key, err := d.NewKey(name)
	if err != nil {
		return nil, err
	}
	certificate, err := cert.NewSelfSignedCACert(cert.Config{CommonName: strings.ReplaceAll(name, "/", "-"), NotBefore: notBefore()}, key)
	if err != nil {
		return nil, err
	}
	return &Authority{dir: d, certificate: certificate, key: key}, d.writeCert(name, certificate.Raw)
}

// LoadAuthority reads an authority that NewAuthority has made.
func (d Dir) LoadAuthority(name string) (*Authority, error) {
	certificates, err := cert.CertsFromFile(d.Cert(name))
	if err != nil {
		return nil, err
	}
	key, err := keyutil.PrivateKeyFromFile(d.Key(name))
	if err != nil {
		return nil, err
	}
	return &Authority{dir: d, certificate: certificates[0], key: key.(crypto.Signer)}, nil
}

// Sign makes a key and a certificate for it, in the authority's folder.
func (a *Authority) Sign(r Request) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.CommonName, Organization: r.Organizations},
		NotBefore:    notBefore(),
		NotAfter:     notBefore().Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		DNSNames:     r.Hosts,
		IPAddresses:  r.Addresses,
	}
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	key, err := a.dir.NewKey(r.Name)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("signing the certificate %s: %w", r.Name, err)
	}
	return a.dir.writeCert(r.Name, der)
}

// NewKey makes a private key.
func (d Dir) NewKey(name string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	content, err := keyutil.MarshalPrivateKeyToPEM(key)
	return key, errors.Join(err, keyutil.WriteKey(d.Key(name), content))
}

func (d Dir) writeCert(name string, der []byte) error {
	return cert.WriteCert(d.Cert(name), pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: der}))
}

// notBefore is an hour back: tests set clocks.
func notBefore() time.Time { return time.Now().Add(-time.Hour) }
