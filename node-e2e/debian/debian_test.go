package debian

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMissingProgramsAreNamedByPackage(t *testing.T) {
	err := RequirePrograms(map[string]string{"sh": "dash", "no-such-program": "its-package"})
	require.ErrorContains(t, err, "its-package")
	require.NotContains(t, err.Error(), "dash")
}

func TestMountsOfAProgramEndWithIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	var log strings.Builder
	require.NoError(t, Run(t.Context(), &log, "sh", "-c", "mount -t tmpfs none \"$0\" && mount", dir), &log)
	require.Contains(t, log.String(), dir, "mounts of the program")
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), dir, "mounts of this process")
}

func TestFingerprintFollowsTheContent(t *testing.T) {
	tree := func() Tree {
		return Tree{
			Packages: []string{"kmod"},
			Files:    map[string]File{"a": {Content: []byte("1"), Mode: 0o644}, "b": {Content: []byte("2"), Mode: 0o644}},
			Links:    map[string]string{"c": "a"},
			Remove:   []string{"d/*"},
		}
	}
	before := tree().Fingerprint("kernel")
	require.Equal(t, before, tree().Fingerprint("kernel"))
	for name, change := range map[string]func(*Tree){
		"package": func(t *Tree) { t.Packages = append(t.Packages, "rpm") },
		"content": func(t *Tree) { t.Files["a"] = File{Content: []byte("3"), Mode: 0o644} },
		"mode":    func(t *Tree) { t.Files["a"] = File{Content: []byte("1"), Mode: 0o755} },
		"link":    func(t *Tree) { t.Links["c"] = "b" },
		"removal": func(t *Tree) { t.Remove = nil },
	} {
		changed := tree()
		change(&changed)
		require.NotEqual(t, before, changed.Fingerprint("kernel"), name)
	}
	require.NotEqual(t, before, tree().Fingerprint("another kernel"))
}
