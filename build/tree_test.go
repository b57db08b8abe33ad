package build

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// prepare makes a tree and returns its directory and what was reported.
func (f *fakeRepo) prepare(tree Tree) (dir, out string) {
	f.t.Helper()
	var b bytes.Buffer
	dir, err := f.Prepare(context.Background(), f.upstream(), tree, &b)
	require.NoError(f.t, err)
	return dir, b.String()
}

// treeDir is where a tree is once it is made.
func (f *fakeRepo) treeDir(tree Tree) string {
	f.t.Helper()
	s, err := f.source(f.upstream(), tree)
	require.NoError(f.t, err)
	return f.cache().contentOf("trees", s.key())
}

// snapshot returns the content of all files below a directory.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[filepath.ToSlash(rel)] = string(data)
		return err
	}))
	return files
}

func TestStockTreeIsTheArchiveWithThePinnedModuleFiles(t *testing.T) {
	f := newFakeRepo(t)
	dir, _ := f.prepare(Stock)
	want := fakeUpstream()
	delete(want, "go.work")
	want["go.mod"] = f.read("patches/v1.36/go.mod")
	want["go.sum"] = f.read("patches/v1.36/go.sum")
	require.Equal(t, want, snapshot(t, dir))
	require.Contains(t, want["go.mod"], "require example.test/api v0.36.3")
}

func TestGuardedTreeIsStockPlusGuardPatchesAndTests(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	f.write("patches/v1.36/tests/pkg/kubelet/guard_hooks_test.go", "package kubelet\n")
	stock, _ := f.prepare(Stock)
	guarded, out := f.prepare(Guarded)
	require.Contains(t, out, "2 patches, 3 added files")

	a, b := snapshot(t, stock), snapshot(t, guarded)
	var differ []string
	for name := range b {
		if a[name] != b[name] {
			differ = append(differ, name)
		}
	}
	require.ElementsMatch(t, []string{
		"pkg/kubelet/kubelet.go", "pkg/kubelet/guard_hooks_test.go",
		GuardDir + "/guard.go", GuardDir + "/guard_test.go",
	}, differ)
	require.Equal(t, f.read(GuardDir+"/guard.go"), b[GuardDir+"/guard.go"], "the guard package is copied unchanged")
	require.Equal(t, 2, strings.Count(b["pkg/kubelet/kubelet.go"], "guard.Keep(pod)"))
}

func TestATreeHasThePathOfItsContent(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	first, _ := f.prepare(Guarded)
	before := snapshot(t, first)

	// Another checkout, at another path.
	dir, out := f.other().prepare(Guarded)
	require.Equal(t, first, dir)
	require.Empty(t, out)

	patch := f.read("patches/v1.36/" + killPatch)
	for name, content := range map[string]string{
		GuardDir + "/guard.go":                          f.read(GuardDir+"/guard.go") + "\n// More.\n",
		GuardDir + "/guard_test.go":                     strings.Replace(f.read(GuardDir+"/guard_test.go"), "t.Fail()", "t.Skip()", 1),
		GuardDir + "/testdata/a":                        "a file more\n",
		"patches/v1.36/tests/pkg/kubelet/hooks_test.go": "package kubelet\n",
		"patches/v1.36/" + killPatch:                    strings.Replace(patch, "return false", "return nope!", 1),
		"patches/v1.36/go.sum":                          f.read("patches/v1.36/go.sum") + "\n",
	} {
		changed := f.other()
		changed.write(name, content)
		require.NotEqual(t, first, changed.treeDir(Guarded), name)
	}
	require.Equal(t, before, snapshot(t, first), "a tree stays as it is")
}

func TestPrepareMakesADamagedTreeAgain(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	dir, _ := f.prepare(Guarded)
	want := snapshot(t, dir)
	write := func(file, content string) {
		_ = os.Remove(file)
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
		require.NoError(t, os.Chtimes(file, cacheTime, cacheTime))
	}
	for name, damage := range map[string]func(){
		"a file was edited":         func() { write(filepath.Join(dir, "ignored.txt"), "part of the archive all the sama\n") },
		"a file was added":          func() { write(filepath.Join(dir, "pkg/new.go"), "x") },
		"a file was removed":        func() { require.NoError(t, os.Remove(filepath.Join(dir, "pkg/kubelet/kubelet.go"))) },
		"the tree was removed":      func() { require.NoError(t, os.RemoveAll(dir)) },
		"the entry was removed":     func() { require.NoError(t, os.RemoveAll(filepath.Dir(dir))) },
		"the sum is cut short":      func() { write(filepath.Join(dir, "../sum"), "h1:") },
		"the sum is of another one": func() { write(filepath.Join(dir, "../sum"), "h1:AAAA 7\n") },
		"the sum was removed":       func() { require.NoError(t, os.Remove(filepath.Join(dir, "../sum"))) },
	} {
		t.Run(name, func(t *testing.T) {
			damage()
			_, out := f.prepare(Guarded)
			require.Contains(t, out, "Making the guarded tree")
			require.Equal(t, want, snapshot(t, dir))
			_, out = f.prepare(Guarded)
			require.Empty(t, out)
		})
	}
}

