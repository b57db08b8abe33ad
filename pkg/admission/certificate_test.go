package admission

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
)

func TestCertificateExpiry(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	_, text, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	metric := NewCertificateExpiry(port)

	require.Equal(t, float64(server.Certificate().NotAfter.Unix()), testutil.ToFloat64(metric))

	server.Close()
	require.Zero(t, testutil.ToFloat64(metric), "nobody serves a certificate")
}
