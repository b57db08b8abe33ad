package build

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	"golang.org/x/mod/zip"
)

// The fake upstream is a small module with the folders of Kubernetes, served by a
// module proxy in a directory: everything but its size is real.
const (
	fakeModule  = "example.test/kubernetes"
	fakeStaging = "example.test/api"
	fakeVersion = "v1.36.3"
)

// kubeletGo is long enough for hunks that do not touch each other.
const kubeletGo = `package kubelet

// SyncPod brings a pod to its wanted state.
func SyncPod(pod string) bool {
	if pod == "" {
		return false
	}
	return true
}

// Name is what the node calls itself.
func Name() string {
	return "node"
}

// Kill stops a pod.
func Kill(pod string) bool {
	if pod == "" {
		return false
	}
	return true
}
`

func fakeUpstream() map[string]string {
	return map[string]string{
		"go.mod": `module example.test/kubernetes

go 1.24

require example.test/api v0.0.0

replace example.test/api => ./staging/src/example.test/api
`,
		"go.sum":                 "",
		"go.work":                "go 1.24\n",
		".gitignore":             "/_output\nignored.txt\n",
		"ignored.txt":            "part of the archive all the same\n",
		"pkg/kubelet/kubelet.go": kubeletGo,
		"pkg/kubelet/kubelet_test.go": `package kubelet

import "testing"

func TestSyncPod(t *testing.T) {
	t.Run("named", func(t *testing.T) {
		if !SyncPod("a") {
			t.Error("not synced")
		}
	})
	t.Run("unnamed", func(t *testing.T) {
		if SyncPod("") {
			t.Error("synced")
		}
	})
}

func TestName(t *testing.T) {
	if Name() != "node" {
		t.Errorf("Name() = %q", Name())
	}
}
`,
		"cmd/kubelet/main.go": `package main

import (
	"fmt"

	"example.test/api"
	"example.test/kubernetes/pkg/kubelet"
)

func main() { fmt.Println(api.Group, kubelet.Name(), kubelet.SyncPod("a")) }
`,
		"cmd/kube-apiserver/main.go":          "package main\n\nfunc main() {}\n",
		"cmd/kube-controller-manager/main.go": "package main\n\nfunc main() {}\n",
		"cmd/kube-scheduler/main.go":          "package main\n\nfunc main() {}\n",
		"cmd/kubectl/main.go":                 "package main\n\nfunc main() {}\n",
	}
}

// fakeRepo is a checkout of this repository with the fake upstream pinned.
type fakeRepo struct {
	Repo
	t     *testing.T
	proxy string
}

func newFakeRepo(t *testing.T) *fakeRepo {
	t.Helper()
	f := &fakeRepo{Repo: Repo{Root: t.TempDir(), Cache: t.TempDir()}, t: t, proxy: t.TempDir()}
	cache := t.TempDir()
	// The go command makes the module cache read-only, which also stops its removal.
	t.Cleanup(func() {
		_ = filepath.WalkDir(cache, func(path string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(path, 0o755)
			}
			return nil
		})
	})
	t.Setenv("GOMODCACHE", cache)
	t.Setenv("GOPROXY", "file://"+f.proxy)
	t.Setenv("GOSUMDB", "off")
	t.Setenv("GONOPROXY", "none")
	t.Setenv("GOPRIVATE", "")

	f.publish(fakeStaging, "v0.36.3", map[string]string{"go.mod": "module example.test/api\n\ngo 1.24\n", "api.go": "package api\n\n// Group is the API group.\nconst Group = \"v36.3\"\n"})
	f.write("go.mod", "module kubelet-guard.io\n\ngo 1.24\n")
	f.write(GuardDir+"/guard.go", "// Package guard decides.\npackage guard\n\n// Keep reports whether a pod is kept.\nfunc Keep(pod string) bool { return pod == \"protected\" }\n")
	f.write(GuardDir+"/guard_test.go", "package guard\n\nimport \"testing\"\n\nfunc TestKeep(t *testing.T) {\n\tif !Keep(\"protected\") {\n\t\tt.Fail()\n\t}\n}\n")
	f.pin(fakeVersion, fakeUpstream())
	return f
}

