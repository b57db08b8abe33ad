package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBuildNodeBinaries(t *testing.T) {
	f := newFakeRepo(t)
	f.write("go.mod", "module kubelet-guard.io\n\ngo 1.24\n")
	f.write("node-e2e/images/pause/main.go", "package main\n\nfunc main() {}\n")
	f.write("build/third_party/node/go.mod", "module kubelet-guard.io/build/third_party/node\n\ngo 1.24\n")
	f.write("build/third_party/node/etcd/main.go", "package main\n\nimport \"fmt\"\n\nvar version = \"none\"\n\nfunc main() { fmt.Print(version + flavour) }\n")
	f.write("build/third_party/node/etcd/plain.go", "//go:build !small\n\npackage main\n\nconst flavour = \" plain\"\n")
	f.write("build/third_party/node/etcd/small.go", "//go:build small\n\npackage main\n\nconst flavour = \" small\"\n")
	f.write("build/third_party/node/binaries.yaml", `
binaries:
- name: etcd
  module: kubelet-guard.io/build/third_party/node
  package: kubelet-guard.io/build/third_party/node/etcd
  tags: [small]
  ldflags: -X main.version=v1
- name: pause
  module: kubelet-guard.io
  package: kubelet-guard.io/node-e2e/images/pause
`)
	require.NoError(t, f.BuildNodeBinaries(ctx, t.Output()))
	out, err := exec.Command(f.path("_output", "node", "bin", "etcd")).Output()
	require.NoError(t, err)
	require.Equal(t, "v1 small", string(out))
	require.FileExists(t, f.path("_output", "node", "bin", "pause"))
}

func TestLoadNodeBinariesIsStrict(t *testing.T) {
	const program = "- name: a\n  module: m\n  package: p\n"
	file := t.TempDir() + "/binaries.yaml"
	for content, want := range map[string]string{
		"binaries: []\n":                                       "binaries is empty",
		"binaries:\n- name: a\n  module: m\n":                  "binaries[0]: name, module and package are all required",
		"binaries:\n" + program + program:                      "binaries[1].name: a is listed twice",
		"binaries:\n" + program + "  static: true":             `unknown field "static"`,
		"binaries:\n- name: ../a\n  module: m\n  package: p\n": `binaries[0].name: "../a" is not a file name`,
	} {
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		_, err := LoadNodeBinaries(file)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, file)
	}
}

func TestTheRepositorysOwnFilesLoad(t *testing.T) {
	r, err := FindRepo(".")
	require.NoError(t, err)
	for _, folder := range []string{"third_party/node", "kind"} {
		binaries, err := LoadNodeBinaries(r.path("build", filepath.FromSlash(folder), "binaries.yaml"))
		require.NoError(t, err)
		for _, p := range binaries {
			if p.Module == ModulePath {
				require.DirExists(t, r.path(strings.TrimPrefix(p.Package, ModulePath+"/")), p.Name)
			}
		}
	}
	all, err := r.Supported()
	require.NoError(t, err)
	standard, err := r.Upstream("")
	require.NoError(t, err)
	require.Equal(t, KubeVersion, standard.Version, "release.go names the version of upstream.yaml")
	for _, u := range all {
		_, err := LoadSeries(r.patchDir(u))
		require.NoError(t, err)
		_, err = LoadUpstreamTests(r.path("patches", u.Minor(), "upstream-tests.yaml"))
		require.NoError(t, err)
	}
}
