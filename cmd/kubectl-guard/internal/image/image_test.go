package image

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRepository(t *testing.T) {
	t.Parallel()
	for image, want := range map[string]string{
		"installer":                      "docker.io/library/installer",
		"me/installer:1":                 "docker.io/me/installer",
		"index.docker.io/me/installer:1": "docker.io/me/installer",
		"localhost/installer":            "localhost/installer",
		"registry:5000/installer":        "registry:5000/installer",
		"registry:5000/a/installer:1":    "registry:5000/a/installer",
		"registry.example/a@" + digest:   "registry.example/a",
		"registry.example/a:1@" + digest: "registry.example/a",
	} {
		require.Equal(t, want, Repository(image), image)
	}
}

// digest of an image.
const digest = "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
