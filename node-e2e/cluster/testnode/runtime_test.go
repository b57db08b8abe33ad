package testnode

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseDigest(t *testing.T) {
	const table = "REF                          TYPE                                       DIGEST       SIZE  PLATFORMS   LABELS\n" +
		"localhost/guard/workload:dev application/vnd.oci.image.manifest.v1+json sha256:0a1b  4 MiB linux/amd64 io.cri-containerd.image=managed\n"
	digest, err := parseDigest(table, "localhost/guard/workload:dev")
	require.NoError(t, err)
	assert.Equal(t, "sha256:0a1b", digest)
	_, err = parseDigest(table, "localhost/guard/pause:dev")
	assert.ErrorContains(t, err, "localhost/guard/pause:dev")
}
