package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// signed makes a certificate; without a parent it is that of an authority.
func signed(t *testing.T, name string, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	issuer, signer := template, any(key)
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	} else {
		issuer, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestOnlyCallersAreAnswered(t *testing.T) {
	authority, other := signed(t, "authority", nil), signed(t, "authority", nil)
	file := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Certificate[0]}), 0o600))
	known, err := newCallers(file, []string{"api-server"})
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(known.only(http.HandlerFunc(func(response http.ResponseWriter, _ *http.Request) {
		response.WriteHeader(http.StatusOK)
	})))
	server.TLS = &tls.Config{}
	known.tls(server.TLS)
	server.StartTLS()
	defer server.Close()

	get := func(certificates ...tls.Certificate) (int, error) {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: x509.NewCertPool(), Certificates: certificates}}}
		client.Transport.(*http.Transport).TLSClientConfig.RootCAs.AddCert(server.Certificate())
		response, err := client.Get(server.URL)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	for name, test := range map[string]struct {
		certificates []tls.Certificate
		want         int
	}{
		"no certificate":   {nil, http.StatusUnauthorized},
		"another name":     {[]tls.Certificate{signed(t, "system:node:node-1", &authority)}, http.StatusForbidden},
		"the API server's": {[]tls.Certificate{signed(t, "api-server", &authority)}, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := get(test.certificates...)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
	t.Run("the name, signed by another authority", func(t *testing.T) {
		forged := signed(t, "api-server", &other)
		_, err := get(forged)
		require.ErrorContains(t, err, "tls: ")
	})
	t.Run("everybody, when that is said", func(t *testing.T) {
		called := false
		(&callers{}).only(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true })).
			ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
		require.True(t, called)
	})
}

func TestFileWithoutAnAuthority(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(file, []byte("none"), 0o600))
	_, err := newCallers(file, nil)
	require.EqualError(t, err, file+" holds no certificate in PEM")
}
