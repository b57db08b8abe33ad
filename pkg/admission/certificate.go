package admission

import (
	"crypto/tls"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// CertificateMetric is the name of the metric of CertificateExpiry.
const CertificateMetric = "guard_webhook_certificate_not_after_timestamp_seconds"

// handshakeTimeout bounds a handshake of the process with itself.
const handshakeTimeout = time.Second

// CertificateExpiry reports when the certificate expires that the server serves. It queries
// the server itself, with each read of the metrics: a renewed file or Secret that the
// server has not picked up would look well and be of no use.
type CertificateExpiry struct {
	address string
	metric  *prometheus.Desc
}

// NewCertificateExpiry returns the prometheus.Collector of the server on the port of
// this host.
func NewCertificateExpiry(port int) *CertificateExpiry {
	return &CertificateExpiry{
		address: net.JoinHostPort("localhost", strconv.Itoa(port)),
		metric: prometheus.NewDesc(CertificateMetric,
			"When the certificate that the webhook serves expires, in seconds since the epoch; 0 when it serves none.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *CertificateExpiry) Describe(descriptions chan<- *prometheus.Desc) { descriptions <- c.metric }

// Collect implements prometheus.Collector.
func (c *CertificateExpiry) Collect(metrics chan<- prometheus.Metric) {
	seconds := 0.0
	if expiry := c.expiry(); !expiry.IsZero() {
		seconds = float64(expiry.Unix())
	}
	metrics <- prometheus.MustNewConstMetric(c.metric, prometheus.GaugeValue, seconds)
}

// expiry returns the earliest end in the served chain, or the zero time.
func (c *CertificateExpiry) expiry() time.Time {
	dialer := &net.Dialer{Timeout: handshakeTimeout}
	// The certificate is read, not trusted.
	connection, err := tls.DialWithDialer(dialer, "tcp", c.address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return time.Time{}
	}
	defer func() { _ = connection.Close() }()
	var earliest time.Time
	for _, certificate := range connection.ConnectionState().PeerCertificates {
		if earliest.IsZero() || certificate.NotAfter.Before(earliest) {
			earliest = certificate.NotAfter
		}
	}
	return earliest
}
