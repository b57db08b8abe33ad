package packages

import (
	"crypto/tls"
	"net/http"
	"runtime"
)

// debArch and rpmArch are this machine's architecture as the package formats call it.
func debArch() string { return runtime.GOARCH }

func rpmArch() string {
	return map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
}

// insecureTransport is for the loopback, where the kubelet's certificate is one that
// it has signed itself.
func insecureTransport() http.RoundTripper {
	return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
}
