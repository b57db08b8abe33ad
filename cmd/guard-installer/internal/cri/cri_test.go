package cri

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

func TestEndpoint(t *testing.T) {
	root := host.Root(t.TempDir())
	require.NoError(t, root.Write("/var/lib/kubelet/config.yaml", []byte("containerRuntimeEndpoint: unix:///run/own.sock\n"), 0o644))
	require.NoError(t, root.Write("/var/lib/kubelet/plain.yaml", []byte("kind: KubeletConfiguration\n"), 0o644))
	endpoint := func(arguments ...string) (string, error) {
		return Endpoint(root, host.Process{Arguments: append([]string{"kubelet"}, arguments...)})
	}
	got, err := endpoint("--config=/var/lib/kubelet/config.yaml")
	require.NoError(t, err)
	assert.Equal(t, "/run/own.sock", got)

	got, err = endpoint("--config=/var/lib/kubelet/config.yaml", "--container-runtime-endpoint", "unix:///run/flag.sock")
	require.NoError(t, err)
	assert.Equal(t, "/run/flag.sock", got, "the flag counts more than the file")

	_, err = endpoint("--config=/var/lib/kubelet/plain.yaml")
	assert.ErrorContains(t, err, "no container runtime found")
	require.NoError(t, root.Write("/run/crio/crio.sock", nil, 0o644))
	got, err = endpoint("--config=/var/lib/kubelet/plain.yaml")
	require.NoError(t, err)
	assert.Equal(t, "/run/crio/crio.sock", got)

	_, err = endpoint("--config=/gone")
	assert.ErrorContains(t, err, "the configuration of the kubelet")
	_, err = endpoint("--container-runtime-endpoint=tcp://192.0.2.1:1")
	assert.ErrorContains(t, err, "is not a socket of the node")
}
