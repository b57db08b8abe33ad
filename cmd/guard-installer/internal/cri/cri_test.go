package cri

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"kubelet-guard.io/cmd/guard-installer/internal/host"
)

func TestSocket(t *testing.T) {
	root := host.Root(t.TempDir())
	got, err := Socket(root, "unix:///run/own.sock")
	require.NoError(t, err)
	assert.Equal(t, "/run/own.sock", got)
	_, err = Socket(root, "tcp://192.0.2.1:1")
	assert.ErrorContains(t, err, "is not a socket of the node")

	_, err = Socket(root, "")
	assert.ErrorContains(t, err, "no container runtime found")
	require.NoError(t, root.Write("/run/crio/crio.sock", nil, 0o644))
	got, err = Socket(root, "")
	require.NoError(t, err)
	assert.Equal(t, "/run/crio/crio.sock", got)
}
