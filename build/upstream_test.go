package build

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/semver"
)

func TestUpstreamSelectsAVersion(t *testing.T) {
	f := newFakeRepo(t)
	older := Upstream{Module: fakeModule, Version: "v1.35.4", Sum: "h1:a", GoModSum: "h1:b", StagingVersion: "v0.35.4"}
	f.write("patches/v1.35/upstream.yaml", string(older.yaml()))
	newer := Upstream{Module: fakeModule, Version: "v1.37.2", Sum: "h1:a", GoModSum: "h1:b", StagingVersion: "v0.37.2"}
	f.write("patches/v1.37/upstream.yaml", string(newer.yaml()))
	standard, err := f.Upstream("")
	require.NoError(t, err)
	require.Equal(t, semver.MajorMinor(KubeVersion), standard.Minor())
	for _, version := range []string{"v1.36.3", "1.36.3", "1.36", "v1.36"} {
		u, err := f.Upstream(version)
		require.NoError(t, err, version)
		require.Equal(t, "v1.36.3", u.Version, version)
	}
	u, err := f.Upstream("1.35")
	require.NoError(t, err)
	require.Equal(t, "v1.35.4", u.Version)

	_, err = f.Upstream("1.36.2")
	require.EqualError(t, err, `no patches for Kubernetes version "1.36.2"; supported: v1.35.4, v1.36.3, v1.37.2`)
}

func TestUpstreamFileIsStrict(t *testing.T) {
	valid := string(Upstream{Module: fakeModule, Version: "v1.36.3", Sum: "h1:a", GoModSum: "h1:b", StagingVersion: "v0.36.3"}.yaml())
	for name, tc := range map[string]struct{ content, want string }{
		"unknown field":   {valid + "sums: x\n", `unknown field "sums"`},
		"missing version": {"module: a\n", `version "" is not a semantic version`},
		"missing sum":     {"module: a\nversion: v1.36.3\n", `sum "" is not an h1 sum`},
		"missing module":  {"version: v1.36.3\n", "module is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "upstream.yaml")
			require.NoError(t, os.WriteFile(file, []byte(tc.content), 0o644))
			_, err := LoadUpstream(file)
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, file)
		})
	}
}

func TestUpstreamMustLieInTheDirectoryOfItsMinor(t *testing.T) {
	f := newFakeRepo(t)
	u := f.upstream()
	f.write("patches/v1.35/upstream.yaml", string(u.yaml()))
	_, err := f.Supported()
	require.ErrorContains(t, err, "version v1.36.3 does not belong in directory v1.35")
}

func TestFetchRefusesAnotherArchive(t *testing.T) {
	f := newFakeRepo(t)
	u := f.upstream()
	other := u
	other.Sum = "h1:AAAA"
	_, err := other.Fetch(context.Background())
	require.ErrorContains(t, err, "upstream.yaml: sum: the archive of example.test/kubernetes@v1.36.3 has "+u.Sum+", the pin wants h1:AAAA")
	other = u
	other.GoModSum = "h1:BBBB"
	_, err = other.Fetch(context.Background())
	require.ErrorContains(t, err, "has "+u.GoModSum+", the pin wants h1:BBBB")
}

func TestTreeRefusesATamperedModuleCache(t *testing.T) {
	f := newFakeRepo(t)
	u := f.upstream()
	dir, err := u.Fetch(context.Background())
	require.NoError(t, err)
	file := filepath.Join(dir, "pkg", "kubelet", "kubelet.go")
	require.NoError(t, os.Chmod(file, 0o644))
	require.NoError(t, os.WriteFile(file, []byte(kubeletGo+"// more\n"), 0o644))

	_, err = f.Prepare(context.Background(), u, Stock, t.Output())
	require.ErrorContains(t, err, "the pin wants "+u.Sum)
	require.ErrorContains(t, err, "they were changed after the download")
	require.NoDirExists(t, f.treeDir(Stock))
}

func TestFetchNamesAMissingVersion(t *testing.T) {
	f := newFakeRepo(t)
	u := f.upstream()
	u.Version = "v1.36.9"
	_, err := u.Fetch(context.Background())
	require.ErrorContains(t, err, "go mod download example.test/kubernetes@v1.36.9")
}

func TestPinGoMod(t *testing.T) {
	got, err := PinGoMod([]byte(fakeUpstream()["go.mod"]), "v0.36.3")
	require.NoError(t, err)
	require.Equal(t, "module example.test/kubernetes\n\ngo 1.24\n\nrequire example.test/api v0.36.3\n", string(got))

	_, err = PinGoMod(got, "v0.36.3")
	require.ErrorContains(t, err, "no replace directive points to ./staging/")

	_, err = PinGoMod([]byte("module m\n\nrequire (\n\ta.test/a v0.0.0\n\tb.test/b v0.0.0\n)\n\nreplace a.test/a => ./staging/src/a.test/a\n"), "v0.1.0")
	require.ErrorContains(t, err, "b.test/b is required at v0.0.0 and not replaced")
}