func TestPrepareRefusesFuzz(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	patch := f.read("patches/v1.36/" + killPatch)
	require.Contains(t, patch, " // Kill stops a pod.\n")
	f.write("patches/v1.36/"+killPatch, strings.Replace(patch, " // Kill stops a pod.\n", " // Kill ends a pod.\n", 1))
	_, err := f.Prepare(context.Background(), f.upstream(), Guarded, t.Output())
	require.ErrorContains(t, err, "patches/v1.36/"+killPatch+" does not apply to v1.36.3")
}

func TestPrepareRefusesAddedFilesThatAreNotNew(t *testing.T) {
	f := newFakeRepo(t)
	f.write("patches/v1.36/tests/pkg/kubelet/kubelet_test.go", "package kubelet\n")
	_, err := f.Prepare(context.Background(), f.upstream(), Guarded, t.Output())
	require.ErrorContains(t, err, "pkg/kubelet/kubelet_test.go exists in v1.36.3 too")
}

func TestAddedFilesMustCompileInTheKubernetesTree(t *testing.T) {
	f := newFakeRepo(t)
	f.write(GuardDir+"/external_test.go", "package guard_test\n\nimport _ \"kubelet-guard.io/pkg/kubelet/guard\"\n")
	_, err := f.addedFiles(f.upstream())
	require.ErrorContains(t, err, GuardDir+"/external_test.go: imports a package of kubelet-guard.io")

	require.NoError(t, os.Remove(f.path("pkg", "kubelet", "guard", "external_test.go")))
	f.write("patches/v1.36/tests/pkg/kubelet/logic.go", "package kubelet\n")
	_, err = f.addedFiles(f.upstream())
	require.ErrorContains(t, err, "patches/v1.36/tests/pkg/kubelet/logic.go: only _test.go files, testdata and pkg/kubelet/guard/guardtest belong there")

	require.NoError(t, os.Remove(f.path("patches", "v1.36", "tests", "pkg", "kubelet", "logic.go")))
	f.write("patches/v1.36/tests/"+GuardDir+"/more_test.go", "package guard\n")
	_, err = f.addedFiles(f.upstream())
	require.ErrorContains(t, err, "more_test.go: the guard package's own tests belong in "+GuardDir)
}

func TestBuild(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	ctx := context.Background()
	// Names of the caller's environment must not reach the result.
	t.Setenv("GOFLAGS", "-tags=nonsense")
	t.Setenv("GOARCH", "mips")
	require.NoError(t, f.Build(ctx, u, "", []Binary{Kubelet, StockKubelet}, t.Output()))

	out, err := exec.Command(f.path("_output", "v1.36.3", "kubelet")).Output()
	require.NoError(t, err)
	require.Equal(t, "v36.3 node true\n", string(out))
	require.NotEqual(t, f.read("_output/v1.36.3/kubelet"), f.read("_output/v1.36.3/kubelet-stock"))

	before, err := os.Stat(f.path("_output", "v1.36.3", "kubelet"))
	require.NoError(t, err)
	require.NoError(t, f.Build(ctx, u, "", []Binary{Kubelet}, t.Output()))
	after, err := os.Stat(f.path("_output", "v1.36.3", "kubelet"))
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "an up-to-date binary stays as it is")

	require.NoError(t, f.VerifyReproducible(ctx, u, "", []Binary{Kubelet, StockKubelet}, t.Output()))

	require.NoError(t, f.Build(ctx, u, "arm64", []Binary{Kubelet}, t.Output()))
	require.FileExists(t, f.path("_output", "v1.36.3", "linux-arm64", "kubelet"))
	require.NotEqual(t, f.read("_output/v1.36.3/kubelet"), f.read("_output/v1.36.3/linux-arm64/kubelet"))
}

