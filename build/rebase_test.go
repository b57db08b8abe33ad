package build

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// nextUpstream publishes a version in which lines were added above every hook.
func (f *fakeRepo) nextUpstream(version, staging string, change func(string) string) {
	f.t.Helper()
	f.publish(fakeStaging, staging, map[string]string{"go.mod": "module example.test/api\n\ngo 1.24\n", "api.go": "package api\n\n// Group is the API group.\nconst Group = \"next\"\n"})
	files := fakeUpstream()
	files["pkg/kubelet/kubelet.go"] = change(kubeletGo)
	f.publish(fakeModule, version, files)
}

func moved(s string) string {
	return strings.Replace(s, "// Name is", "// Zero is nothing.\nconst Zero = 0\n\n// Name is", 1)
}

func TestRebaseFollowsMovedContext(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	f.nextUpstream("v1.36.4", "v0.36.4", moved)
	before := snapshot(t, f.path("patches"))
	require.NoError(t, f.Rebase(ctx, u, "v1.36.4", false, io.Discard))
	require.Equal(t, before, snapshot(t, f.path("patches")), "nothing is written before --finish")
	require.ErrorContains(t, f.Rebase(ctx, u, "v1.36.4", false, io.Discard), "holds a rebase already")

	require.NoError(t, f.FinishRebase(ctx, u, "v1.36.4", false, io.Discard))
	now := f.upstream()
	require.Equal(t, "v1.36.4", now.Version)
	require.Equal(t, "v0.36.4", now.StagingVersion)
	require.NotEqual(t, u.Sum, now.Sum)
	require.Contains(t, f.read("patches/v1.36/go.mod"), "example.test/api v0.36.4")
	require.NoError(t, f.VerifyPatchesForTest())
	require.NoDirExists(t, f.path("_output", "rebase", "v1.36.4"))
}

func TestRebaseToAnotherMinorMakesItsDirectory(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	f.write("patches/tests/pkg/kubelet/hooks_test.go", "package kubelet\n")
	f.write("patches/v1.36/tests/pkg/kubelet/minor_test.go", "package kubelet\n")
	u := f.upstream()
	before := snapshot(t, f.path("patches", "v1.36"))
	f.nextUpstream("v1.37.0", "v0.37.0", moved)
	require.NoError(t, f.Rebase(ctx, u, "v1.37.0", false, io.Discard))
	require.NoError(t, f.FinishRebase(ctx, u, "v1.37.0", false, io.Discard))
	require.Equal(t, before, snapshot(t, f.path("patches", "v1.36")))
	all, err := f.Supported()
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "package kubelet\n", f.read("patches/v1.37/tests/pkg/kubelet/minor_test.go"))
	require.NoFileExists(t, f.path("patches", "v1.37", "tests", "pkg", "kubelet", "hooks_test.go"), "the tests of all versions are there once")
	u, err = f.Upstream("v1.37.0")
	require.NoError(t, err)
	require.NoError(t, f.verifyReexportForTest(u))
}

