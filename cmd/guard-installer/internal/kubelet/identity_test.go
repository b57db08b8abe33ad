package kubelet

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

// listener is something at the port of the kubelet, and a client that does not know it.
func listener(t *testing.T) (client *Client, withToken *int, certificate []byte) {
	t.Helper()
	withToken = new(int)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			*withToken++
		}
		_, _ = w.Write([]byte(map[string]string{"/healthz": "ok", "/metrics": stockMetrics}[r.URL.Path]))
	}))
	t.Cleanup(server.Close)
	token := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(token, []byte("secret\n"), 0o600))
	return &Client{Address: strings.TrimPrefix(server.URL, "https://"), TokenFile: token}, withToken,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

// another is a process of the node that has no socket.
func another(t *testing.T, root host.Root, arguments ...string) Identity {
	t.Helper()
	require.NoError(t, root.Write("/proc/7/exe", []byte("kubelet"), 0o755))
	require.NoError(t, root.Write("/proc/7/cmdline", []byte(strings.Join(append([]string{"kubelet"}, arguments...), "\x00")), 0o644))
	require.NoError(t, os.MkdirAll(root.Path("/proc/7/fd"), 0o755))
	for _, table := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile("/proc/self/net/" + table)
		require.NoError(t, err)
		require.NoError(t, root.Write("/proc/7/net/"+table, data, 0o644))
	}
	return Identity{Root: root, PID: 7}
}

func TestTheTokenIsForTheKubeletAlone(t *testing.T) {
	t.Run("its process has the connection", func(t *testing.T) {
		client, withToken, _ := listener(t)
		client.Identity = &Identity{Root: "/", PID: os.Getpid()}
		_, err := client.Ask(context.Background())
		require.NoError(t, err)
		assert.Equal(t, 2, *withToken)
	})
	t.Run("another process listens", func(t *testing.T) {
		client, withToken, _ := listener(t)
		identity := another(t, host.Root(t.TempDir()))
		client.Identity = &identity
		_, err := client.Ask(context.Background())
		require.ErrorContains(t, err, "it gets no token: the certificate is not in the files of the kubelet, and the connection does not belong to its process 7")
		assert.Zero(t, *withToken)
	})
	t.Run("no kubelet runs", func(t *testing.T) {
		client, withToken, _ := listener(t)
		client.Identity = &Identity{Root: host.Root(t.TempDir())}
		_, err := client.Protected(context.Background())
		require.ErrorContains(t, err, "the kubelet does not run")
		require.NotErrorIs(t, err, ErrNotListening)
		assert.Zero(t, *withToken)
	})
	for name, c := range map[string]struct {
		file      string
		arguments []string
	}{
		"a certificate that rotates":      {"/var/lib/kubelet/pki/kubelet-server-current.pem", nil},
		"a certificate that it made":      {"/data/pki/kubelet.crt", []string{"--cert-dir=/data/pki"}},
		"a certificate that it was given": {"/etc/own.crt", []string{"--tls-cert-file=/etc/own.crt"}},
	} {
		t.Run(name, func(t *testing.T) {
			client, withToken, certificate := listener(t)
			root := host.Root(t.TempDir())
			require.NoError(t, root.Write(c.file, append([]byte("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"), certificate...), 0o600))
			identity := another(t, root, c.arguments...)
			client.Identity = &identity
			// The certificate was rotated since the pin was taken.
			client.Pin = strings.Repeat("0", 64)
			_, err := client.Ask(context.Background())
			require.NoError(t, err)
			assert.Equal(t, 2, *withToken)
			assert.NotEqual(t, strings.Repeat("0", 64), client.Pin)
		})
	}
}

func TestParseSocket(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:280A":                         "127.0.0.1:10250",
		"0000000000000000FFFF00000100007F:0050": "127.0.0.1:80",
		"B80D01200000000000000000010000 00:1":   "",
		"B80D0120000000000000000001000000:1F90": "[2001:db8::1]:8080",
		"0100007F:10000":                        "",
		"01:1":                                  "",
	} {
		got, err := parseSocket(text)
		if want == "" {
			assert.Error(t, err, text)
			continue
		}
		require.NoError(t, err, text)
		assert.Equal(t, want, got.String())
	}
}