// publish puts a module version into the proxy and returns its two sums.
func (f *fakeRepo) publish(path, version string, files map[string]string) (sum, goModSum string) {
	f.t.Helper()
	dir := filepath.Join(f.proxy, filepath.FromSlash(path), "@v")
	require.NoError(f.t, os.MkdirAll(dir, 0o755))
	src := f.t.TempDir()
	for name, content := range files {
		file := filepath.Join(src, filepath.FromSlash(name))
		require.NoError(f.t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(f.t, os.WriteFile(file, []byte(content), 0o644))
	}
	var archive bytes.Buffer
	require.NoError(f.t, zip.CreateFromDir(&archive, module.Version{Path: path, Version: version}, src))
	base := filepath.Join(dir, version)
	require.NoError(f.t, os.WriteFile(base+".zip", archive.Bytes(), 0o644))
	require.NoError(f.t, os.WriteFile(base+".mod", []byte(files["go.mod"]), 0o644))
	info, err := json.Marshal(map[string]any{"Version": version, "Time": time.Unix(0, 0).UTC()})
	require.NoError(f.t, err)
	require.NoError(f.t, os.WriteFile(base+".info", info, 0o644))

	sum, err = dirhash.HashZip(base+".zip", dirhash.Hash1)
	require.NoError(f.t, err)
	goModSum, err = dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(files["go.mod"])), nil
	})
	require.NoError(f.t, err)
	return sum, goModSum
}

// pin publishes a version of the fake upstream and pins it.
func (f *fakeRepo) pin(version string, files map[string]string) Upstream {
	f.t.Helper()
	sum, goModSum := f.publish(fakeModule, version, files)
	u := Upstream{Module: fakeModule, Version: version, Sum: sum, GoModSum: goModSum, StagingVersion: "v0.36.3"}
	f.write("patches/"+u.Minor()+"/upstream.yaml", string(u.yaml()))
	u, err := f.Upstream(version)
	require.NoError(f.t, err)
	require.NoError(f.t, f.Pin(context.Background(), u, io.Discard))
	return u
}

// upstream is the pin of the minor version that the fake repository is of.
func (f *fakeRepo) upstream() Upstream {
	f.t.Helper()
	u, err := f.Upstream("1.36")
	require.NoError(f.t, err)
	return u
}

func (f *fakeRepo) write(name, content string) {
	f.t.Helper()
	file := f.path(filepath.FromSlash(name))
	require.NoError(f.t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(f.t, os.WriteFile(file, []byte(content), 0o644))
}

func (f *fakeRepo) read(name string) string {
	f.t.Helper()
	data, err := os.ReadFile(f.path(filepath.FromSlash(name)))
	require.NoError(f.t, err)
	return string(data)
}

func (f *fakeRepo) edit() EditTree { return f.EditTree(f.upstream(), io.Discard) }

// hook makes a commit in the edit tree that replaces text in a file.
func (f *fakeRepo) hook(subject, file, old, new string) {
	f.t.Helper()
	tree := f.edit()
	path := tree.file(file)
	data, err := os.ReadFile(path)
	require.NoError(f.t, err)
	require.Contains(f.t, string(data), old)
	require.NoError(f.t, os.WriteFile(path, []byte(strings.Replace(string(data), old, new, 1)), 0o644))
	f.git("commit", "-q", "-a", "-m", subject+"\n\nA pod must not be lost here.\n\nForwarded: no\nDrop-When: upstream asks before it kills")
}

// git runs git in the edit tree with the developer's own configuration.
func (f *fakeRepo) git(args ...string) string {
	f.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = f.edit().Dir()
	out, err := cmd.CombinedOutput()
	require.NoError(f.t, err, string(out))
	return strings.TrimSpace(string(out))
}

const (
	syncHook  = "kubelet: keep protected pods in SyncPod"
	syncPatch = "kubelet-keep-protected-pods-in-syncpod.patch"
	killHook  = "kubelet: ask before a pod is killed"
	killPatch = "kubelet-ask-before-a-pod-is-killed.patch"
)

// withPatches gives the repository a series of two patches.
func (f *fakeRepo) withPatches() *fakeRepo {
	f.t.Helper()
	ctx := context.Background()
	require.NoError(f.t, f.edit().Apply(ctx, false))
	f.hook(syncHook, "pkg/kubelet/kubelet.go", "func SyncPod(pod string) bool {\n", "func SyncPod(pod string) bool {\n\tif guard.Keep(pod) {\n\t\treturn true\n\t}\n")
	f.amendImport()
	f.hook(killHook, "pkg/kubelet/kubelet.go", "func Kill(pod string) bool {\n", "func Kill(pod string) bool {\n\tif guard.Keep(pod) {\n\t\treturn false\n\t}\n")
	require.NoError(f.t, f.edit().Export(ctx, false))
	return f
}

// amendImport adds the import of the guard package to the last commit.
func (f *fakeRepo) amendImport() {
	f.t.Helper()
	path := f.edit().file("pkg/kubelet/kubelet.go")
	data, err := os.ReadFile(path)
	require.NoError(f.t, err)
	changed := strings.Replace(string(data), "package kubelet\n", "package kubelet\n\nimport \"example.test/kubernetes/pkg/kubelet/guard\"\n", 1)
	require.NoError(f.t, os.WriteFile(path, []byte(changed), 0o644))
	f.git("commit", "-q", "-a", "--amend", "--no-edit")
}
