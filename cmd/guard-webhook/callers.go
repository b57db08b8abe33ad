package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"slices"
)

// callers are those whose reviews are judged. Reviews have effects: they are counted,
// they spend budgets and ledgers, and a forced delete leaves a record. The zero value
// lets every caller through.
type callers struct {
	// authorities have signed their certificates.
	authorities *x509.CertPool
	// names are the common names of the certificates. The authority of a cluster signs those
	// of its nodes and users, too.
	names []string
}

// newCallers reads the authorities from a file in PEM.
func newCallers(file string, names []string) (*callers, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c := &callers{authorities: x509.NewCertPool(), names: names}
	if !c.authorities.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return c, nil
}

// tls has the server check the certificates that it is given. A connection without one is
// accepted, since probes connect and send nothing; its requests are refused by only.
func (c *callers) tls(config *tls.Config) {
	if c.authorities != nil {
		config.ClientAuth, config.ClientCAs = tls.VerifyClientCertIfGiven, c.authorities
	}
}

// only lets through requests of callers.
func (c *callers) only(hook http.Handler) http.Handler {
	if c.authorities == nil {
		return hook
	}
	return http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		switch name := callerOf(request); {
		case name == "":
			http.Error(response, "a client certificate is required: see docs/control-plane/webhook.md#who-may-call", http.StatusUnauthorized)
		case !slices.Contains(c.names, name):
			http.Error(response, fmt.Sprintf("%q is not one of --caller-names", name), http.StatusForbidden)
		default:
			hook.ServeHTTP(response, request)
		}
	})
}

// callerOf returns the common name of the verified certificate, or "".
func callerOf(request *http.Request) string {
	if request.TLS == nil || len(request.TLS.VerifiedChains) == 0 {
		return ""
	}
	return request.TLS.VerifiedChains[0][0].Subject.CommonName
}
