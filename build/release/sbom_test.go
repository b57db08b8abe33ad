package release

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMaterialsDoNotNameTheBinaryOfTheTool(t *testing.T) {
	data, err := withoutToolHashes([]byte(`{"version":1,"metadata":{"tools":[{"name":"cyclonedx-gomod","version":"v1.10.0","hashes":[{"alg":"MD5"}]}],"properties":[]}}`))
	require.NoError(t, err)
	assert.JSONEq(t, `{"version":1,"metadata":{"tools":[{"name":"cyclonedx-gomod","version":"v1.10.0"}],"properties":[]}}`, string(data))
}