// What merges may still not compile: a hook, or the test of one, calls a function that has
// other parameters now.
func TestRebaseCompilesWhatItMerged(t *testing.T) {
	const call, test = "patches/v1.36/kubelet-report-the-name.patch", "patches/v1.36/tests/pkg/kubelet/hooks_test.go"
	f := newFakeRepo(t).withPatches()
	f.hook("kubelet: report the name", "pkg/kubelet/kubelet.go", "func Kill(pod string) bool {\n", "func Kill(pod string) bool {\n\t_ = Name()\n")
	require.NoError(t, f.edit().Export(ctx, false))
	f.write(test, "package kubelet\n\nvar _ = Name()\n")
	u := f.upstream()
	f.nextUpstream("v1.36.4", "v0.36.4", moved)
	files := fakeUpstream()
	files["pkg/kubelet/kubelet.go"] = strings.Replace(kubeletGo, "Name() string", "Name(short bool) string", 1)
	files["pkg/kubelet/kubelet_test.go"] = strings.ReplaceAll(files["pkg/kubelet/kubelet_test.go"], "Name()", "Name(true)")
	files["cmd/kubelet/main.go"] = strings.Replace(files["cmd/kubelet/main.go"], "Name()", "Name(true)", 1)
	f.publish(fakeModule, "v1.36.4", files)
	before := snapshot(t, f.path("patches"))

	tree := f.workTree(u, "rebase/v1.36.4", io.Discard)
	amend := func(commit, file string) {
		data, err := os.ReadFile(tree.file(file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(tree.file(file), []byte(strings.Replace(string(data), "_ = Name()", "_ = Name(true)", 1)), 0o644))
		require.NoError(t, tree.git.all(ctx, []string{"commit", "-q", "-a", "--fixup", ":/^" + commit}, []string{"-c", "rebase.autoSquash=true", "rebase", "-q", "-i", "--autosquash", "--root"}))
	}
	for _, err := range []error{f.Rebase(ctx, u, "v1.36.4", false, io.Discard), f.FinishRebase(ctx, u, "v1.36.4", false, io.Discard)} {
		require.ErrorContains(t, err, "_output/rebase/v1.36.4: what the series touches does not compile")
		require.ErrorContains(t, err, "not enough arguments in call to Name")
	}
	amend("kubelet: report the name", "pkg/kubelet/kubelet.go")
	err := f.FinishRebase(ctx, u, "v1.36.4", false, io.Discard)
	require.ErrorContains(t, err, "hooks_test.go:3:14: not enough arguments in call to Name")
	require.Equal(t, before, snapshot(t, f.path("patches")))

	amend("kubelet: test the hooks", "pkg/kubelet/hooks_test.go")
	require.NoError(t, f.FinishRebase(ctx, u, "v1.36.4", false, io.Discard))
	require.Contains(t, f.read(call), "+\t_ = Name(true)\n")
	require.Equal(t, "package kubelet\n\nvar _ = Name(true)\n", f.read(test))
	require.NoError(t, f.VerifyPatchesForTest())
}

func TestRebaseNamesTheFileThatConflicts(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	f.nextUpstream("v1.36.4", "v0.36.4", func(s string) string {
		return strings.Replace(moved(s), "func Kill(pod string) bool {\n\tif pod == \"\" {", "func Kill(pod string, grace int) bool {\n\tif pod == \"\" || grace < 0 {", 1)
	})
	err := f.Rebase(ctx, u, "v1.36.4", false, io.Discard)
	var conflict *ConflictError
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, killPatch, conflict.Patch)
	require.Equal(t, []string{"CONFLICT (content): Merge conflict in pkg/kubelet/kubelet.go"}, conflict.Conflicts)
	require.ErrorContains(t, err, killPatch+" conflicts:\n  CONFLICT (content): Merge conflict in pkg/kubelet/kubelet.go\nResolve it in _output/rebase/v1.36.4 (edit")
	require.ErrorContains(t, f.FinishRebase(ctx, u, "v1.36.4", false, io.Discard), "unfinished git rebase")

	// The developer resolves it.
	tree := f.workTree(u, "rebase/v1.36.4", io.Discard)
	resolved := moved(f.read("_output/edit/v1.36/pkg/kubelet/kubelet.go"))
	resolved = strings.Replace(resolved, "Kill(pod string)", "Kill(pod string, grace int)", 1)
	require.NoError(t, os.WriteFile(tree.file("pkg/kubelet/kubelet.go"), []byte(resolved), 0o644))
	for _, args := range [][]string{{"add", "pkg/kubelet/kubelet.go"}, {"rebase", "--continue"}} {
		_, err := tree.git.run(ctx, args...)
		require.NoError(t, err)
	}
	require.NoError(t, f.FinishRebase(ctx, u, "v1.36.4", false, io.Discard))
	require.NoError(t, f.VerifyPatchesForTest())
	require.Equal(t, syncPatch+"\n"+killPatch+"\n", f.read("patches/v1.36/series"))
}

func TestRebaseNamesAFileThatUpstreamRemoved(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	f.publish(fakeStaging, "v0.36.4", map[string]string{"go.mod": "module example.test/api\n\ngo 1.24\n", "api.go": "package api\n\n// Group is the API group.\nconst Group = \"next\"\n"})
	files := fakeUpstream()
	delete(files, "pkg/kubelet/kubelet.go")
	delete(files, "pkg/kubelet/kubelet_test.go")
	files["pkg/kubelet/other.go"] = "package kubelet\n\nfunc Name() string { return \"\" }\n\nfunc SyncPod(string) bool { return false }\n"
	f.publish(fakeModule, "v1.36.4", files)
	err := f.Rebase(ctx, u, "v1.36.4", false, io.Discard)
	require.ErrorContains(t, err, syncPatch+" conflicts:\n  CONFLICT (modify/delete): pkg/kubelet/kubelet.go deleted in HEAD ")
}

func TestRebaseRefusesAnUnclearTarget(t *testing.T) {
	f := newFakeRepo(t).withPatches()
	u := f.upstream()
	require.ErrorContains(t, f.Rebase(ctx, u, "1.36", false, io.Discard), `--to: "1.36" is not a full version`)
	require.ErrorContains(t, f.Rebase(ctx, u, "v1.99.0", false, io.Discard), "--to: go mod download example.test/kubernetes@v1.99.0")
	require.ErrorContains(t, f.FinishRebase(ctx, u, "v1.36.4", false, io.Discard), "no rebase to v1.36.4 has been started")
}
