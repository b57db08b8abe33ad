package kind

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"kubelet-guard.io/node-e2e/images"
)

// newTree writes a tree of files with their content, and of links to what follows ->.
func newTree(t *testing.T, entries map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range entries {
		file := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		if target, ok := strings.CutPrefix(content, "->"); ok {
			require.NoError(t, os.Symlink(target, file))
			continue
		}
		require.NoError(t, os.WriteFile(file, []byte(content), 0o755))
	}
	return root
}

func TestDebianFilesFollowLinksInTheTree(t *testing.T) {
	root := newTree(t, map[string]string{
		"sbin":                     "->usr/sbin",
		"usr/sbin/tables":          "->/etc/alternatives/tables",
		"etc/alternatives/tables":  "->/sbin/tables-new",
		"usr/sbin/tables-new":      "->../lib/tables/multi",
		"usr/lib/tables/multi":     "a script",
		"usr/lib/tables/unrelated": "not wanted",
	})
	tree := newDebianFiles(root)
	require.NoError(t, tree.add("/usr/sbin/tables"))
	require.NoError(t, tree.add("/sbin/tables-new"))
	require.Equal(t, []images.File{
		{Path: "/etc/alternatives/tables", Link: "/sbin/tables-new"},
		{Path: "/sbin", Link: "usr/sbin"},
		{Path: "/usr/lib/tables/multi", Source: filepath.Join(root, "usr/lib/tables/multi"), Mode: 0o755},
		{Path: "/usr/sbin/tables", Link: "/etc/alternatives/tables"},
		{Path: "/usr/sbin/tables-new", Link: "../lib/tables/multi"},
	}, tree.list())
}

func TestDebianFilesNameWhatIsMissing(t *testing.T) {
	root := newTree(t, map[string]string{
		"bin/loop":        "->loop",
		"bin/gone":        "->/elsewhere",
		"usr/share/doc/a": "text",
	})
	tree := newDebianFiles(root)
	require.ErrorContains(t, tree.add("/bin/loop"), "/bin/loop: too many links")
	require.ErrorIs(t, tree.add("/bin/gone"), fs.ErrNotExist)
	require.ErrorContains(t, tree.add("/usr/share/doc"), "/usr/share/doc in "+root+" is not a file")
}

// A program of this machine must start with nothing but what was collected for it.
func TestDebianFilesAreEnough(t *testing.T) {
	shell, err := exec.LookPath("sh")
	require.NoError(t, err)
	needs, err := needsOf(shell)
	require.NoError(t, err)
	if len(needs) == 0 {
		t.Skip("the shell of this machine is static")
	}
	tree := newDebianFiles("/")
	if len(tree.folders) == 0 || !strings.Contains(tree.folders[0], "-linux-gnu") {
		t.Skip("the libraries of this machine are not where Debian has them")
	}
	require.NoError(t, tree.add(shell))

	to := t.TempDir()
	var loader string
	libraries := map[string]bool{}
	for _, f := range tree.list() {
		copied := filepath.Join(to, f.Path)
		require.NoError(t, os.MkdirAll(filepath.Dir(copied), 0o755))
		if f.Link != "" {
			// Absolute ones would lead out of the copy, and --library-path is in their stead.
			if !filepath.IsAbs(f.Link) {
				require.NoError(t, os.Symlink(f.Link, copied))
			}
			continue
		}
		content, err := os.ReadFile(f.Source)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(copied, content, f.Mode|0o700))
		libraries[filepath.Dir(copied)] = true
		if strings.HasPrefix(filepath.Base(copied), "ld-") {
			loader = copied
		}
	}
	require.NotEmpty(t, loader)
	program, err := tree.resolve(shell)
	require.NoError(t, err)
	var folders []string
	for folder := range libraries {
		folders = append(folders, folder)
	}
	// --list fails for a library that is missing, and prints where each comes from.
	output, err := exec.Command(loader, "--inhibit-cache", "--library-path", strings.Join(folders, ":"), "--list", filepath.Join(to, program.Path)).CombinedOutput()
	require.NoError(t, err, string(output))
	for line := range strings.Lines(string(output)) {
		if _, from, ok := strings.Cut(line, "=> "); ok {
			require.True(t, strings.HasPrefix(from, to), "taken from this machine: %s", line)
		}
	}
}
