package embedded

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
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// certificateLife is that of all but the authorities: longer than any test run and short enough to be harmless.
const certificateLife = 7 * 24 * time.Hour

// authority signs certificates. Its key stays in the cluster's folder: the node may
// get another name, and other nodes may join.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// pki is the folder with all certificates and keys, laid out as kubeadm does,
// which is where people look for them.
type pki string

func (d pki) cert(name string) string { return filepath.Join(string(d), name+".crt") }
func (d pki) key(name string) string  { return filepath.Join(string(d), name+".key") }

// certificateRequest is what an authority signs.
type certificateRequest struct {
	name          string // of the files
	commonName    string
	organizations []string
	server        bool
	client        bool
	hosts         []string
	addresses     []net.IP
}

func newAuthority(d pki, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	certificate, err := cert.NewSelfSignedCACert(cert.Config{CommonName: strings.ReplaceAll(name, "/", "-"), NotBefore: notBefore()}, key)
	if err != nil {
		return nil, err
	}
	a := &authority{certificate: certificate, key: key}
	return a, errors.Join(writeKey(d, name, key), writeCert(d, name, certificate.Raw))
}

func loadAuthority(d pki, name string) (*authority, error) {
	certificates, err := cert.CertsFromFile(d.cert(name))
	if err != nil {
		return nil, err
	}
	key, err := keyutil.PrivateKeyFromFile(d.key(name))
	if err != nil {
		return nil, err
	}
	return &authority{certificate: certificates[0], key: key.(crypto.Signer)}, nil
}

func (a *authority) sign(d pki, r certificateRequest) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: r.commonName, Organization: r.organizations},
		NotBefore:    notBefore(),
		NotAfter:     notBefore().Add(certificateLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		DNSNames:     r.hosts,
		IPAddresses:  r.addresses,
	}
	if r.server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return fmt.Errorf("signing the certificate %s: %w", r.name, err)
	}
	return errors.Join(writeKey(d, r.name, key), writeCert(d, r.name, der))
}

// notBefore is an hour back: tests set clocks.
func notBefore() time.Time { return time.Now().Add(-time.Hour) }

func writeKey(d pki, name string, key crypto.PrivateKey) error {
	content, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return err
	}
	return keyutil.WriteKey(d.key(name), content)
}

func writeCert(d pki, name string, der []byte) error {
	return cert.WriteCert(d.cert(name), pem.EncodeToMemory(&pem.Block{Type: cert.CertificateBlockType, Bytes: der}))
}

// createPKI makes the three authorities of a cluster, every certificate of the
// control plane, and the key pair for service account tokens.
func createPKI(d pki, ip net.IP) error {
	loopback := net.IPv4(127, 0, 0, 1)
	signed := map[string][]certificateRequest{
		"ca": {
			{name: "apiserver", commonName: "kube-apiserver", server: true,
				hosts:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
				addresses: []net.IP{ip, loopback, firstServiceIP}},
			// A member of system:masters needs no binding. A binding would be lost
			// with an emptied store, and with it the way to a kubelet's metrics.
			{name: "apiserver-kubelet-client", commonName: "kube-apiserver-kubelet-client", organizations: []string{"system:masters"}, client: true},
			{name: "admin", commonName: "kubernetes-admin", organizations: []string{"system:masters"}, client: true},
			{name: "controller-manager", commonName: "system:kube-controller-manager", client: true},
			{name: "scheduler", commonName: "system:kube-scheduler", client: true},
			{name: "controller-manager-serving", commonName: "kube-controller-manager", server: true, addresses: []net.IP{ip}},
			{name: "scheduler-serving", commonName: "kube-scheduler", server: true, addresses: []net.IP{ip}},
		},
		"front-proxy-ca": {
			{name: "front-proxy-client", commonName: "front-proxy-client", client: true},
		},
		"etcd/ca": {
			{name: "etcd/server", commonName: "etcd", server: true, client: true, addresses: []net.IP{ip, loopback}},
			{name: "etcd/peer", commonName: "etcd", server: true, client: true, addresses: []net.IP{ip, loopback}},
			{name: "apiserver-etcd-client", commonName: "kube-apiserver-etcd-client", client: true},
		},
	}
	for name, requests := range signed {
		a, err := newAuthority(d, name)
		if err != nil {
			return fmt.Errorf("making the certificate authority %s: %w", name, err)
		}
		for _, request := range requests {
			if err := a.sign(d, request); err != nil {
				return err
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return writeKey(d, "sa", key)
}

// createNodeCertificates makes what a node of the given name needs: a client
// certificate that the Node authorizer recognizes, and a serving certificate.
func createNodeCertificates(d pki, nodeName string, ip net.IP) error {
	a, err := loadAuthority(d, "ca")
	if err != nil {
		return err
	}
	identity := "system:node:" + nodeName
	if err := a.sign(d, certificateRequest{
		name: nodeClientCertificate(nodeName), commonName: identity, organizations: []string{"system:nodes"}, client: true,
	}); err != nil {
		return err
	}
	return a.sign(d, certificateRequest{
		name: nodeServingCertificate(nodeName), commonName: identity, organizations: []string{"system:nodes"}, server: true,
		hosts: []string{nodeName}, addresses: []net.IP{ip},
	})
}

func nodeClientCertificate(nodeName string) string  { return "kubelet-client-" + nodeName }
func nodeServingCertificate(nodeName string) string { return "kubelet-serving-" + nodeName }

// writeKubeconfig writes a kubeconfig whose credentials are inside, so that the
// file alone can be copied elsewhere.
func writeKubeconfig(path string, d pki, server, user, certificate string) error {
	authority, err := os.ReadFile(d.cert("ca"))
	if err != nil {
		return err
	}
	clientCertificate, err := os.ReadFile(d.cert(certificate))
	if err != nil {
		return err
	}
	clientKey, err := os.ReadFile(d.key(certificate))
	if err != nil {
		return err
	}
	const name = "kubelet-guard"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: authority}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: clientCertificate, ClientKeyData: clientKey}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: user}
	config.CurrentContext = name
	return clientcmd.WriteToFile(*config, path)
}