// What runs from bin is of the default minor version.
func TestBuildPutsKubeletsOfTheDefaultVersionIntoBin(t *testing.T) {
	f := newFakeRepo(t)
	f.pin("v1.35.4", fakeUpstream())
	f.pin(KubeVersion, fakeUpstream())
	for version, want := range map[string]bool{"v1.35.4": false, KubeVersion: true} {
		require.NoError(t, os.RemoveAll(f.path("_output", "bin")))
		u, err := f.Upstream(version)
		require.NoError(t, err)
		require.NoError(t, f.Build(ctx, u, "", []Binary{StockKubelet}, t.Output()))
		_, err = os.Stat(f.path("_output", "bin", "kubelet-stock"))
		require.Equal(t, want, err == nil, version)
	}
}

// other is a second checkout of the same content, which shares the cache.
func (f *fakeRepo) other() *fakeRepo {
	f.t.Helper()
	o := &fakeRepo{Repo: Repo{Root: f.t.TempDir(), Cache: f.Cache}, t: f.t, proxy: f.proxy}
	for _, folder := range []string{"go.mod", "patches", "pkg"} {
		f.copy(folder, o)
	}
	return o
}

func (f *fakeRepo) copy(name string, to *fakeRepo) {
	f.t.Helper()
	info, err := os.Stat(f.path(name))
	require.NoError(f.t, err)
	if info.IsDir() {
		require.NoError(f.t, os.CopyFS(to.path(name), os.DirFS(f.path(name))))
	} else {
		to.write(name, f.read(name))
	}
}

func TestAProgramComesOutOfTheCacheWhenTheGoCommandFindsItCurrent(t *testing.T) {
	f := newFakeRepo(t)
	build := func(r *fakeRepo) (program string, out string) {
		var b bytes.Buffer
		require.NoError(t, r.Build(ctx, r.upstream(), "", []Binary{StockKubelet}, &b), &b)
		return r.read("_output/v1.36.3/kubelet-stock"), b.String()
	}
	entry := func() (string, os.FileInfo) {
		found, err := filepath.Glob(filepath.Join(f.Cache, "programs", "*", "content", "kubelet-stock"))
		require.NoError(t, err)
		require.Len(t, found, 1)
		info, err := os.Stat(found[0])
		require.NoError(t, err)
		return found[0], info
	}
	want, _ := build(f)
	file, first := entry()

	got, _ := build(f.other())
	require.Equal(t, want, got)
	_, now := entry()
	require.True(t, os.SameFile(first, now), "it was not built again")

	// A whole entry at the right place that is another program.
	this, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, f.cache().put(ctx, "programs", filepath.Base(filepath.Dir(filepath.Dir(file))), io.Discard, func(dir string) error {
		return copyFile(this, filepath.Join(dir, "kubelet-stock"), 0o644)
	}))
	got, _ = build(f.other())
	require.Equal(t, want, got, "the go command has the last word")

	require.NoError(t, os.Chmod(file, 0o644))
	require.NoError(t, os.Truncate(file, first.Size()-1))
	got, out := build(f.other())
	require.Equal(t, want, got)
	require.Contains(t, out, "is damaged")
	_, now = entry()
	require.Equal(t, first.Size(), now.Size(), "and made again")

	off := f.other()
	off.Cache = ""
	got, _ = build(off)
	require.Equal(t, want, got)
	require.NoDirExists(t, off.path("_output", "cache", "programs"))
}

func TestProgramsDoNotDependOnTests(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	programs := func() string {
		s, err := f.source(u, Guarded)
		require.NoError(t, err)
		return s.programs()
	}
	before := programs()
	f.write(GuardDir+"/guard_test.go", "package guard\n")
	require.Equal(t, before, programs())
	f.write(GuardDir+"/guard.go", "package guard\n")
	require.NotEqual(t, before, programs())
}

func TestFindRepo(t *testing.T) {
	f := newFakeRepo(t)
	f.write("build/third_party/node/go.mod", "module kubelet-guard.io/build/third_party/node\n")
	found, err := FindRepo(f.path("build", "third_party", "node"))
	require.NoError(t, err)
	require.Equal(t, f.Root, found.Root)
	_, err = FindRepo(t.TempDir())
	require.ErrorContains(t, err, "run this inside a checkout of Kubelet Guard")
}
