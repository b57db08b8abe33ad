package build

import (
	"debug/buildinfo"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBuildProgramSetsVariables(t *testing.T) {
	f := newFakeRepo(t)
	f.write("cmd/tool/main.go", "package main\n\nvar first, second string\n\nfunc main() { println(first + second) }\n")
	result := filepath.Join(t.TempDir(), "tool")
	variables := map[string]string{"main.first": "0.1.0, commit 01", "main.second": "!"}
	require.NoError(t, f.BuildProgram(t.Context(), runtime.GOOS, runtime.GOARCH, variables, "./cmd/tool", result, io.Discard))
	out, err := exec.Command(result).CombinedOutput()
	require.NoError(t, err)
	assert.Equal(t, "0.1.0, commit 01!\n", string(out))
	info, err := buildinfo.ReadFile(result)
	require.NoError(t, err)
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	assert.Equal(t, "0", settings["CGO_ENABLED"])
	assert.Equal(t, "true", settings["-trimpath"])
}

func TestResultFile(t *testing.T) {
	repo, u := Repo{Root: "/repo"}, Upstream{Version: "v1.36.3"}
	own := filepath.FromSlash("/repo/_output/v1.36.3/kubelet")
	assert.Equal(t, own, repo.ResultFile(u, "", Kubelet))
	assert.Equal(t, own, repo.ResultFile(u, runtime.GOARCH, Kubelet))
	assert.Equal(t, filepath.FromSlash("/repo/_output/v1.36.3/linux-riscv64/kubelet"), repo.ResultFile(u, "riscv64", Kubelet))
}
