package build

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestSecondPrepareChangesNothing(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	dir, _ := f.prepare(Guarded)
	before, err := listingOf(dir)
	require.NoError(t, err)
	_, out := f.prepare(Guarded)
	require.Empty(t, out)
	after, err := listingOf(dir)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestPrepareWritesOnlyWhatDiffers(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	dir, _ := f.prepare(Guarded)
	old := time.Now().Add(-time.Hour)
	modified := func(name string) time.Time {
		info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(name)))
		require.NoError(t, err)
		return info.ModTime()
	}
	untouched := modified("pkg/kubelet/kubelet.go")

	f.write(GuardDir+"/guard.go", f.read(GuardDir+"/guard.go")+"\n// More.\n")
	_, out := f.prepare(Guarded)
	require.Contains(t, out, "1 files written")
	require.Equal(t, untouched, modified("pkg/kubelet/kubelet.go"))
	require.True(t, modified(GuardDir+"/guard.go").After(old))

	require.NoError(t, os.Remove(f.path("pkg", "kubelet", "guard", "guard_test.go")))
	_, out = f.prepare(Guarded)
	require.Contains(t, out, "1 files written")
	require.NoFileExists(t, filepath.Join(dir, "pkg/kubelet/guard/guard_test.go"))

	// Without its patches, a file gets upstream's content back.
	f.write("patches/v1.36/series", "")
	f.prepare(Guarded)
	require.Equal(t, kubeletGo, snapshot(t, dir)["pkg/kubelet/kubelet.go"])
}

func TestPrepareMakesADamagedTreeAgain(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	dir, _ := f.prepare(Guarded)
	want := snapshot(t, dir)
	for name, damage := range map[string]func(){
		"a file was edited":    func() { require.NoError(t, os.WriteFile(filepath.Join(dir, "ignored.txt"), []byte("x"), 0o644)) },
		"a file was added":     func() { require.NoError(t, os.WriteFile(filepath.Join(dir, "pkg/new.go"), []byte("x"), 0o644)) },
		"a file was removed":   func() { require.NoError(t, os.Remove(filepath.Join(dir, "pkg/kubelet/kubelet.go"))) },
		"the tree was removed": func() { require.NoError(t, os.RemoveAll(dir)) },
		// What a killed run leaves: some files changed, and no stamp.
		"a run was killed": func() {
			require.NoError(t, os.Remove(f.stampFile(f.upstream(), Guarded)))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "pkg/kubelet/kubelet.go"), []byte(kubeletGo), 0o644))
		},
		"the stamp is cut short": func() {
			require.NoError(t, os.WriteFile(f.stampFile(f.upstream(), Guarded), []byte(`{"base":`), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			damage()
			f.prepare(Guarded)
			require.Equal(t, want, snapshot(t, dir))
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
}

func TestBuild(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	ctx := context.Background()
	// Names of the caller's environment must not reach the result.
	t.Setenv("GOFLAGS", "-tags=nonsense")
	t.Setenv("GOARCH", "mips")
	require.NoError(t, f.Build(ctx, u, "", []Binary{Kubelet, StockKubelet}, t.Output()))

	out, err := exec.Command(f.path("_output", "bin", "kubelet")).Output()
	require.NoError(t, err)
	require.Equal(t, "v36.3 node true\n", string(out))
	require.NotEqual(t, f.read("_output/bin/kubelet"), f.read("_output/bin/kubelet-stock"))
	require.Equal(t, f.read("_output/bin/kubelet"), f.read("_output/v1.36.3/kubelet"))

	before, err := os.Stat(f.path("_output", "v1.36.3", "kubelet"))
	require.NoError(t, err)
	require.NoError(t, f.Build(ctx, u, "", []Binary{Kubelet}, t.Output()))
	after, err := os.Stat(f.path("_output", "v1.36.3", "kubelet"))
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "an up-to-date binary is left alone")

	require.NoError(t, f.VerifyReproducible(ctx, u, "", []Binary{Kubelet, StockKubelet}, t.Output()))

	require.NoError(t, f.Build(ctx, u, "arm64", []Binary{Kubelet}, t.Output()))
	require.FileExists(t, f.path("_output", "v1.36.3", "linux-arm64", "kubelet"))
	require.NotEqual(t, f.read("_output/bin/kubelet"), f.read("_output/v1.36.3/linux-arm64/kubelet"))
}

func TestATreeInUseStaysAsItIs(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	dir, release, err := f.hold(context.Background(), u, Guarded, t.Output())
	require.NoError(t, err)
	before := snapshot(t, dir)
	f.write(GuardDir+"/guard.go", "package guard\n")

	waiting, stop := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer stop()
	var out bytes.Buffer
	_, err = f.Prepare(waiting, u, Guarded, &out)
	require.ErrorIs(t, err, context.DeadlineExceeded, "waiting can be interrupted")
	require.Equal(t, "Waiting for another run that uses "+dir+"\n", out.String())
	require.Equal(t, before, snapshot(t, dir))

	other, releaseOther, err := f.hold(context.Background(), u, tested, t.Output())
	require.NoError(t, err, "tests have a tree of their own")
	defer releaseOther()
	require.NotEqual(t, dir, other)

	release()
	_, err = f.Prepare(context.Background(), u, Guarded, t.Output())
	require.NoError(t, err)
	require.Equal(t, "package guard\n", snapshot(t, dir)[GuardDir+"/guard.go"])
}

func TestSourceFingerprintLeavesTestsOut(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	before, err := f.sourceFingerprint(u, Guarded)
	require.NoError(t, err)
	f.write(GuardDir+"/guard_test.go", "package guard\n")
	after, err := f.sourceFingerprint(u, Guarded)
	require.NoError(t, err)
	require.Equal(t, before, after)
	f.write(GuardDir+"/guard.go", "package guard\n")
	after, err = f.sourceFingerprint(u, Guarded)
	require.NoError(t, err)
	require.NotEqual(t, before, after)
}

func TestFindRepo(t *testing.T) {
	f := newFakeRepo(t)
	f.write("build/node/go.mod", "module kubelet-guard.io/build/node\n")
	found, err := FindRepo(f.path("build", "node"))
	require.NoError(t, err)
	require.Equal(t, f.Repo, found)
	_, err = FindRepo(t.TempDir())
	require.ErrorContains(t, err, "run this inside a checkout of Kubelet Guard")
}
